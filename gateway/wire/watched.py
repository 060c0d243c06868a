"""A chat completion that passes through byte for byte, and is yet not let end as if it were whole.

What has not begun can still become another teacher's answer. What breaks off later must be told as
an error: an application takes the end of its stream for the end of the answer.
"""

import re
from collections.abc import AsyncIterator

import aiohttp

from gateway.errors import UpstreamError
from gateway.wire.protocol import Body, json_object
from gateway.wire.streaming import (
    LONGEST_EVENT,
    drain,
    is_done,
    parse_chunk,
    payload,
    says_something,
    whole_events,
)

#: paths (after /v1) whose answers are watched; another teacher may give them
CHAT = frozenset({"/chat/completions", "/completions"})
#: the end of an answer, its usage included, is in the last bytes
_TAIL = 16_384
_DONE = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')


class Watched:
    """``begin`` returns when a stream has content, or an answer that is no stream is whole."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._held = b""
        self._is_stream = response.content_type == "text/event-stream"

    @classmethod
    async def begin(cls, response: aiohttp.ClientResponse) -> "Watched":
        """Raises UpstreamError, UpstreamRefused."""
        watched = cls(response)
        if response.status >= 400:
            return watched
        if not watched._is_stream:
            watched._held = await response.read()
        elif "content-encoding" in response.headers:
            # it was not asked for, and cannot be read here
            watched._is_stream = False
        else:
            await watched._peek()
        return watched

    async def _peek(self) -> None:
        seen = 0
        while part := await self._response.content.readany():
            self._held += part
            for raw in whole_events(self._held[seen:]):
                seen += len(raw)
                data = payload(raw)
                if is_done(raw):
                    raise _nothing()
                if data is not None and _begins(parse_chunk(data, "teacher")):
                    return
        raise _nothing()

    async def parts(self) -> AsyncIterator[bytes]:
        """All of it, a stream in whole events. Raises UpstreamError where a stream breaks off."""
        if not self._is_stream:
            if self._held:
                yield self._held
            async for part in self._response.content.iter_any():
                yield part
            return
        rest, tail = self._held, b""
        while True:
            cut = sum(map(len, whole_events(rest)))
            if cut:
                tail = (tail + rest[:cut])[-_TAIL:]
                yield rest[:cut]
                rest = rest[cut:]
                if tail.endswith(_DONE):
                    break
            part = await self._response.content.readany()
            if not part:
                break
            rest += part
            if len(rest) > LONGEST_EVENT:
                raise UpstreamError("The stream has an event without an end.")
        if tail.endswith(_DONE):
            await drain(self._response.content.iter_any())
            return
        last = rest if _whole(rest) else b""
        if not (_FINISHED.search(tail + last) or is_done(last) or _tells_of_error(tail)):
            raise UpstreamError("The teacher's stream broke off.", code="upstream_broken")
        if last:
            yield last


def _begins(chunk: Body) -> bool:
    return any(
        choice.get("finish_reason") is not None or says_something(choice)
        for choice in chunk.get("choices") or ()
    )


def _whole(raw: bytes) -> bool:
    """Whether it is an event, though no blank line follows."""
    return is_done(raw) or json_object(payload(raw) or b"") is not None


def _tells_of_error(tail: bytes) -> bool:
    """Whether the last event does: then the application knows."""
    found = whole_events(tail)
    body = json_object(payload(found[-1]) or b"") if found else None
    return body is not None and bool(body.get("error"))


def _nothing() -> UpstreamError:
    return UpstreamError("The teacher's stream ended before it began.", code="upstream_broken")
