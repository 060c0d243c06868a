"""A sample of the student's answers is checked by the teacher, off the request path."""

import json

from fake_openai import FakeOpenAI, Reply
from running_gateway import wait_until
from triage import BODY, Start

CHAT = "/v1/chat/completions"


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
    assert gateway.metric('retort_audits_total{result="disagree",task="triage"}') >= 2


def test_failed_audits_are_counted_and_harm_nobody(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    line = 'retort_audits_total{result="failed",task="triage"}'
    before = gateway.metric(line)
    teacher.reply = Reply(status=500)
    assert gateway.send("POST", CHAT, BODY)[0] == 200
    wait_until(lambda: gateway.metric(line) == before + 1)
    assert gateway.exchanges() == []


def test_text_that_may_not_be_kept_is_not_audited(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    gateway.send("POST", CHAT, BODY | {"store": False})
    gateway.send("POST", CHAT, BODY, {"x-retort-no-store": "1"})
    gateway.ledger(2)
    assert teacher.chats == []


def test_audits_are_finished_before_the_gateway_stops(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0)
    teacher.reply = Reply(text="parcel", delay_s=0.3)
    for number in range(4):
        gateway.send("POST", CHAT, BODY | {"user": str(number)})
    gateway.stop()
    rows = gateway.exchanges()
    assert len(rows) == 4
    assert {row.loss for row in rows} == {0.0}
    gateway.store.close()


def test_nothing_is_audited_without_being_drawn(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving(audit_rate=0.0)
    _, _, data = gateway.send("POST", CHAT, BODY)
    assert json.loads(data)["model"] == "gpt-large"
    gateway.ledger()
    assert teacher.chats == []
