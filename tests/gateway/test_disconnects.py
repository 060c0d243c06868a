"""A client that leaves takes its upstream work along, but not an answer that is complete."""

import json
import threading

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"


def leave_when(
    gateway: RunningGateway, upstream: FakeOpenAI, body: dict[str, object], seen: bytes = b""
) -> None:
    """Send the body, wait until the upstream works on it (and ``seen`` has come), hang up."""
    data = json.dumps(body).encode()
    with gateway.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        upstream.wait_for(lambda server: server.in_flight > 0)
        raw = b""
        while seen not in raw:
            raw += connection.recv(65536)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("claimed", [True, False])
def test_leaving_before_the_first_byte_stops_the_teacher(
    start: Start, teacher: FakeOpenAI, claimed: bool, stream: bool
) -> None:
    gateway = start()
    teacher.reply = Reply(text="parcel", delay_s=20)
    messages = MESSAGES if claimed else [MESSAGES[1]]
    leave_when(gateway, teacher, {"model": "m", "messages": messages, "stream": stream})
    teacher.wait_for(lambda server: server.disconnects == 1)
    assert gateway.exchanges() == []
    if claimed:
        assert gateway.ledger()[0].status == 499


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_stops_the_student_and_the_teacher_is_never_asked(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    student.reply = Reply(text="parcel", delay_s=20)
    leave_when(gateway, student, BODY | {"stream": stream})
    student.wait_for(lambda server: server.disconnects == 1)
    assert gateway.ledger()[0].status == 499
    assert teacher.chats == []


@pytest.mark.parametrize("claimed", [True, False])
def test_leaving_in_the_middle_of_a_stream_stops_the_teacher(
    start: Start, teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = start()
    teacher.reply = Reply(text="one two three", hold=threading.Event())
    messages = MESSAGES if claimed else [MESSAGES[1]]
    body = {"model": "m", "messages": messages, "stream": True}
    leave_when(gateway, teacher, body, seen=b"one")
    teacher.wait_for(lambda server: server.disconnects == 1)
    assert gateway.exchanges() == []
    hold = teacher.reply.hold
    assert hold is not None
    hold.set()


def test_an_answer_the_teacher_has_completed_is_kept_though_the_client_left(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    choice = {"index": 0, "delta": {"content": "parcel"}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    chunks = [{"id": "c", "model": "m", "choices": [part]} for part in (choice, end)]
    events = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    # complete, but the connection stays open: usage might still come
    teacher.reply = Reply(raw_then_hang=events)
    leave_when(gateway, teacher, BODY | {"stream": True}, seen=b"parcel")
    wait_until(lambda: len(gateway.exchanges()) == 1)
    assert gateway.exchange().teacher_text == "parcel"
    teacher.wait_for(lambda server: server.in_flight == 0)
