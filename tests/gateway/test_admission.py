"""The line in front of the teacher."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import UNSURE
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"
UNCLAIMED = {"model": "gpt-large", "messages": [MESSAGES[1]]}


class Clients:
    """Requests that are sent and not waited for."""

    def __init__(self, gateway: RunningGateway, stack: ExitStack) -> None:
        self._gateway = gateway
        self._stack = stack

    def send(self, body: dict[str, Any]) -> socket.socket:
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection = self._stack.enter_context(self._gateway.connect())
        connection.sendall(head.encode() + data)
        return connection

    def wait_for_line(self, length: int) -> None:
        line = 'retort_queued_requests{upstream="teacher"}'
        wait_until(lambda: self._gateway.metric(line) == length)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def narrow(start: Start, stack: ExitStack, line: int, **teacher: Any) -> tuple[Any, Clients]:
    """One request at a time."""
    limits = {"max_concurrency": 1, "max_queue": line} | teacher
    gateway = start(sections={"teacher": limits})
    return gateway, Clients(gateway, stack)


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("stream", [False, True])
def test_requests_wait_for_a_place_and_are_answered_in_turn(
    start: Start, stack: ExitStack, teacher: FakeOpenAI, claimed: bool, stream: bool
) -> None:
    _, clients = narrow(start, stack, 5)
    teacher.reply = Reply(text="parcel", delay_s=0.05)
    body = (BODY if claimed else UNCLAIMED) | {"stream": stream}
    connections = [clients.send(body | {"user": str(number)}) for number in range(4)]
    for connection in connections:
        assert b"200 OK" in connection.recv(65536)
    wait_until(lambda: len(teacher.chats) == 4 and teacher.in_flight == 0)
    assert teacher.max_in_flight == 1


def test_a_full_line_is_a_429_that_says_when_to_come_back(
    start: Start, stack: ExitStack, teacher: FakeOpenAI
) -> None:
    gateway, clients = narrow(start, stack, 1)
    shed = gateway.metric('retort_shed_requests_total{upstream="teacher",why="full"}')
    teacher.reply = Reply(text="parcel", delay_s=20)
    clients.send(BODY)
    teacher.wait_for(lambda server: server.in_flight == 1)
    clients.send(BODY)
    clients.wait_for_line(1)
    for number, body in enumerate((BODY, UNCLAIMED, BODY | {"stream": True}), start=1):
        status, headers, data = gateway.send("POST", CHAT, body)
        error = json.loads(data)["error"]
        assert (status, error["code"], error["type"]) == (429, "overloaded", "rate_limit_error")
        assert error.keys() == {"message", "type", "param", "code"}
        assert 1 <= int(headers["retry-after"]) <= 60
        line = 'retort_shed_requests_total{upstream="teacher",why="full"}'
        assert gateway.metric(line) == shed + number
    assert len(teacher.chats) == 1


def test_a_line_that_does_not_move_is_a_429_too(
    start: Start, stack: ExitStack, teacher: FakeOpenAI
) -> None:
    gateway, clients = narrow(start, stack, 5, queue_timeout_s=0.2)
    teacher.reply = Reply(text="parcel", delay_s=20)
    clients.send(BODY)
    teacher.wait_for(lambda server: server.in_flight == 1)
    status, _, data = gateway.send("POST", CHAT, BODY)
    assert (status, json.loads(data)["error"]["code"]) == (429, "overloaded")
    clients.wait_for_line(0)


def test_a_client_that_leaves_the_line_makes_room(
    start: Start, stack: ExitStack, teacher: FakeOpenAI
) -> None:
    _, clients = narrow(start, stack, 1)
    teacher.reply = Reply(text="parcel", delay_s=20)
    first = clients.send(BODY)
    teacher.wait_for(lambda server: server.in_flight == 1)
    waiting = clients.send(BODY | {"user": "2"})
    clients.wait_for_line(1)
    waiting.close()
    clients.wait_for_line(0)
    last = clients.send(BODY | {"user": "3"})
    clients.wait_for_line(1)
    teacher.reply = "parcel"
    first.close()
    assert b"200 OK" in last.recv(65536)
    assert [body.get("user") for body in teacher.chats] == [None, "3"]


def test_a_place_is_given_back_however_a_request_ends(
    start: Start, stack: ExitStack, teacher: FakeOpenAI
) -> None:
    gateway, _ = narrow(start, stack, 0)
    stream = BODY | {"stream": True}
    for reply in (
        Reply(status=500),
        Reply(status=400),
        Reply(raw=b"nonsense"),
        Reply(text="one two", cut_after=0),
        Reply(text="one two", cut_after=1),
    ):
        teacher.reply = reply
        for body in (BODY, stream, UNCLAIMED, UNCLAIMED | {"stream": True}):
            assert gateway.send("POST", CHAT, body)[0] != 429
    teacher.reply = "parcel"
    assert gateway.send("POST", CHAT, BODY)[0] == 200


def test_an_overloaded_teacher_is_an_outage_to_a_task_that_takes_doubted_drafts(
    serving: Start, stack: ExitStack, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving(
        on_teacher_down="degraded",
        sections={"teacher": {"max_concurrency": 1, "max_queue": 0}},
    )
    teacher.reply = Reply(text="parcel", delay_s=20)
    student.reply = Reply(text="refund", logprob=UNSURE)
    Clients(gateway, stack).send(UNCLAIMED)
    teacher.wait_for(lambda server: server.in_flight == 1)
    status, headers, data = gateway.send("POST", CHAT, BODY)
    assert (status, headers["x-retort-reason"]) == (200, "degraded")
    assert b"refund" in data
