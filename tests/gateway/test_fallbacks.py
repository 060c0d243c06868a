"""What the teacher answers in the student's place is a row before the client has all of it."""

import json
import socket
import threading
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway
from small_bundle import STRANGE, SURE, UNSURE
from triage import BODY, MESSAGES, QUESTION, SYSTEM, Start, live_bundle

STREAM = BODY | {"stream": True}


def post(connection: socket.socket, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    raw = b""
    while mark not in raw:
        part = connection.recv(65536)
        assert part, raw
        raw += part
    return raw


def test_row_is_durable_before_the_last_byte_of_a_whole_answer(start: Start) -> None:
    gateway = start()
    with gateway.connect() as connection:
        post(connection, BODY)
        read_until(connection, b"HTTP/1.1 200")
        # the first bytes are already too late for the row to be missing
        assert gateway.exchange().teacher_text == "parcel"


def test_row_is_durable_before_the_end_of_a_stream(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    going_on = threading.Event()
    teacher.reply = Reply(text="one two three", hold=going_on)
    with gateway.connect() as connection:
        post(connection, STREAM)
        read_until(connection, b"one")
        assert gateway.exchanges() == []
        going_on.set()
        read_until(connection, b'"finish_reason":"stop"')
        assert gateway.exchange().teacher_text == "one two three"


def test_escalated_row_knows_the_draft_the_score_and_the_loss(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI
) -> None:
    gateway = serving()
    student.reply = Reply(text="refund", logprob=UNSURE)
    _, headers, data = gateway.send("POST", "/v1/chat/completions", BODY)
    assert (headers["x-retort-route"], headers["x-retort-reason"]) == ("teacher", "unsure")
    assert json.loads(data)["choices"][0]["message"]["content"] == "parcel"
    row = gateway.exchange()
    assert row.id == headers["x-request-id"]
    assert (row.task, row.route, row.reason) == ("triage", "teacher", "unsure")
    assert (row.student_text, row.teacher_text, row.loss) == ("refund", "parcel", 1.0)
    assert row.teacher_model == "gpt-large"
    assert row.score is not None and row.score < 0.09
    assert row.p_ood is not None and row.p_ood > 0.01
    assert row.prompt == QUESTION
    assert row.body == BODY
    assert row.bundle == live_bundle(gateway)
    assert row.prompt_hash
    assert (row.sampled, row.propensity) == (False, 0.0)


@pytest.mark.parametrize("stream", [False, True])
def test_strange_requests_never_reach_the_student(
    serving: Start, student: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    strange = [MESSAGES[0], {"role": "user", "content": STRANGE}]
    asked = len(student.chats)
    body = BODY | {"messages": strange, "stream": stream}
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", body)
    assert headers["x-retort-reason"] == "ood"
    assert len(student.chats) == asked
    assert gateway.exchange().student_text is None


@pytest.mark.parametrize("stream", [False, True])
def test_drafts_that_may_not_be_served_are_never_seen(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    teacher.reply = "refund"
    bad = [
        (Reply(text="banana", logprob=SURE), "invalid"),
        (Reply(text="parcel", logprob=SURE, finish_reason="length"), "invalid"),
        (Reply(text="I'm sorry, I cannot help with that.", logprob=SURE), "invalid"),
        (Reply(text="parcel", logprob=UNSURE), "unsure"),
        (Reply(status=400), "student_error"),
        (Reply(raw=b"<html>"), "student_error"),
        (Reply(raw=b'{"choices": []}'), "student_error"),
        (Reply(text="parcel", cut_after=0), "student_error"),
    ]
    for number, (reply, reason) in enumerate(bad):
        student.reply = reply
        body = BODY | {"stream": stream, "user": f"u{number}"}
        _, headers, data = gateway.send("POST", "/v1/chat/completions", body)
        assert headers["x-retort-reason"] == reason
        assert b"refund" in data
        assert not any(word in data for word in (b"banana", b"parcel", b"sorry"))
    rows = gateway.exchanges()
    assert [row.reason for row in rows] == [reason for _, reason in bad]
    assert {row.teacher_text for row in rows} == {"refund"}


def test_a_json_request_is_never_answered_with_a_draft_that_is_not_json(serving: Start) -> None:
    gateway = serving()
    body = BODY | {"response_format": {"type": "json_object"}}
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", body)
    assert headers["x-retort-reason"] == "invalid"


def test_same_request_sent_again_is_the_same_row(start: Start) -> None:
    gateway = start()
    for _ in range(3):
        gateway.send("POST", "/v1/chat/completions", BODY)
    assert gateway.exchange().seen == 3
    assert len(gateway.ledger(3)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_refused_text_is_not_kept_but_counted(start: Start, stream: bool) -> None:
    gateway = start()
    body = BODY | {"stream": stream}
    gateway.send("POST", "/v1/chat/completions", body | {"store": False})
    gateway.send("POST", "/v1/chat/completions", body, {"x-retort-no-store": "1"})
    assert len(gateway.ledger(2)) == 2
    assert gateway.exchanges() == []


def test_task_without_payloads_keeps_no_text(start: Start) -> None:
    gateway = start(store_payloads=False)
    gateway.send("POST", "/v1/chat/completions", BODY)
    assert len(gateway.ledger()) == 1
    assert gateway.exchanges() == []


@pytest.mark.parametrize(
    ("task", "sampled", "propensity"),
    [
        ({"mode": "collect"}, True, 1.0),
        ({"mode": "shadow"}, True, 1.0),
        ({"mode": "serve", "audit_rate": 1.0}, True, 1.0),
        ({"mode": "serve", "audit_rate": 0.0}, False, 0.0),
    ],
)
def test_sampling_depends_on_the_phase_and_not_on_the_request(
    serving: Start, student: FakeOpenAI, task: dict[str, Any], sampled: bool, propensity: float
) -> None:
    student.reply = Reply(text="refund", logprob=UNSURE)
    gateway = serving(**task)
    gateway.send("POST", "/v1/chat/completions", BODY)
    row = gateway.exchange()
    assert (row.sampled, row.propensity) == (sampled, propensity)


def test_collecting_never_asks_the_student(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(mode="collect")
    asked = len(student.chats)
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY)
    assert headers["x-retort-reason"] == "collect"
    assert len(student.chats) == asked


@pytest.mark.parametrize("stream", [False, True])
def test_in_shadow_the_student_decides_unseen(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving(mode="shadow")
    teacher.reply = Reply(text="refund", delay_s=0.1)
    _, headers, data = gateway.send("POST", "/v1/chat/completions", BODY | {"stream": stream})
    assert headers["x-retort-reason"] == "shadow"
    assert b"refund" in data and b"parcel" not in data
    row = gateway.exchange()
    assert (row.student_text, row.teacher_text, row.loss) == ("parcel", "refund", 1.0)
    assert row.score is not None and row.score > 0.9


def test_a_slow_shadow_never_holds_up_the_answer(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(mode="shadow")
    student.reply = Reply(text="parcel", delay_s=10)
    status, _, _ = gateway.send("POST", "/v1/chat/completions", BODY)
    assert status == 200
    assert gateway.ledger()[0].duration_ms < 3000
    assert gateway.exchange().student_text is None
    student.wait_for(lambda server: server.in_flight == 0)


def test_conversation_parts_are_joined_for_the_row(start: Start) -> None:
    gateway = start()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": parts},
        ],
    }
    gateway.send("POST", "/v1/chat/completions", body)
    assert gateway.exchange().prompt == "one\ntwo"


def test_ledger_tells_what_it_cost_and_what_it_saved(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    teacher.reply = Reply(text="parcel", usage=usage)
    student.reply = Reply(text="parcel", logprob=SURE, usage=usage)
    gateway = serving()
    forced = {"x-retort-route": "teacher"}
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY, forced)
    assert headers["x-retort-cost-usd"] == "0.0103"
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY)
    assert headers["x-retort-cost-usd"] == "0.00101"
    taught, studied = gateway.ledger(2)
    assert taught.cost_usd == taught.teacher_cost_usd == pytest.approx(0.0103)
    assert studied.cost_usd == pytest.approx(0.00101)
    assert studied.teacher_cost_usd == pytest.approx(0.0103)
    assert (studied.prompt_tokens, studied.completion_tokens) == (1000, 10)
    assert metric_grew(gateway, "retort_cost_avoided_usd_total")


def metric_grew(gateway: RunningGateway, name: str) -> bool:
    return gateway.metric(f'{name}{{task="triage"}}') > 0


def test_unknown_costs_are_null_and_never_zero(start: Start, teacher: FakeOpenAI) -> None:
    teacher.reply = Reply(text="parcel", send_usage=False)
    gateway = start()
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY)
    assert "x-retort-cost-usd" not in headers
    (row,) = gateway.ledger()
    assert row.cost_usd is None and row.teacher_cost_usd is None and row.prompt_tokens is None


def test_streams_are_priced_without_the_client_asking_for_usage(start: Start) -> None:
    gateway = start()
    gateway.send("POST", "/v1/chat/completions", STREAM)
    (row,) = gateway.ledger()
    assert row.stream and row.completion_tokens == 1
    assert row.cost_usd is not None and row.first_token_ms is not None
