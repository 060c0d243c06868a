"""Server-sent events, and the teacher's stream: relayed as bytes, its text kept for the row."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import aiohttp

from gateway.errors import UpstreamError, UpstreamRefused
from gateway.money.pricing import Usage, read_usage
from gateway.upstreams.refusals import envelope, passed_on
from gateway.wire.protocol import DONE, event, json_object

#: an event larger than this has no end
LONGEST_EVENT = 16_000_000
#: after [DONE] the connection's end comes with it, or is not waited for
LINGER_S = 0.05
#: usage comes right after the answer, or is not waited for
USAGE_S = 5.0

EVENT_END = re.compile(rb"\n\r?\n")
_BOM = b"\xef\xbb\xbf"


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The events of a stream, each as the bytes it came in, with the blank line that ends it. The
    last is [DONE], whether the connection is closed then or not. Raises UpstreamError."""
    parts = response.content.iter_any()
    rest, seek = b"", 0
    async for part in parts:
        rest += part
        start = 0
        while match := EVENT_END.search(rest, seek):
            raw = rest[start : match.end()]
            yield raw
            if is_done(raw):
                await drain(parts)
                return
            start = seek = match.end()
        rest = rest[start:]
        # a blank line may have come in part
        seek = max(0, len(rest) - 3)
        if len(rest) > LONGEST_EVENT:
            raise UpstreamError("The stream has an event without an end.", code="upstream_broken")
    if rest.strip():
        yield rest + b"\n\n"


def whole_events(data: bytes) -> list[bytes]:
    """The events that are complete in these bytes, from the first on."""
    ends = [0, *(match.end() for match in EVENT_END.finditer(data))]
    return [data[start:end] for start, end in pairwise(ends)]


async def drain(parts: AsyncIterator[bytes]) -> None:
    """Take the end of the connection's answer if it is there, so that it can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(LINGER_S):
            async for _ in parts:
                pass


def payload(raw: bytes) -> bytes | None:
    """What an event's ``data`` lines hold; None for a comment (kept-alive connections)."""
    lines = raw.removeprefix(_BOM).splitlines()
    data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    return b"\n".join(data) if data else None


def event_data(data: bytes) -> Iterator[bytes]:
    """The data of each server-sent event, whatever its line ends."""
    for block in data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        lines = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def is_done(raw: bytes) -> bool:
    return b"[DONE]" in raw and payload(raw) == b"[DONE]"


def parse_chunk(data: bytes, who: str) -> dict[str, Any]:
    """A chunk of a stream. Raises UpstreamError where it is none, UpstreamRefused where it tells
    of an error."""
    chunk = json_object(data)
    if chunk is None:
        raise UpstreamError(f"The {who}'s stream is not made of JSON objects.")
    if chunk.get("error"):
        raise UpstreamRefused(envelope(data, 502), status=502, headers={})
    choices = chunk.get("choices") or []
    if not (isinstance(choices, list) and all(map(_readable, choices))):
        raise UpstreamError(f"The {who}'s stream has choices that cannot be read.")
    return chunk


def _readable(choice: Any) -> bool:
    return (
        isinstance(choice, dict)
        and isinstance(choice.get("index", 0), int)
        and isinstance(choice.get("delta") or {}, dict)
    )


def check_streams(response: aiohttp.ClientResponse, who: str) -> None:
    if response.content_type != "text/event-stream":
        raise UpstreamError(f"The {who} was asked for a stream and sent {response.content_type}.")


class TeacherStream:
    """The teacher's answer as it comes.

    ``begin`` returns with the first content: until then nothing was shown to the client, and a
    failure can still become another answer. ``body()`` gives what may be passed on at once;
    ``tail`` is the end of the answer, to be released when its row is durable. Usage that only the
    gateway asked for is taken out.
    """

    def __init__(self, response: aiohttp.ClientResponse, *, choices: int, hide_usage: bool) -> None:
        self.headers = passed_on(response)
        self.id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.tail = b""
        self._events = events(response)
        self._held: list[bytes] = []
        self._text: list[str] = []
        self._choices = choices
        self._hide_usage = hide_usage
        self._begun = False
        self._finished: set[int] = set()

    @classmethod
    async def begin(
        cls, response: aiohttp.ClientResponse, *, choices: int, hide_usage: bool
    ) -> "TeacherStream":
        check_streams(response, "teacher")
        stream = cls(response, choices=choices, hide_usage=hide_usage)
        async for raw in stream._events:
            stream._held.append(stream._take(raw))
            if stream._begun:
                return stream
        raise UpstreamError("The teacher's stream ended before it began.", code="upstream_broken")

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def complete(self) -> bool:
        """Every choice has its finish reason; what may follow is usage."""
        return len(self._finished) >= self._choices

    async def body(self) -> AsyncIterator[bytes]:
        """Raises UpstreamError where the stream stops before the answer is complete."""
        if not self.complete:
            yield b"".join(self._held)
            self._held.clear()
            async for raw in self._events:
                out = self._take(raw)
                if self.complete:
                    self._held.append(out)
                    break
                if out:
                    yield out
        if not self.complete:
            raise UpstreamError("The teacher's stream broke off.", code="upstream_broken")
        # a complete answer is an answer, whatever becomes of the stream after it
        with suppress(aiohttp.ClientError, TimeoutError, UpstreamError, UpstreamRefused):
            async with asyncio.timeout(USAGE_S):
                async for raw in self._events:
                    self._held.append(self._take(raw))
        self.tail = b"".join(self._held) + DONE

    def _take(self, raw: bytes) -> bytes:
        """Note what an event says; give what the client shall see of it."""
        data = payload(raw)
        if data is None:
            return raw
        if data == b"[DONE]":
            return b""
        chunk = parse_chunk(data, "teacher")
        choices = chunk.get("choices") or []
        for choice in choices:
            self._read(choice)
        if self.id is None:
            self.id = chunk.get("id")
        if chunk.get("model"):
            self.model = chunk["model"]
        if "usage" not in chunk:
            return raw
        usage = chunk.pop("usage")
        if usage is not None:
            self.usage = read_usage(usage, chunk.get("service_tier"))
        if not self._hide_usage:
            return raw
        return event(chunk) if choices else b""

    def _read(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        delta = choice.get("delta") or {}
        if index == 0 and isinstance(delta.get("content"), str):
            self._text.append(delta["content"])
        if choice.get("finish_reason") is not None:
            self._finished.add(index)
            if index == 0:
                self.finish_reason = choice["finish_reason"]
        if self._finished or says_something(choice):
            self._begun = True


def says_something(choice: dict[str, Any]) -> bool:
    """Whether there is content in a choice of a chunk: text, a tool call, reasoning, …"""
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(v for name, v in delta.items() if name != "role")
