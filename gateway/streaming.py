"""Server-sent events, and the teacher's stream: relayed as bytes, its text kept for the row."""

import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson

from gateway.errors import UpstreamError, UpstreamRefused
from gateway.pricing import Usage, read_usage
from gateway.protocol import DONE, event
from gateway.refusals import envelope, passed_on

_END = re.compile(rb"\r?\n\r?\n")


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The events of a stream, each as the bytes it came in, with the blank line that ends it."""
    rest = b""
    async for part in response.content.iter_any():
        rest += part
        start = 0
        for match in _END.finditer(rest):
            yield rest[start : match.end()]
            start = match.end()
        rest = rest[start:]
    if rest.strip():
        yield rest + b"\n\n"


def payload(raw: bytes) -> bytes | None:
    """What an event's ``data`` lines hold; None for a comment (kept-alive connections)."""
    lines = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def parse_chunk(data: bytes, who: str) -> dict[str, Any]:
    """A chunk of a stream. Raises UpstreamError where it is none, UpstreamRefused where it tells
    of an error."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        chunk = None
    if not isinstance(chunk, dict):
        raise UpstreamError(f"The {who}'s stream is not made of JSON objects.")
    if chunk.get("error"):
        raise UpstreamRefused(envelope(data, 502), status=502, headers={})
    return chunk


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
        try:
            async for raw in self._events:
                out = self._take(raw)
                if self.complete:
                    self._held.append(out)
                elif out:
                    yield out
        except (aiohttp.ClientError, TimeoutError):
            # a complete answer is an answer, even if the connection is cut before its [DONE]
            if not self.complete:
                raise
        if not self.complete:
            raise UpstreamError("The teacher's stream broke off.", code="upstream_broken")
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
        if self._finished or any(value for name, value in delta.items() if name != "role"):
            self._begun = True
