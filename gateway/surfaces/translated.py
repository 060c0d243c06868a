"""Chat completions in another API's words: a request asked as one, its answer translated back.

The answer is made by the same code as every chat completion. It writes to a `Sink` of its own,
whose bytes end here, are read event by event, and leave as what the other API would have said.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal, Protocol

import orjson
from starlette.types import Message

from gateway.config import Task
from gateway.errors import InvalidRequest, UpstreamError, UpstreamRefused
from gateway.parts import Parts
from gateway.surfaces.passthrough import Broken
from gateway.upstreams.refusals import envelope
from gateway.wire.protocol import EVENTS, JSON, Body, Headers, Incoming, Sink, read_chat
from gateway.wire.streaming import EVENT_END, parse_chunk, payload

Api = Literal["responses", "messages"]
#: what answers a chat completion
Ask = Callable[[Parts, Incoming, Sink], Awaitable[None]]

#: about the bytes of the chat completion, or set anew
_BYTES = frozenset({b"content-type", b"content-length", b"x-request-id", *(k for k, _ in EVENTS)})
#: the key goes on as `authorization`; what comes back must be readable here
_NOT_SENT = frozenset({"x-api-key", "accept-encoding", "content-type"})


class Inexpressible(InvalidRequest):
    """A chat completion cannot say this part of the request."""

    def __init__(self, param: str, why: str = "has no counterpart in chat completions") -> None:
        super().__init__(
            f"'{param}' {why}: only a teacher with this API could answer (teacher.apis).",
            param=param,
            code="unsupported_parameter",
        )


class Speech(Protocol):
    """One answer in the other API's words, told chunk by chunk."""

    @property
    def body(self) -> Body:
        """The whole answer, once `end` was called."""

    def chunk(self, chunk: Body) -> bytes:
        """The events a chunk of a chat completion becomes. Raises UpstreamError."""

    def end(self) -> bytes:
        """The last events. Raises UpstreamError where the answer is not complete."""


class Translated:
    """Takes the ASGI messages of a chat completion's answer, and writes the translation to
    ``sink``. ``keep`` is awaited with the whole answer before its last byte leaves."""

    def __init__(self, sink: Sink, speech: Speech, keep: Callable[[Body], Awaitable[None]]) -> None:
        self._sink = sink
        self._speech = speech
        self._keep = keep
        self._status = 0
        self._headers: Headers = []
        self._streams = False
        self._rest = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            self._status = message["status"]
            self._streams = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            self._headers = [pair for pair in headers if pair[0] not in _BYTES]
            return
        self._rest += message.get("body", b"")
        ended = not message.get("more_body", False)
        if self._streams and self._status < 400:
            await self._tell(ended)
        elif ended:
            await self._tell_whole()

    async def _tell(self, ended: bool) -> None:
        *events, self._rest = EVENT_END.split(self._rest)
        if ended:
            events.append(self._rest)
        told = b"".join(self._translate(event) for event in events)
        if ended:
            told += self._speech.end()
            await self._keep(self._speech.body)
        if told and not self._sink.started:
            await self._sink.start(200, [*EVENTS, *self._headers])
        if ended:
            await self._sink.end(told)
        elif told:
            await self._sink.write(told)

    def _translate(self, event: bytes) -> bytes:
        data = payload(event)
        if data is None or data == b"[DONE]":
            return b""
        return self._read(parse_chunk(data, "teacher"))

    async def _tell_whole(self) -> None:
        if self._status >= 400:
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in self._headers}
            said = envelope(self._rest, self._status)
            await self._sink.fail(UpstreamRefused(said, status=self._status, headers=headers))
            return
        self._read(as_chunk(parse_chunk(self._rest, "teacher")))
        self._speech.end()
        body = self._speech.body
        await self._keep(body)
        await self._sink.whole(200, orjson.dumps(body), [JSON, *self._headers])

    def _read(self, chunk: Body) -> bytes:
        try:
            return self._speech.chunk(chunk)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise UpstreamError("The answer is no chat completion.") from None


def as_chunk(completion: Body) -> Body:
    """A whole answer as the one chunk of a stream. Raises UpstreamError."""
    try:
        choice = completion["choices"][0]
        message = dict(choice["message"])
        calls = message.get("tool_calls") or ()
        message["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]
    except (KeyError, IndexError, TypeError, ValueError):
        raise UpstreamError("The answer is no chat completion.") from None
    return completion | {"choices": [{**choice, "delta": message}]}


def sse(kind: str, data: Body) -> bytes:
    """A named event; ``data`` says its type too, as both other APIs want it."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **data}) + b"\n\n"


async def ask_chat(
    ask: Ask,
    parts: Parts,
    incoming: Incoming,
    body: Body,
    sink: Sink,
    speech: Speech,
    keep: Callable[[Body], Awaitable[None]],
) -> None:
    """Answer ``incoming`` by the chat completion ``body``, which it becomes. Raises
    GatewayError."""
    headers = {
        name: value
        for name, value in incoming.headers.items()
        if name not in _NOT_SENT and not name.startswith("anthropic-")
    }
    incoming.headers = headers | {"content-type": "application/json"}
    incoming.path, incoming.query, incoming.raw = "/v1/chat/completions", "", _dumped(body)
    try:
        await ask(parts, incoming, Sink(Translated(sink, speech, keep), incoming.id))
    except Broken:
        raise UpstreamError("The answer broke off.", code="upstream_broken") from None


def _dumped(body: Body) -> bytes:
    """Raises InvalidRequest for what is nested deeper than can be written, here or, a few levels
    further in, in the answer that repeats it."""
    try:
        return orjson.dumps([[[body]]])[3:-3]
    except orjson.JSONEncodeError:
        raise InvalidRequest("The request body is nested too deeply.") from None


def served_natively(parts: Parts, api: Api) -> bool:
    """The teacher has this API itself."""
    return api in parts.config.teacher.apis


def claiming(
    parts: Parts, incoming: Incoming, model: object, system: list[str], metadata: object
) -> Task | None:
    """The task that would claim a request with this model, system prompt and metadata, before
    anything else of it is read. Raises InvalidRequest as `Claims.find` does."""
    if not parts.lanes or not isinstance(model, str) or not model:
        return None
    messages = [{"role": "system", "content": text} for text in system]
    messages.append({"role": "user", "content": ""})
    labels = metadata.items() if isinstance(metadata, dict) else ()
    told = {name: value for name, value in labels if isinstance(value, str)}
    glance = orjson.dumps({"model": model, "messages": messages, "metadata": told})
    return parts.claims.find(read_chat(replace(incoming, raw=glance)), incoming.headers)
