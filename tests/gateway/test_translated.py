"""A chat completion's bytes, however they are cut, become the same translated answer."""

import json
from typing import Any

import pytest

from gateway.errors import GatewayError, UpstreamError
from gateway.surfaces.messages_stream import MessageSpeech
from gateway.surfaces.responses_stream import ResponseSpeech
from gateway.surfaces.translated import Speech, Translated
from gateway.wire.protocol import Body, Sink


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    body = {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return json.dumps(body, ensure_ascii=False).encode()


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"ü":1}'}}
ODD = b"\r\n\r\n".join(
    [
        b": a comment",
        b"event: message\r\ndata: "
        + chunk({"role": "assistant", "content": "gr\u00fc\u00df \u2603"}),
        # one event on two data lines
        b'data: {"model": "m", "choices": [\r\ndata: {"index": 0, "delta": {"content": "!"}}]}',
        b"retry: 10",
        b"data:" + chunk({"tool_calls": [CALL | {"index": 0}]}),
        b"data: " + chunk({}, "tool_calls") + b"\n\n",
        b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}',
        b"data: [DONE]\n\n",
    ]
)


def response() -> Speech:
    return ResponseSpeech({"id": "resp_1", "model": "", "output": [], "usage": None})


def message() -> Speech:
    return MessageSpeech("msg_1", "", ())


async def translate(parts: list[bytes], speech: Speech) -> tuple[bytes, list[Body]]:
    """What leaves, and what was kept."""
    written: list[bytes] = []
    kept: list[Body] = []

    async def send(sent: Any) -> None:
        written.append(sent.get("body", b""))

    async def keep(body: Body) -> None:
        # before the last byte left
        assert not sink.ended
        kept.append(body)

    sink = Sink(send, "req-1")
    inner = Sink(Translated(sink, speech, keep), "req-1")
    await inner.start(200, [(b"content-type", b"text/event-stream")])
    for part in parts:
        await inner.write(part)
    await inner.end()
    assert sink.ended
    return b"".join(written), kept


def timeless(raw: bytes) -> bytes:
    """Without the only thing two runs differ in."""
    head, _, tail = raw.partition(b'"completed_at":')
    return head + tail.partition(b",")[2].partition(b"}")[2]


@pytest.mark.parametrize("make", [response, message])
async def test_a_stream_cut_anywhere_is_translated_the_same(make: Any) -> None:
    whole, kept = await translate([ODD], make())
    assert "grüß ☃".encode() in whole and kept
    for cut in range(1, len(ODD)):
        cut_up, _ = await translate([ODD[:cut], ODD[cut:]], make())
        assert timeless(cut_up) == timeless(whole), cut
    drops, _ = await translate([ODD[i : i + 1] for i in range(len(ODD))], make())
    assert timeless(drops) == timeless(whole)


@pytest.mark.parametrize("make", [response, message])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"data: [DONE]\n\n",
        b"data: " + chunk({"content": "half"}) + b"\n\ndata: [DONE]\n\n",
        b"data: nonsense\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [7]}\n\n',
        b'data: {"choices": [{"delta": {"content": 7}, "finish_reason": "stop"}]}\n\n',
        b'data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}\n\n',
        b'data: {"error": {"message": "overloaded"}}\n\n',
    ],
)
async def test_an_answer_that_is_none_never_ends_cleanly(make: Any, raw: bytes) -> None:
    with pytest.raises(GatewayError):
        await translate([raw], make())


async def test_tool_calls_that_a_message_cannot_hold_are_an_error() -> None:
    def piece(index: int, **more: Any) -> bytes:
        call = {"index": index, "function": {"name": "f", "arguments": "{"}, **more}
        return b"data: " + chunk({"tool_calls": [call]}) + b"\n\n"

    interleaved = [piece(0, id="a"), piece(1, id="b"), piece(0)]
    with pytest.raises(UpstreamError):
        await translate(interleaved, message())
    end = b"data: " + chunk({}, "tool_calls") + b"\n\n"
    with pytest.raises(UpstreamError, match="not a JSON object"):
        await translate([piece(0, id="a"), end], message())
    # what the token limit cut is no error
    end = b"data: " + chunk({}, "length") + b"\n\n"
    _, (kept,) = await translate([piece(0, id="a"), end], message())
    assert (kept["stop_reason"], kept["content"][0]["input"]) == ("max_tokens", {})
