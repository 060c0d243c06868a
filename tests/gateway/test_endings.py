"""A stream that is passed through unread and stops too early is not taken for a whole one."""

import http.client
import json
import zlib

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from triage import Start

from gateway.errors import UpstreamError
from gateway.wire.ending import Ending

UNCLAIMED = {"model": "gpt-large", "messages": [{"role": "user", "content": "hello"}]}
CHUNK = b'data: {"choices":[{"delta":{"content":"one"},"finish_reason":null}]}\n\n'
#: the beginning of a stream of each endpoint, and its last event
STREAMS = {
    "/v1/responses": (
        b'event: response.created\ndata: {"type":"response.created"}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
    ),
    "/v1/messages": (
        b'event: message_start\ndata: {"type":"message_start"}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ),
}


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_of_no_task_that_stops_too_early_ends_in_an_error(
    start: Start, teacher: FakeOpenAI, path: str
) -> None:
    gateway = start(sections={"teacher": {"apis": ["responses", "messages"]}})
    begins, ends = STREAMS[path]
    body = UNCLAIMED | {"stream": True, "max_tokens": 16}
    for cut_at in (len(begins), len(begins) - 5):
        teacher.reply = Reply(pieces=[begins[:cut_at]])
        _, _, data = gateway.send("POST", path, body)
        assert data.startswith(begins[:cut_at])
        # an event of its own, also after half a one
        *_, last = data.decode().removesuffix("\n\n").split("\n\n")
        error = json.loads(last.rpartition("data: ")[2])["error"]
        assert "broke off" in error["message"]
    teacher.reply = Reply(pieces=[begins, ends])
    assert gateway.send("POST", path, body)[2] == begins + ends


def test_the_official_client_is_told_that_a_stream_of_no_task_broke_off(
    start: Start, teacher: FakeOpenAI
) -> None:
    teacher.reply = Reply(pieces=[CHUNK])
    with pytest.raises(openai.APIError, match="broke off"):
        list(start().client().chat.completions.create(**UNCLAIMED, stream=True))


def test_an_error_event_follows_also_where_the_length_was_announced(
    start: Start, teacher: FakeOpenAI
) -> None:
    begins = CHUNK
    teacher.reply = Reply(raw=begins, content_type="text/event-stream")
    body = UNCLAIMED | {"stream": True}
    _, _, data = start().send("POST", "/v1/chat/completions", body)
    assert data.startswith(begins)
    assert b"upstream_broken" in data


def test_an_error_event_of_the_upstream_is_end_enough(start: Start, teacher: FakeOpenAI) -> None:
    raw = b'data: {"type": "error", "message": "overloaded"}\n\n'
    teacher.reply = Reply(pieces=[raw])
    body = UNCLAIMED | {"stream": True}
    assert start().send("POST", "/v1/responses", body)[2] == raw


def test_what_looks_like_an_end_inside_the_text_is_none() -> None:
    text = '"type":"response.completed" \n"type": "error"'
    chunk = {"type": "response.output_text.delta", "delta": text}
    raw = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    for cut_at in range(len(raw)):
        ending = Ending("/v1/responses")
        ending.watch(raw[:cut_at])
        ending.watch(raw[cut_at:])
        with pytest.raises(UpstreamError):
            ending.check()


@pytest.mark.parametrize("last", [end for _, end in STREAMS.values()])
def test_an_end_is_seen_wherever_it_is_cut(last: bytes) -> None:
    (path,) = [path for path, (_, end) in STREAMS.items() if end == last]
    for cut_at in range(len(last)):
        ending = Ending(path)
        for part in (b"data: x\n\n", last[:cut_at], last[cut_at:]):
            ending.watch(part)
        ending.check()


def test_streams_are_asked_for_uncompressed(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    packed = zlib.compress(b"{}")
    teacher.reply = Reply(raw=packed, headers={"content-encoding": "deflate"})
    accepted = {"accept-encoding": "deflate"}
    for body, asked in ((UNCLAIMED, "deflate"), (UNCLAIMED | {"stream": True}, "identity")):
        _, _, data = gateway.send("POST", "/v1/chat/completions", body, accepted)
        assert data == packed
        assert teacher.requests[-1].headers["accept-encoding"] == asked


def test_a_compressed_stream_that_breaks_off_is_cut(start: Start, teacher: FakeOpenAI) -> None:
    """Nothing that can be read could follow it."""
    packed = zlib.compress(CHUNK)
    headers = {"content-encoding": "deflate"}
    teacher.reply = Reply(pieces=[packed, b""], cut_after=1, headers=headers)
    connection = http.client.HTTPConnection("127.0.0.1", start().port, timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps(UNCLAIMED | {"stream": True}))
    with pytest.raises(http.client.IncompleteRead) as caught:
        connection.getresponse().read()
    assert caught.value.partial == packed
    connection.close()
