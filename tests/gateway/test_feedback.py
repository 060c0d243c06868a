"""Feedback: the caller's own, the newest word counts, and a correction reaches the queue."""

import json
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from outage import outage
from postgres import Postgres
from running_gateway import RunningGateway, wait_until
from small_bundle import UNSURE
from sqlmodel import select
from triage import BODY, MESSAGES, Start

from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Feedback, State, utcnow

CHAT = "/v1/chat/completions"
FEEDBACK = "/v1/feedback"


@pytest.fixture
def gateway(database_url: str, start: Start) -> RunningGateway:
    """Collects, on a database of each kind; the teacher says: parcel."""
    return start(sections={"store": {"url": database_url}})


def asked(gateway: RunningGateway, **more: Any) -> tuple[str, str]:
    """Request id and completion id."""
    status, headers, data = gateway.send("POST", CHAT, BODY | more)
    assert status == 200
    return headers["x-request-id"], json.loads(data)["id"]


def said(
    gateway: RunningGateway, headers: dict[str, str] | None = None, **words: Any
) -> tuple[int, Any]:
    status, _, data = gateway.send("POST", FEEDBACK, words, headers)
    return status, json.loads(data)


def kept(store: Store) -> list[Feedback]:
    with store.session() as session:
        return list(session.exec(select(Feedback).order_by(Feedback.id)))


def test_a_correction_reaches_the_row_and_the_newest_word_counts(gateway: RunningGateway) -> None:
    request, completion = asked(gateway)
    other, _ = asked(gateway, user="other")
    status, body = said(gateway, id=completion, rating="down", correction="refund", comment="no")
    assert (status, body["id"], body["trainable"]) == (200, request, True)
    assert "why" not in body
    row, events = exchanges.show(gateway.store, request)
    assert (row.correction, row.teacher_text, row.state) == ("refund", "parcel", State.CAPTURED)
    assert events[-1].detail == "corrected"
    _, shown = gateway.json(f"{FEEDBACK}?id={completion}")
    assert shown == body
    # again, by the other id: it replaces what was said, the correction included
    status, body = said(gateway, id=request, score=0.25)
    assert (status, body["score"], body["rating"], body["comment"]) == (200, 0.25, None, None)
    assert (body["correction"], body["trainable"]) == (None, False)
    row, events = exchanges.show(gateway.store, request)
    assert (row.correction, events[-1].detail) == (None, "correction withdrawn")
    assert [one.id for one in kept(gateway.store)] == [request]
    assert exchanges.show(gateway.store, other)[0].correction is None


def test_feedback_is_counted(start: Start) -> None:
    gateway = start()
    request, _ = asked(gateway)

    def counted() -> list[float]:
        kinds = ("up", "down", "score", "correction")
        name = 'retort_feedback_total{{kind="{}",task="triage"}}'
        return [gateway.metric(name.format(kind)) for kind in kinds]

    before = counted()
    said(gateway, id=request, rating="down", correction="refund")
    said(gateway, id=request, score=1)
    said(gateway, id="req-unknown", rating="up")
    assert [now - then for then, now in zip(before, counted(), strict=True)] == [0, 1, 1, 1]


def test_feedback_belongs_to_whoever_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_KEYS", "one,two")
    gateway = start(sections={"server": {"api_keys_env": "APP_KEYS"}})
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    _, headers, data = gateway.send("POST", CHAT, BODY, one)
    ids = headers["x-request-id"], json.loads(data)["id"]
    for name in ids:
        status, body = said(gateway, two, id=name, rating="up")
        assert (status, body["error"]["code"]) == (404, "not_found")
    assert said(gateway, one, id=ids[1], rating="up")[0] == 200
    assert gateway.send("GET", f"{FEEDBACK}?id={ids[0]}", headers=two)[0] == 404
    assert [one.rating for one in kept(gateway.store)] == ["up"]


def test_a_draft_that_was_right_after_all_is_no_longer_held_against_the_student(
    serving: Start, student: FakeOpenAI
) -> None:
    gateway = serving()
    student.reply = Reply(text="refund", logprob=UNSURE)
    request, _ = asked(gateway)
    assert gateway.exchange().loss == 1.0
    said(gateway, id=request, correction="refund")
    assert gateway.exchange().loss == 0.0
    said(gateway, id=request, correction="password")
    assert gateway.exchange().loss == 1.0
    said(gateway, id=request, correction="parcel")
    said(gateway, id=request, rating="up")
    assert (gateway.exchange().loss, gateway.exchange().correction) == (1.0, None)


def test_a_student_s_answer_becomes_a_row_from_what_is_stored_or_sent_along(
    serving: Start,
) -> None:
    gateway = serving()
    bare, _ = asked(gateway)
    status, body = said(gateway, id=bare, correction="refund")
    assert (status, body["trainable"]) == (200, False)
    assert "messages" in body["why"]
    assert gateway.exchanges() == []  # the feedback is kept all the same
    assert kept(gateway.store)[0].correction == "refund"
    _, body = said(gateway, id=bare, correction="refund", messages=MESSAGES)
    assert body["trainable"]
    row = gateway.exchange()
    assert (row.id, row.correction, row.teacher_text, row.route) == (
        bare,
        "refund",
        None,
        "student",
    )
    assert (row.body["messages"], row.prompt) == (MESSAGES, MESSAGES[1]["content"])
    assert not row.sampled  # people chose it: no certificate may count it
    # the same request once more is the same row
    again, _ = asked(gateway, user="again")
    assert said(gateway, id=again, correction="password", messages=MESSAGES)[1]["trainable"]
    assert gateway.exchange().correction == "password"
    said(gateway, id=again, rating="up")
    assert gateway.exchange().correction == "refund"  # the first word stands again
    # with a stored completion nothing need be sent along
    stored, completion = asked(gateway, store=True, user="stored")
    assert said(gateway, id=completion, correction="refund")[1]["trainable"]
    row, _ = exchanges.show(gateway.store, stored)
    assert (row.student_text, row.loss, row.reason) == ("parcel", 1.0, "trusted")
    # and what is deleted takes the words said of it along
    gateway.client().chat.completions.delete(completion)
    row, _ = exchanges.show(gateway.store, stored)
    assert (row.state, row.correction) == (State.ERASED, None)
    assert kept(gateway.store)[-1].correction is None
    assert "erased" in said(gateway, id=stored, correction="refund")[1]["why"]


def test_a_correction_that_breaks_the_output_rules_teaches_nothing(start: Start) -> None:
    gateway = start()
    request, _ = asked(gateway)
    status, body = said(gateway, id=request, correction="warranty")
    assert (status, body["trainable"]) == (200, False)
    assert "not_a_label" in body["why"]
    assert gateway.exchange().correction is None


def test_a_rejected_row_is_judged_again(gateway: RunningGateway) -> None:
    request, _ = asked(gateway)
    exchanges.move(gateway.store, [request], State.REJECTED, "refusal")
    said(gateway, id=request, correction="refund")
    assert gateway.exchange().state == State.CAPTURED
    exchanges.move(gateway.store, [request], State.TRAINABLE)
    said(gateway, id=request, correction="password")
    assert gateway.exchange().state == State.TRAINABLE  # in use, with its new answer
    said(gateway, id=request, rating="up")
    assert gateway.exchange().state == State.CAPTURED


def test_feedback_that_says_no_store_keeps_no_text(start: Start) -> None:
    gateway = start()
    request, _ = asked(gateway)
    words = {"id": request, "rating": "down", "correction": "refund", "comment": "x"}
    for headers, more in (({"x-retort-no-store": "1"}, {}), ({}, {"store": False})):
        status, body = said(gateway, headers, **words, **more)
        assert (status, body["rating"], body["trainable"]) == (200, "down", False)
    (row,) = kept(gateway.store)
    assert (row.rating, row.correction, row.comment) == ("down", None, None)
    assert gateway.exchange().correction is None


@pytest.mark.parametrize(
    ("words", "param"),
    [
        ({"rating": "up"}, "id"),
        ({"id": 7, "rating": "up"}, "id"),
        ({"id": "x"}, None),
        ({"id": "x", "rating": "good"}, "rating"),
        ({"id": "x", "rating": ["up"]}, "rating"),
        ({"id": "x", "score": 1.5}, "score"),
        ({"id": "x", "score": True}, "score"),
        ({"id": "x", "correction": " "}, "correction"),
        ({"id": "x", "comment": 1}, "comment"),
        ({"id": "x", "rating": "up", "messages": [1]}, "messages"),
    ],
)
def test_what_is_no_feedback_is_refused(
    shared: RunningGateway, words: dict[str, Any], param: str | None
) -> None:
    status, body = said(shared, **words)
    assert (status, body["error"]["param"]) == (400, param)


def test_a_correction_nested_beyond_reason_is_refused(shared: RunningGateway) -> None:
    deep = '{"a": ' * 1015 + "1" + "}" * 1015
    status, _, data = shared.send("POST", FEEDBACK, f'{{"id": "x", "correction": {deep}}}')
    assert (status, json.loads(data)["error"]["type"]) == (400, "invalid_request_error")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, fakes: Any) -> Any:
    from triage import configuration

    config = configuration(tmp_path_factory.mktemp("state"), fakes, {"mode": "collect"})
    with RunningGateway(config) as gateway:
        yield gateway


def test_odd_ids_are_unknown_and_nothing_worse(gateway: RunningGateway) -> None:
    assert said(gateway, id="\0", rating="up")[0] == 404
    assert gateway.send("GET", f"{FEEDBACK}?id=%00")[0] == 404
    assert gateway.send("GET", FEEDBACK)[0] == 400
    request, _ = asked(gateway)
    status, body = said(gateway, id=request, comment="a\0b", correction="refund")
    assert (status, body["comment"]) == (200, "a\N{REPLACEMENT CHARACTER}b")


def test_without_a_database_feedback_can_be_tried_again_and_nothing_is_half_written(
    gateway: RunningGateway, request: pytest.FixtureRequest
) -> None:
    on_postgres = gateway.store.engine.dialect.name == "postgresql"
    server: Postgres | None = request.getfixturevalue("postgres_server") if on_postgres else None
    name, _ = asked(gateway)
    with outage(gateway.store, server):
        status, headers, data = gateway.send(
            "POST", FEEDBACK, {"id": name, "rating": "down", "correction": "refund"}
        )
        assert (status, headers["x-should-retry"]) == (503, "true")
        assert json.loads(data)["error"]["code"] == "store_unavailable"
    wait_until(lambda: gateway.store.healthy, 20)
    assert kept(gateway.store) == []
    assert gateway.exchange().correction is None
    assert said(gateway, id=name, rating="down", correction="refund")[0] == 200
    assert gateway.exchange().correction == "refund"


def test_an_audit_that_comes_late_fills_in_the_row_feedback_made(store: Store) -> None:
    def row(**more: Any) -> Exchange:
        values: dict[str, Any] = {
            "id": "r",
            "at": utcnow(),
            "task": "t",
            "group_key": "g",
            "prompt": "p",
            "body": {},
            "route": "student",
            "reason": "trusted",
        }
        return Exchange(**values | more)

    store.insert([row(dedupe_key="feedback:r", correction="right")])
    audit = row(dedupe_key="k", teacher_text="wrong", sampled=True, propensity=0.1)
    assert store.insert([audit]) == ["stored"]
    found, _ = exchanges.show(store, "r")
    assert (found.correction, found.teacher_text, found.dedupe_key) == ("right", "wrong", "k")
    assert (found.sampled, found.propensity) == (True, 0.1)
    # but it does not bring erased text back
    exchanges.erase(store, ["r"])
    assert store.insert([audit]) == ["duplicate"]
    found, _ = exchanges.show(store, "r")
    assert (found.state, found.teacher_text, found.correction) == (State.ERASED, None, None)


def test_an_answer_from_the_cache_can_be_judged_by_its_own_id(serving: Start) -> None:
    gateway = serving(cache={"enabled": True})
    asked(gateway, temperature=0)
    _, headers, data = gateway.send("POST", CHAT, BODY | {"temperature": 0})
    assert headers["x-retort-cache"] == "hit"
    status, body = said(gateway, id=json.loads(data)["id"], rating="up")
    assert (status, body["id"]) == (200, headers["x-request-id"])


def test_requests_no_task_claims_can_be_rated_and_teach_nothing(start: Start) -> None:
    gateway = start()
    request, _ = asked(gateway, messages=[{"role": "user", "content": "hi"}])
    status, body = said(gateway, id=request, rating="down", correction="refund", messages=MESSAGES)
    assert (status, body["task"], body["trainable"]) == (200, "-", False)
    assert gateway.exchanges() == []
    assert gateway.metric('retort_feedback_total{kind="down",task="-"}') > 0
