"""Streams while they are made: hopeless drafts are stopped, windows let go, nothing is spliced."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import HEADS, SURE, UNSURE
from triage import BODY, Start, configuration

from gateway.certificates.outcomes import Row, Window, outcome
from gateway.config import Config
from gateway.storage.tables import utcnow
from router.certificate import Outcome
from router.confidence import default
from router.decision import Token
from router.output import OutputSpec
from router.router import Router
from router.threshold import REJECTED

CHAT = "/v1/chat/completions"
#: what differs between two answers that are the same
OWN = re.compile(rb'"(id|created)":[^,]*')
WINDOW = 3
TEXT = {"output": {"kind": "text", "max_tokens": 16}}
BY_WINDOW = TEXT | {"release": {"mode": "window", "window": WINDOW}}
STREAM: dict[str, Any] = BODY | {"stream": True}
WORDS = ["your ", "parcel ", "is ", "on ", "its ", "way"]


@pytest.fixture(scope="module")
def text_router(small_router: Router) -> Router:
    """As the small one, for texts; releases by window."""
    spec = OutputSpec(kind="text", max_tokens=16)
    return replace(small_router, spec=spec, confidence=default("text"), window=WINDOW)


def draft(logs: Sequence[float], **more: Any) -> Reply:
    """Six words with these log-probabilities, the last of them for all that follow."""
    logs = [*logs, *[logs[-1]] * len(WORDS)][: len(WORDS)]
    tokens = [Token(text=w, logprob=p, top=(p, -5.0)) for w, p in zip(WORDS, logs, strict=True)]
    return Reply(text="".join(WORDS), tokens=tokens, **more)


def send(gateway: RunningGateway, body: dict[str, Any] = STREAM) -> tuple[dict[str, str], bytes]:
    status, headers, data = gateway.send("POST", CHAT, body)
    assert status == 200
    return headers, data


def chunks(data: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def content(data: bytes) -> str:
    deltas = [c["delta"] for chunk in chunks(data) for c in chunk.get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


def streams(student: FakeOpenAI) -> list[dict[str, Any]]:
    """What it was asked, without the probe of its adapter."""
    return [body for body in student.chats if body.get("stream")]


# -- window


def test_after_the_window_bytes_flow_while_the_student_generates(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    held = threading.Event()
    student.reply = draft([SURE], hold=held, hold_after=4)
    seen = []
    with gateway.client().chat.completions.create(**STREAM) as stream:
        for chunk in stream:
            seen.append(chunk.choices[0].delta.content or "")
            if "".join(seen) == "your parcel is on ":
                assert student.in_flight == 1  # and waits for us
                held.set()
    assert "".join(seen) == "".join(WORDS)
    assert held.is_set()
    assert teacher.chats == []
    (row,) = gateway.ledger()
    assert (row.route, row.reason, row.status) == ("student", "trusted", 200)
    assert row.score == pytest.approx(np.exp(SURE))
    assert row.completion_tokens == len(WORDS)


def test_a_windowed_answer_is_the_same_bytes_as_a_held_one(
    serving: Start, student: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = draft([SURE])
    body = STREAM | {"stream_options": {"include_usage": True}, "logprobs": True}
    headers, windowed = send(gateway, body)
    # whoever chooses the student gets its draft held whole
    _, _, held = gateway.send("POST", CHAT, body, {"x-retort-route": "student"})
    assert OWN.sub(b"", windowed) == OWN.sub(b"", held)
    assert content(windowed) == "".join(WORDS)
    assert headers["x-retort-route"] == "student"
    (first, *_), last = chunks(windowed), chunks(windowed)[-1]
    assert last["usage"]["completion_tokens"] == len(WORDS)
    assert {chunk["id"] for chunk in chunks(windowed)} == {first["id"]}
    assert {chunk["model"] for chunk in chunks(windowed)} == {"gpt-large"}
    assert windowed.endswith(b"data: [DONE]\n\n")
    assert all("usage" in chunk for chunk in chunks(windowed))
    rows = gateway.ledger(2)
    assert rows[0].completion_id == first["id"]


def test_an_unsure_window_is_the_teachers_at_once_and_its_draft_a_label(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    held = threading.Event()
    student.reply = draft([UNSURE, UNSURE, UNSURE, SURE], hold=held, hold_after=4)

    def answer(body: dict[str, Any]) -> str:
        # the student goes on while the teacher is asked
        assert student.in_flight == 1
        held.set()
        student.wait_for(lambda server: server.in_flight == 0)
        return "your parcel is on its way"

    teacher.reply = answer
    headers, data = send(gateway)
    assert headers["x-retort-reason"] == "unsure"
    assert content(data) == "your parcel is on its way"
    assert student.disconnects == 0
    row = gateway.exchange()
    assert row.student_text == "".join(WORDS)
    assert row.score == pytest.approx(np.exp(UNSURE))
    assert row.loss == 0.0
    assert gateway.ledger()[0].loss == 0.0


def test_a_draft_the_teacher_overtakes_has_a_score_and_no_loss(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    held = threading.Event()
    student.reply = draft([UNSURE], hold=held, hold_after=4)
    headers, data = send(gateway)
    assert headers["x-retort-reason"] == "unsure"
    assert content(data) == "parcel"
    student.wait_for(lambda server: server.disconnects == 1)
    held.set()
    kept, (line,) = gateway.exchange(), gateway.ledger()
    assert (kept.student_text, kept.loss) == (None, None)
    assert line.score == kept.score == pytest.approx(np.exp(UNSURE))
    assert line.loss is None


def test_a_draft_that_may_stand_in_is_awaited(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, on_teacher_down="degraded", **BY_WINDOW)
    student.reply = draft([UNSURE])
    teacher.reply = Reply(status=503)
    headers, data = send(gateway)
    assert headers["x-retort-reason"] == "degraded"
    assert content(data) == "".join(WORDS)


@pytest.mark.parametrize("after", [1, 4])
def test_leaving_before_the_release_stops_the_student_and_the_teacher(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router, after: int
) -> None:
    """The client leaves while the window fills, or while both are at work."""
    gateway = serving(router=text_router, **BY_WINDOW)
    held = threading.Event()
    student.reply = draft([UNSURE], hold=held, hold_after=after)
    teacher.reply = Reply(text="parcel", delay_s=20)
    data = json.dumps(STREAM).encode()
    with gateway.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        student.wait_for(lambda server: server.in_flight == 1)
        if after == 4:
            teacher.wait_for(lambda server: server.in_flight == 1)
    student.wait_for(lambda server: server.disconnects == 1)
    teacher.wait_for(lambda server: server.in_flight == 0)
    held.set()
    assert gateway.ledger()[0].status == 499


def test_what_follows_the_window_does_not_change_the_score(
    serving: Start, student: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = draft([SURE, SURE, SURE, -9.0])
    assert send(gateway)[0]["x-retort-route"] == "student"
    # also of a request that is answered whole
    assert send(gateway, BODY)[0]["x-retort-route"] == "student"
    streamed, whole = gateway.ledger(2)
    assert streamed.score == whole.score == pytest.approx(np.exp(SURE))


def test_a_short_draft_is_judged_whole(
    serving: Start, student: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = Reply(text="on its", logprob=SURE)
    headers, data = send(gateway)
    assert headers["x-retort-route"] == "student"
    assert content(data) == "on its"


def test_json_on_demand_is_never_released_before_it_is_whole(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = draft([SURE])
    teacher.reply = '{"a": 1}'
    headers, data = send(gateway, STREAM | {"response_format": {"type": "json_object"}})
    assert headers["x-retort-reason"] == "invalid"
    assert content(data) == '{"a": 1}'


def test_an_answer_the_client_itself_cuts_short_is_held_whole(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = draft([SURE], finish_reason="length")
    headers, data = send(gateway, STREAM | {"max_tokens": 6})
    assert headers["x-retort-reason"] == "invalid"
    assert content(data) == "parcel"


def test_a_bundle_without_a_window_is_held_whole(
    serving: Start, student: FakeOpenAI, text_router: Router
) -> None:
    """The configuration has changed, the bundle's certificate is still that of whole drafts."""
    gateway = serving(router=replace(text_router, window=None), **BY_WINDOW)
    student.reply = draft([SURE, SURE, SURE, -9.0])
    assert send(gateway)[0]["x-retort-reason"] == "unsure"


def test_a_student_that_breaks_after_the_release_ends_in_an_error_and_no_other_words(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, audit_rate=1.0, **BY_WINDOW)
    student.reply = draft([SURE], cut_after=5)
    _, data = send(gateway)
    assert content(data).startswith("your parcel is")
    assert chunks(data)[-1]["error"]["code"] in ("upstream_broken", "upstream_unavailable")
    assert b"[DONE]" not in data
    assert b'"finish_reason":"stop"' not in data
    assert teacher.chats == []
    assert len(streams(student)) == 1
    (row,) = gateway.ledger()
    assert (row.route, row.reason) == ("student", "student_error")
    assert row.status in (502, 503)
    assert gateway.exchanges() == []


def test_the_official_client_sees_the_break(
    serving: Start, student: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = draft([SURE], stream_error={"message": "out of memory", "code": 500})
    stream = gateway.client().chat.completions.create(**STREAM)
    with pytest.raises(openai.APIError):
        list(stream)


def test_a_broken_release_is_not_asked_of_another_replica(
    serving: Start,
    student: FakeOpenAI,
    other_student: FakeOpenAI,
    teacher: FakeOpenAI,
    text_router: Router,
) -> None:
    urls = {"student": {"base_url": [student.url, other_student.url]}}
    gateway = serving(router=text_router, sections=urls, **BY_WINDOW)
    student.reply = other_student.reply = draft([SURE], cut_after=5)
    _, data = send(gateway)
    assert "error" in chunks(data)[-1]
    assert content(data) == "your parcel is on its "
    assert len(streams(student)) + len(streams(other_student)) == 1
    assert teacher.chats == []


def test_a_released_answer_that_breaks_the_rules_at_its_end_has_no_clean_end(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    student.reply = draft([SURE], finish_reason="length")
    _, data = send(gateway)
    assert "output rules" in chunks(data)[-1]["error"]["message"]
    assert b"[DONE]" not in data
    assert b'"finish_reason":"length"' not in data
    (row,) = gateway.ledger()
    # it was served, and counts against the promise as a full loss
    assert (row.route, row.reason, row.status, row.loss) == ("student", "trusted", 200, 1.0)
    # held whole, it is the teacher's turn
    headers, _ = send(gateway, BODY)
    assert headers["x-retort-reason"] == "invalid"


def test_leaving_after_the_release_stops_the_student(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, **BY_WINDOW)
    held = threading.Event()
    student.reply = draft([SURE], hold=held, hold_after=4)
    stream = gateway.client().chat.completions.create(**STREAM)
    next(iter(stream))
    stream.close()
    student.wait_for(lambda server: server.disconnects == 1)
    held.set()
    assert gateway.ledger()[0].status == 499
    assert teacher.chats == []


def test_a_released_answer_is_audited(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, text_router: Router
) -> None:
    gateway = serving(router=text_router, audit_rate=1.0, **BY_WINDOW)
    student.reply = draft([SURE])
    teacher.reply = "your parcel is on its way"
    send(gateway)
    wait_until(lambda: len(gateway.exchanges()) == 1)
    row = gateway.exchange()
    assert (row.route, row.student_text, row.loss) == ("student", "".join(WORDS), 0.0)


@pytest.mark.parametrize(("sampled", "loss"), [(True, 1.0), (False, None)])
def test_the_certificate_counts_a_release_that_broke_without_an_audit(
    sampled: bool, loss: float | None
) -> None:
    row = Row(
        id=f"req-{0:012x}-1",
        at=utcnow(),
        reason="trusted",
        status=200,
        score=0.9,
        p_ood=None,
        sampled=sampled,
        propensity=0.25,
        least=0.25,
        guess=None,
        loss=1.0,
        written_at=None,
    )
    counted = outcome(row, None, Window(settle_s=1, audit_wait_s=60), now=0)
    assert isinstance(counted, Outcome)
    assert (counted.score, counted.propensity, counted.loss) == (0.9, 0.25, loss)


# -- early cancel


def test_a_hopeless_draft_is_stopped_and_the_teacher_answers(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, small_router: Router
) -> None:
    gateway = serving(router=replace(small_router, prefix=HEADS))
    held = threading.Event()
    student.reply = draft([UNSURE], hold=held)
    headers, data = send(gateway)
    student.wait_for(lambda server: server.disconnects == 1)
    held.set()
    assert headers["x-retort-reason"] == "unsure_early"
    assert content(data) == "parcel"
    (row,) = gateway.ledger()
    assert (row.route, row.reason, row.score, row.loss) == (
        *("teacher", "unsure_early", REJECTED),
        None,
    )
    kept = gateway.exchange()
    assert (kept.student_text, kept.loss) == (None, None)
    assert kept.teacher_text == "parcel"
    # the draft had taken its prompt and a token, and its server had said so
    asked = max(1, len(json.dumps(student.chats[-1]["messages"])) // 4)
    assert row.student_usd == pytest.approx((asked + 1) / 1e6)
    assert gateway.metric('retort_early_cancels_total{k="1",task="triage"}') >= 1
    wasted = 'retort_wasted_student_tokens_total{draft="stopped",task="triage"}'
    assert gateway.metric(wasted) >= 1
    assert gateway.metric('retort_upstream_up{upstream="student"}') == 1


def test_a_draft_that_turns_bad_is_stopped_at_the_next_checkpoint(
    serving: Start, student: FakeOpenAI, small_router: Router
) -> None:
    gateway = serving(router=replace(small_router, prefix=HEADS))
    held = threading.Event()
    student.reply = draft([SURE, SURE, UNSURE], hold=held, hold_after=4)
    before = gateway.metric('retort_early_cancels_total{k="4",task="triage"}')
    assert send(gateway)[0]["x-retort-reason"] == "unsure_early"
    held.set()
    assert gateway.metric('retort_early_cancels_total{k="4",task="triage"}') == before + 1


def test_a_sure_draft_is_not_stopped(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, small_router: Router
) -> None:
    gateway = serving(router=replace(small_router, prefix=HEADS))
    headers, data = send(gateway)
    assert headers["x-retort-route"] == "student"
    assert content(data) == "parcel"
    assert teacher.chats == []


@pytest.mark.parametrize(
    ("task", "body", "headers"),
    [
        ({"early_cancel": False}, STREAM, {}),
        ({"on_teacher_down": "degraded"}, STREAM, {}),
        ({}, BODY, {}),
        ({}, STREAM, {"x-retort-route": "student"}),
    ],
    ids=["switched off", "the draft may stand in", "not a stream", "forced"],
)
def test_these_drafts_are_never_stopped(
    serving: Start,
    student: FakeOpenAI,
    small_router: Router,
    task: dict[str, Any],
    body: dict[str, Any],
    headers: dict[str, str],
) -> None:
    gateway = serving(router=replace(small_router, prefix=HEADS), **task)
    student.reply = Reply(text="parcel", logprob=UNSURE)
    _, sent, _ = gateway.send("POST", CHAT, body, headers)
    assert sent["x-retort-reason"] == ("forced" if headers else "unsure")
    assert student.disconnects == 0
    options = student.chats[-1].get("stream_options", {})
    assert "continuous_usage_stats" not in options


def test_early_cancel_and_window_work_together(
    serving: Start, student: FakeOpenAI, text_router: Router
) -> None:
    heads = replace(HEADS, at=(1, 2))
    gateway = serving(router=replace(text_router, prefix=heads), **BY_WINDOW)
    student.reply = draft([UNSURE])
    assert send(gateway)[0]["x-retort-reason"] == "unsure_early"
    student.reply = draft([SURE, SURE, SURE, UNSURE])
    headers, data = send(gateway)
    # what comes after the release is no longer asked about
    assert headers["x-retort-route"] == "student"
    assert content(data) == "".join(WORDS)


def test_a_prefix_head_that_breaks_has_no_say(
    serving: Start, student: FakeOpenAI, small_router: Router
) -> None:
    broken = replace(HEADS, weights=np.zeros((2, 3)))
    gateway = serving(router=replace(small_router, prefix=broken))
    assert send(gateway)[0]["x-retort-route"] == "student"


# -- configuration


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ({"release": {"mode": "window", "window": 4}}, "only for output.kind: text"),
        (TEXT | {"release": {"mode": "window"}}, "go together"),
        (TEXT | {"release": {"window": 4}}, "go together"),
        (TEXT | {"release": {"mode": "window", "window": 16}}, "under output.max_tokens"),
        (BY_WINDOW | {"checks": [{"kind": "refusal"}]}, "release.mode: window"),
    ],
)
def test_a_window_that_cannot_be_is_refused_by_name(
    tmp_path: Any, task: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        configured(tmp_path, task)


def configured(path: Any, task: dict[str, Any]) -> Config:
    return configuration(path, (FakeOpenAI(), FakeOpenAI()), task)
