"""A second attempt where the first is slow to begin: the first to begin answers, the other ends."""

import json
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from triage import BODY, Start

CHAT = "/v1/chat/completions"
STREAM = BODY | {"stream": True}
SLOW = Reply(text="parcel", delay_s=20)


def hedged(start: Start, other: FakeOpenAI, share: float = 1.0, **teacher: Any) -> RunningGateway:
    fallback = {"base_url": other.url, "api_key_env": None}
    hedge = {"after_s": 0.1, "share": share}
    return start(sections={"teacher": {"fallbacks": [fallback], "hedge": hedge} | teacher})


def hedges(gateway: RunningGateway, result: str) -> float:
    return gateway.metric(f'retort_hedges_total{{result="{result}",upstream="teacher"}}')


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_to_begin_answers_and_the_other_is_ended(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = hedged(start, next_teacher)
    won, lost = hedges(gateway, "won"), hedges(gateway, "lost")
    teacher.reply = SLOW
    status, _, data = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert status == 200 and b"refund" in data
    teacher.wait_for(lambda server: server.disconnects == 1)
    # the first may still win
    teacher.reply = Reply(text="parcel", delay_s=0.5)
    next_teacher.reply = SLOW
    status, _, data = gateway.send("POST", CHAT, BODY | {"stream": stream, "user": "2"})
    assert status == 200 and b"parcel" in data
    next_teacher.wait_for(lambda server: server.disconnects == 1)
    assert (hedges(gateway, "won") - won, hedges(gateway, "lost") - lost) == (1, 1)


def test_what_an_ended_attempt_cost_is_unknown_and_not_nothing(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = hedged(start, next_teacher)
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert "x-retort-cost-usd" in headers
    teacher.reply = SLOW
    _, headers, _ = gateway.send("POST", CHAT, BODY | {"user": "2"})
    assert "x-retort-cost-usd" not in headers
    first, second = gateway.ledger(2)
    assert first.cost_usd is not None and second.cost_usd is None
    assert second.completion_tokens is not None


def test_a_quick_teacher_is_asked_once(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = hedged(start, next_teacher, share=1.0, hedge={"after_s": 5.0})
    for body in (BODY, STREAM):
        assert gateway.send("POST", CHAT, body)[0] == 200
    assert (len(teacher.chats), len(next_teacher.chats)) == (2, 0)


def test_second_attempts_keep_to_their_share(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = hedged(start, next_teacher, share=0.25)
    teacher.reply = Reply(text="parcel", delay_s=0.15)
    for number in range(12):
        assert gateway.send("POST", CHAT, BODY | {"user": str(number)})[0] == 200
    # one in reserve, and a quarter of twelve
    assert 1 <= len(next_teacher.chats) <= 4


def test_an_attempt_that_fails_waits_for_the_other(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = hedged(start, next_teacher)
    teacher.reply = Reply(text="parcel", delay_s=0.4)
    next_teacher.reply = Reply(status=400)
    assert b"parcel" in gateway.send("POST", CHAT, STREAM)[2]
    teacher.reply = Reply(status=400, delay_s=0.4)
    next_teacher.reply = Reply(status=500)
    status, _, data = gateway.send("POST", CHAT, BODY)
    assert status == 400 and "scripted" in json.loads(data)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_both(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = hedged(start, next_teacher)
    teacher.reply = next_teacher.reply = SLOW
    data = json.dumps(BODY | {"stream": stream}).encode()
    with gateway.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        wait_until(lambda: teacher.in_flight == next_teacher.in_flight == 1)
    for fake in (teacher, next_teacher):
        fake.wait_for(lambda server: server.disconnects == 1)
    (row,) = gateway.ledger()
    assert (row.status, row.cost_usd) == (499, None)
