"""A stream that passes through is the teacher's, byte for byte, however it is cut into pieces; one
that is not whole never looks whole."""

import json
import random
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import wait_until
from triage import BODY, MESSAGES, Start

from gateway.errors import GatewayError
from gateway.wire.streaming import TeacherStream, events, payload
from gateway.wire.watched import Watched

CHAT = "/v1/chat/completions"
UNCLAIMED = {"model": "gpt-large", "messages": [MESSAGES[1]], "stream": True}


class Arriving:
    """A streamed response whose bytes come in these pieces."""

    status = 200
    content_type = "text/event-stream"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)
        self.content = self

    async def readany(self) -> bytes:
        return next(self._pieces, b"")

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def cut(raw: bytes, seed: int) -> Arriving:
    """In pieces anywhere, also inside of a character, a line end, a blank line."""
    dice = random.Random(seed)
    pieces, start = [], 0
    while start < len(raw):
        end = start + dice.choice((1, 1, 2, 3, 7, 40))
        pieces.append(raw[start:end])
        start = end
    return Arriving(pieces)


def chunk(
    content: str | None = None, finish: str | None = None, **more: object
) -> dict[str, object]:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [choice],
        **more,
    }


WORDS = ("Päckchen ", "小包 ", "📦 ", "data: x ", "a\\nb ")


def transcript(newline: str, *, indent: int | None = None, last_blank: bool = True) -> bytes:
    """Comments, fields that nobody asked for, several data lines, text of all lengths in UTF-8."""
    events = [": keep-alive"]
    chunks = [chunk(""), *(chunk(word) for word in WORDS), chunk(None, "stop")]
    chunks.append(
        {"id": "c-1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 5}}
    )
    for number, made in enumerate(chunks):
        text = json.dumps(made, ensure_ascii=False, indent=indent)
        lines = [f"data: {line}" for line in text.splitlines()]
        if number == 2:
            lines = ["event: message", f"id: {number}", ": inside", *lines]
        events.append(newline.join(lines))
    events.append("data: [DONE]")
    raw = (newline * 2).join(events) + newline * 2
    return (raw if last_blank else raw.rstrip()).encode()


FORMS = [
    pytest.param(transcript("\n"), id="lf"),
    pytest.param(transcript("\r\n"), id="crlf"),
    pytest.param(transcript("\n", indent=1), id="many data lines"),
    pytest.param(transcript("\r\n", indent=1), id="many data lines, crlf"),
    pytest.param(transcript("\n", last_blank=False), id="no blank line at the end"),
    pytest.param(b"\xef\xbb\xbf" + transcript("\n"), id="byte order mark"),
]


@pytest.mark.parametrize("raw", FORMS)
async def test_events_are_the_same_however_they_are_cut(raw: bytes) -> None:
    expected = [payload(event) async for event in events(Arriving([raw]))]  # type: ignore[arg-type]
    assert expected[-1] == b"[DONE]" and len(expected) == len(WORDS) + 5
    for seed in range(25):
        found = [payload(event) async for event in events(cut(raw, seed))]  # type: ignore[arg-type]
        assert found == expected


@pytest.mark.parametrize("raw", FORMS)
async def test_the_teachers_stream_keeps_its_words_however_it_is_cut(raw: bytes) -> None:
    for seed in range(25):
        stream = await TeacherStream.begin(
            cut(raw, seed),  # type: ignore[arg-type]
            choices=1,
            hide_usage=False,
        )
        out = b"".join([part async for part in stream.body()]) + stream.tail
        assert stream.text == "".join(WORDS)
        assert stream.usage is not None and stream.usage.completion == 5
        assert [payload(e) async for e in events(Arriving([out]))] == [  # type: ignore[arg-type]
            payload(e)
            async for e in events(Arriving([raw]))  # type: ignore[arg-type]
        ]


@pytest.mark.parametrize("raw", FORMS)
async def test_what_passes_through_is_the_same_bytes_however_it_is_cut(raw: bytes) -> None:
    for seed in range(25):
        watched = await Watched.begin(cut(raw, seed))  # type: ignore[arg-type]
        assert b"".join([part async for part in watched.parts()]) == raw


@pytest.mark.parametrize("raw", FORMS)
async def test_no_stream_that_lacks_its_end_passes_for_a_whole_one(raw: bytes) -> None:
    end = raw.index(b'"stop"') + 6
    for length in (*range(0, end, 23), end - 6, end - 5, end):
        passed = b""
        with pytest.raises(GatewayError):
            watched = await Watched.begin(Arriving([raw[:length]]))  # type: ignore[arg-type]
            async for part in watched.parts():
                passed += part
        # the error event that follows must not be taken for the rest of a line
        assert passed == b"" or passed.endswith((b"\n\n", b"\n\r\n"))
        with pytest.raises(GatewayError):
            stream = await TeacherStream.begin(
                Arriving([raw[:length]]),  # type: ignore[arg-type]
                choices=1,
                hide_usage=False,
            )
            async for _ in stream.body():
                pass


#: no content, in all ways
EMPTY = [
    b"",
    b": keep-alive\n\n",
    b"data: [DONE]\n\n",
    b"data: nonsense\n\n",
    b'data: {"error": {"message": "overloaded"}}\n\n',
    b'data: {"choices": "none"}\n\n',
    b'data: {"choices": ["none"]}\n\n',
    b'data: {"choices": [{"delta": "none"}]}\n\n',
    b'data: {"choices": [{"index": [], "delta": {"content": "x"}}]}\n\n',
    b"data: " + json.dumps(chunk("")).encode() + b"\n\ndata: [DONE]\n\n",
]


@pytest.mark.parametrize("claimed", [True, False])
def test_a_stream_that_breaks_before_its_first_word_is_an_error_with_a_status(
    start: Start, teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = start()
    body = (BODY | {"stream": True}) if claimed else UNCLAIMED
    for raw in EMPTY:
        teacher.reply = Reply(raw=raw, content_type="text/event-stream")
        status, headers, data = gateway.send("POST", CHAT, body)
        assert status == 502
        assert headers["content-type"] == "application/json"
        assert json.loads(data)["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("claimed", [True, False])
def test_a_stream_that_breaks_after_its_first_word_ends_in_an_error_event(
    start: Start, teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = start(sections={"teacher": {"idle_timeout_s": 0.3}})
    body = (BODY | {"stream": True}) if claimed else UNCLAIMED
    first = b"data: " + json.dumps(chunk("one")).encode() + b"\n\n"
    for more in (b"", b"data: nonsense\n\n", b'data: {"id": "c-1", "cho'):
        for hangs in (False, True):
            if more.endswith(b"\n\n") and not claimed:
                continue
            raw = first + more
            teacher.reply = (
                Reply(raw_then_hang=raw)
                if hangs
                else Reply(raw=raw, content_type="text/event-stream")
            )
            status, _, data = gateway.send("POST", CHAT, body)
            assert status == 200 and b"one" in data and b"[DONE]" not in data
            *_, last, rest = data.split(b"\n\n")
            assert rest == b""
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] in (
                "upstream_broken",
                "upstream_timeout",
                "upstream_error",
            )


@pytest.mark.parametrize("claimed", [True, False])
def test_done_is_the_end_though_the_connection_stays_open(
    start: Start, teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = start(sections={"teacher": {"timeout_s": 30.0}})
    teacher.reply = Reply(raw_then_hang=transcript("\n"))
    body = (BODY | {"stream": True}) if claimed else UNCLAIMED
    _, _, data = gateway.send("POST", CHAT, body)
    assert data.endswith(b"data: [DONE]\n\n") and "小包".encode() in data
    teacher.wait_for(lambda server: server.disconnects == 1)


def test_connections_are_used_again_after_a_stream(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = "one two three"
    for number in range(4):
        for body in (BODY | {"stream": True}, UNCLAIMED):
            assert b"[DONE]" in gateway.send("POST", CHAT, body | {"user": str(number)})[2]
    assert len(teacher.connections) == 1


def test_an_answer_cut_in_the_middle_is_an_error_with_a_status(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    teacher.reply = Reply(text="parcel", cut_after=40)
    for body in (BODY, UNCLAIMED | {"stream": False}):
        status, _, data = gateway.send("POST", CHAT, body)
        assert (status, json.loads(data)["error"]["code"]) == (502, "upstream_broken")


def test_an_answer_without_a_done_is_whole_if_it_says_why_it_ended(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    raw = b"".join(
        b"data: " + json.dumps(made).encode() + b"\n\n"
        for made in (chunk("parcel"), chunk(None, "stop"))
    )
    teacher.reply = Reply(raw=raw, content_type="text/event-stream")
    assert gateway.send("POST", CHAT, UNCLAIMED)[2] == raw
    assert gateway.send("POST", CHAT, BODY | {"stream": True})[2].endswith(b"[DONE]\n\n")


def test_a_client_that_leaves_a_stream_it_passes_through_stops_it_before_the_first_word(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    role = b"data: " + json.dumps(chunk("")).encode() + b"\n\n"
    teacher.reply = Reply(raw_then_hang=role)
    data = json.dumps(UNCLAIMED).encode()
    with gateway.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        teacher.wait_for(lambda server: server.in_flight == 1)
    wait_until(lambda: teacher.disconnects == 1)


async def test_an_event_without_an_end_is_not_collected_for_ever() -> None:
    endless = Arriving([b"data: " + b"x" * 3_000_000] * 10)
    with pytest.raises(GatewayError):
        async for _ in events(endless):  # type: ignore[arg-type]
            pass
    assert await endless.readany() != b""
