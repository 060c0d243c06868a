"""A sample of the student's answers is checked by the teacher, off the request path."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import UNSURE
from sqlmodel import select
from triage import BODY, Start

from gateway.config import Config
from gateway.money.savings import account
from gateway.storage import exchanges
from gateway.storage.tables import PendingAudit, Request, utcnow
from router.sampler import sampled

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 100_000, "completion_tokens": 0}
#: of 100,000 prompt tokens
CALL_USD = 1.0


def ask(gateway: RunningGateway, user: str = "x", **more: Any) -> dict[str, str]:
    status, headers, _ = gateway.send("POST", CHAT, BODY | {"user": user} | more)
    assert status == 200
    return headers


def rows(gateway: RunningGateway, kind: str = "audit") -> list[Request]:
    with gateway.store.session() as session:
        found = session.exec(select(Request).where(Request.kind == kind).order_by(Request.id))
        return list(found)


def answers(gateway: RunningGateway, count: int) -> list[Request]:
    """The rows of the requests, once they are all there."""
    wait_until(lambda: len(rows(gateway, "answer")) == count)
    return rows(gateway, "answer")


def pending(gateway: RunningGateway) -> list[PendingAudit]:
    with gateway.store.session() as session:
        return list(session.exec(select(PendingAudit)))


def until_audited(gateway: RunningGateway, count: int) -> list[Request]:
    """The rows of the audits, once there are so many."""
    wait_until(lambda: len(rows(gateway)) >= count, 20)
    found = rows(gateway)
    assert len(found) == count
    return found


def lost(gateway: RunningGateway) -> float:
    return gateway.metric('retort_audits_total{result="lost",task="triage"}')


def test_sampled_answers_are_audited_after_they_were_given(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0)
    teacher.reply = Reply(text="refund", delay_s=0.3)
    for stream in (False, True):
        body = BODY | {"stream": stream, "user": "x", "stream_options": {"include_usage": True}}
        _, headers, data = gateway.send("POST", CHAT, body)
        assert headers["x-retort-route"] == "student"
        assert b"parcel" in data
    assert gateway.exchanges() == []
    wait_until(lambda: len(gateway.exchanges()) == 2)
    for row in gateway.exchanges():
        assert (row.route, row.reason) == ("student", "trusted")
        assert (row.student_text, row.teacher_text, row.loss) == ("parcel", "refund", 1.0)
        assert (row.sampled, row.propensity) == (True, 1.0)
        assert row.score is not None
    assert teacher.chats[0] == BODY | {"user": "x"}
    line = 'retort_audits_total{result="disagree",task="triage"}'
    wait_until(lambda: gateway.metric(line) >= 2)


def test_an_audit_has_what_the_certificate_needs(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    teacher.reply = Reply(text="refund")
    ask(gateway)
    (audit,) = until_audited(gateway, 1)
    (request,) = answers(gateway, 1)
    assert audit.parent == request.id
    assert (audit.loss, audit.status, audit.reason) == (1.0, 200, "trusted")
    assert request.loss is None
    assert request.score is not None and request.guess == pytest.approx(1.0 - request.score)
    for name in ("score", "propensity", "guess", "bundle", "sampled"):
        assert getattr(audit, name) == getattr(request, name)


def test_the_teachers_outage_loses_no_audit(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    retries = 'retort_audit_retries_total{task="triage"}'
    before = gateway.metric(retries)
    teacher.reply = Reply(status=503)
    for number in range(5):
        ask(gateway, str(number))
    wait_until(lambda: gateway.metric(retries) >= before + 5)
    wait_until(lambda: len(pending(gateway)) == 5)
    assert rows(gateway) == []
    teacher.reply = "parcel"
    audits = until_audited(gateway, 5)
    assert {(row.loss, row.reason) for row in audits} == {(0.0, "trusted")}
    assert {row.parent for row in audits} == {row.id for row in answers(gateway, 5)}


def test_an_audit_that_never_comes_counts_as_a_disagreement(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0, audit={"patience_s": 0.2})
    before = lost(gateway)
    teacher.reply = Reply(status=500)
    ask(gateway)
    (row,) = until_audited(gateway, 1)
    assert (row.loss, row.reason, row.status) == (1.0, "lost", 500)
    wait_until(lambda: lost(gateway) == before + 1)
    assert gateway.exchanges() == []


def test_a_prompt_the_teacher_refuses_is_not_asked_again(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0)
    refusals = [
        (Reply(status=400), 400, 0.0),
        (Reply(text="par", finish_reason="content_filter", usage=USAGE), 200, CALL_USD),
        (Reply(text=None, message={"refusal": "no"}, usage=USAGE), 200, CALL_USD),
    ]
    for count, (reply, status, usd) in enumerate(refusals, start=1):
        teacher.reply = reply
        ask(gateway, str(count))
        row = until_audited(gateway, count)[-1]
        assert (row.loss, row.reason, row.status, row.teacher_usd) == (1.0, "lost", status, usd)
        assert len(teacher.chats) == count


def test_text_that_may_not_be_kept_is_not_sampled(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    gateway.send("POST", CHAT, BODY | {"store": False})
    gateway.send("POST", CHAT, BODY, {"x-retort-no-store": "1"})
    for row in answers(gateway, 2):
        assert (row.route, row.sampled, row.propensity) == ("student", False, 0.0)
    assert teacher.chats == []
    assert pending(gateway) == []


def test_nothing_of_a_task_that_keeps_no_text_is_sampled(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0, store_payloads=False)
    ask(gateway)
    (row,) = answers(gateway, 1)
    assert (row.route, row.sampled, row.propensity) == ("student", False, 0.0)
    assert teacher.chats == []


def test_what_may_not_be_stored_is_not_stored_for_an_audit_either(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0)
    teacher.reply = Reply(status=503)
    secret = "ghp_" + "a1B2" * 9
    ask(gateway, secret)
    wait_until(lambda: len(pending(gateway)) == 1)
    assert secret not in str(pending(gateway)[0].model_dump())
    # while its gateway lives the audit is made all the same, with the words that were sent
    teacher.reply = "parcel"
    (row,) = until_audited(gateway, 1)
    assert (row.loss, row.reason) == (0.0, "trusted")
    assert teacher.chats[-1]["user"] == secret
    assert gateway.exchange().body["user"] == "<SECRET_1>"
    assert gateway.exchange().subject


def test_an_audit_without_its_text_is_lost_with_its_gateway(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0, audit={"lease_s": 1.0})
    teacher.reply = Reply(status=503)
    ask(gateway, "ghp_" + "a1B2" * 9)
    answers(gateway, 1)
    gateway.stop()
    gateway.store.close()
    teacher.reply = "parcel"
    asked = len(teacher.chats)
    with RunningGateway(gateway.config) as again:
        (row,) = until_audited(again, 1)
        assert (row.loss, row.reason, row.status) == (1.0, "lost", 410)
        assert len(teacher.chats) == asked
    again.store.close()


def test_an_audit_does_not_bring_back_what_was_erased(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    teacher.reply = Reply(status=503)
    ask(gateway, "ann")
    wait_until(lambda: len(pending(gateway)) == 1)
    exchanges.erase(gateway.store, exchanges.of_user(gateway.store, "ann"))
    teacher.reply = "parcel"
    (row,) = until_audited(gateway, 1)
    assert (row.loss, row.reason, row.status) == (1.0, "lost", 410)
    assert gateway.exchanges() == []


def test_audits_are_finished_before_the_gateway_stops(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    teacher.reply = Reply(text="parcel", delay_s=0.3)
    for number in range(4):
        ask(gateway, str(number))
    gateway.stop()
    found = gateway.exchanges()
    assert len(found) == 4
    assert {row.loss for row in found} == {0.0}
    assert pending(gateway) == []
    gateway.store.close()


def test_the_next_start_makes_what_the_last_one_could_not(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0, audit={"lease_s": 1.0})
    teacher.reply = Reply(status=503)
    ask(gateway)
    answers(gateway, 1)
    gateway.stop()
    assert rows(gateway) == []
    (promise,) = pending(gateway)
    assert promise.student_text == "parcel"
    gateway.store.close()
    teacher.reply = Reply(text="refund")
    with RunningGateway(gateway.config) as again:
        (row,) = until_audited(again, 1)
        assert (row.loss, row.status) == (1.0, 200)
        wait_until(lambda: pending(again) == [])
        assert again.exchange().teacher_text == "refund"
    again.store.close()


def test_nothing_is_audited_without_being_drawn(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=0.0)
    _, _, data = gateway.send("POST", CHAT, BODY)
    assert json.loads(data)["model"] == "gpt-large"
    gateway.ledger()
    assert teacher.chats == []


def test_a_draft_served_for_want_of_a_teacher_is_audited_when_it_is_back(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    student.reply = Reply(text="parcel", logprob=UNSURE)
    teacher.reply = Reply(status=503)
    gateway = serving(audit_rate=1.0, on_teacher_down="degraded")
    assert ask(gateway)["x-retort-degraded"] == "true"
    teacher.reply = "parcel"
    (row,) = until_audited(gateway, 1)
    assert (row.loss, row.reason) == (0.0, "degraded")
    assert gateway.exchange().teacher_text == "parcel"


def test_who_was_sampled_can_be_read_from_the_log_and_no_audit_changes_it(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=0.3)
    for number in range(30):
        ask(gateway, str(number))
    before = {row.id: (row.propensity, row.sampled, row.guess) for row in answers(gateway, 30)}
    drawn = {row_id for row_id in before if sampled(row_id, 0.3)}
    assert 0 < len(drawn) < 30
    until_audited(gateway, len(drawn))
    found = {row.id: (row.propensity, row.sampled, row.guess) for row in rows(gateway, "answer")}
    assert found == before
    assert {row_id for row_id, (_, was, _) in found.items() if was} == drawn
    assert {row.parent for row in rows(gateway)} == drawn


def test_what_doubt_draws_is_not_taken_for_traffic_as_it_is(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving(audit={"rate": 0.5, "sampler": "sqrt"})
    for number in range(12):
        ask(gateway, str(number))
    asked = answers(gateway, 12)
    for row in asked:
        # without guesses to take a shape from the rate is everybody's
        assert row.propensity == 0.5 and row.guess is not None
    audits = [row for row in asked if row.sampled]
    until_audited(gateway, len(audits))
    wait_until(lambda: len(gateway.exchanges()) == len(audits))
    for kept in gateway.exchanges():
        assert (kept.propensity, kept.sampled) == (0.1, sampled(kept.id, 0.1))


def test_the_first_audits_of_a_day_are_the_floors(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit={"rate": 0.001, "per_day": 3})
    for number in range(6):
        ask(gateway, str(number))
    found = [row.propensity for row in answers(gateway, 6)]
    assert found == [1.0, 1.0, 1.0, 0.001, 0.001, 0.001]


def test_when_the_audits_budget_is_spent_nothing_is_sampled_any_more(
    serving: Start, teacher: FakeOpenAI
) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE)
    gateway = serving(audit_rate=1.0, audit={"budget": {"daily_usd": 0.5}, "lease_s": 1.0})
    ask(gateway)
    until_audited(gateway, 1)  # it cost twice the budget, which nobody could know
    ask(gateway, "promised before anybody saw that")
    # what was promised is made and paid, whatever is left
    until_audited(gateway, 2)
    wait_until(lambda: gateway.metric('retort_audit_rate{task="triage"}') == 0.0, 20)
    ask(gateway, "after")
    assert [(row.propensity, row.sampled) for row in answers(gateway, 3)] == [
        (1.0, True),
        (1.0, True),
        (0.0, False),
    ]
    assert len(teacher.chats) == 2


def test_a_full_line_promises_nothing_more(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0, audit={"max_waiting": 2, "concurrency": 1})
    teacher.reply = Reply(text="parcel", delay_s=0.5)
    for number in range(4):
        ask(gateway, str(number))
    until_audited(gateway, 2)
    ask(gateway, "there is room again")
    found = [row.propensity for row in answers(gateway, 5)]
    assert found == [1.0, 1.0, 0.0, 0.0, 1.0]
    until_audited(gateway, 3)


def test_the_teachers_own_noise_is_measured(serving: Start, teacher: FakeOpenAI) -> None:
    said = iter(["parcel", "refund", "parcel", "parcel"])
    teacher.reply = lambda body: Reply(text=next(said), usage=USAGE)
    gateway = serving(audit_rate=1.0, audit={"reask": 1.0, "concurrency": 1})
    asked = gateway.metric('retort_teacher_disagreement_reasks_total{task="triage"}')
    loss = gateway.metric('retort_teacher_disagreement_loss_total{task="triage"}')
    since = utcnow()
    for number in range(2):
        ask(gateway, str(number))
        until_audited(gateway, number + 1)
    assert [row.loss for row in rows(gateway)] == [0.0, 0.0]
    again = rows(gateway, "reaudit")
    assert [row.loss for row in again] == [1.0, 0.0]
    assert [row.parent for row in again] == [row.id for row in answers(gateway, 2)]
    line = 'retort_teacher_disagreement_reasks_total{task="triage"}'
    wait_until(lambda: gateway.metric(line) == asked + 2)
    line = 'retort_teacher_disagreement_loss_total{task="triage"}'
    assert gateway.metric(line) == loss + 1.0
    sums = account(gateway.store, gateway.config, since, utcnow()).total
    assert (sums.audits, sums.audit_usd) == (2, 4 * CALL_USD)


def judging(judge: FakeOpenAI) -> dict[str, Any]:
    section = {"base_url": judge.url, "model": "gpt-other", "api_key_env": None}
    price = {"input_usd": 10.0, "output_usd": 10.0}
    return {"output": {"kind": "text"}, "audit": {"judge": section | {"price": price}}}


def test_a_judge_compares_texts_in_both_orders(
    serving: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    verdicts = {
        # of the student's answer first, then of the teacher's: the loss
        ("equal", "Equal."): 0.0,
        ("first", "The second answer"): 0.0,
        ("second", "first"): 1.0,
        ("first", "first"): 0.5,
        ("second", "equal"): 0.5,
    }
    teacher.reply = "It is about the parcel."
    since = utcnow()
    gateway = serving(audit_rate=1.0, **judging(next_teacher))
    for count, (said, loss) in enumerate(verdicts.items(), start=1):

        def judge(body: dict[str, Any], said: Sequence[str] = said) -> Reply:
            case = json.loads(body["messages"][1]["content"])
            assert {case["first"], case["second"]} == {"parcel", "It is about the parcel."}
            return Reply(text=said[case["first"] != "parcel"], usage=USAGE)

        next_teacher.reply = judge
        ask(gateway, str(count))
        row = until_audited(gateway, count)[-1]
        assert (row.loss, row.reason) == (loss, "trusted"), said
        calls = [call for call in rows(gateway, "judge") if call.parent == row.parent]
        assert sum(call.loss or 0.0 for call in calls) == 2 * loss
        assert [(call.model, call.status) for call in calls] == 2 * [("gpt-other", 200)]
    sums = account(gateway.store, gateway.config, since, utcnow()).total
    assert sums.judge_usd == 2 * len(verdicts) * CALL_USD


def test_without_a_judges_word_the_words_are_compared(
    serving: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    teacher.reply = "the parcel"
    gateway = serving(audit_rate=1.0, **judging(next_teacher))
    replies = [Reply(status=500), Reply(text="hm"), Reply(raw=b"no json")]
    for count, reply in enumerate(replies, start=1):
        next_teacher.reply = reply
        ask(gateway, str(count))
        row = until_audited(gateway, count)[-1]
        assert (row.loss, row.reason) == (pytest.approx(1 / 3), "unjudged")
    assert {call.reason for call in rows(gateway, "judge")} == {"failed"}
    # equal texts need none
    teacher.reply = "parcel"
    asked = len(next_teacher.chats)
    ask(gateway, "equal")
    row = until_audited(gateway, 4)[-1]
    assert (row.loss, row.reason) == (0.0, "trusted")
    assert len(next_teacher.chats) == asked


RETORT = "import sys; from retrain.cli import main; sys.exit(main())"


@pytest.mark.slow
def test_a_killed_gateways_audits_are_made_by_another(
    serving: Start,
    teacher: FakeOpenAI,
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUDITED_DATABASE", database_url)
    survivor = serving(
        sections={"store": {"url_env": "AUDITED_DATABASE"}},
        audit_rate=1.0,
        audit={"lease_s": 2.0},
    )
    teacher.reply = Reply(status=503)
    address, child = started(survivor.config, tmp_path)
    try:
        killed = RunningGateway.__new__(RunningGateway)
        killed.port = address
        served = {ask(killed, str(number))["x-request-id"] for number in range(6)}
        answers(survivor, 6)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(pending(survivor)) == 6
    teacher.reply = "parcel"
    audits = until_audited(survivor, 6)
    assert {row.parent for row in audits} == served
    assert {row.loss for row in audits} == {0.0}
    wait_until(lambda: pending(survivor) == [], 20)


def started(config: Config, folder: Path) -> tuple[int, "subprocess.Popen[bytes]"]:
    """The same gateway in a process of its own: its port, and the process."""
    path, log = folder / "retort.yaml", folder / "gateway.log"
    path.write_text(yaml.safe_dump({**config.model_dump(mode="json"), "server": {"port": 0}}))
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-c", RETORT, "serve", "--config", str(path)],
            stdout=output,
            stderr=output,
        )
    announced, deadline = config.state / "gateway.json", time.monotonic() + 60
    while not announced.exists():
        alive = child.poll() is None and time.monotonic() < deadline
        assert alive, log.read_text()
        time.sleep(0.05)
    return int(str(yaml.safe_load(announced.read_text())["url"]).rpartition(":")[2]), child
