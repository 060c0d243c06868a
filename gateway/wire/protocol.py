"""The wire: the few request fields Retort reads, response writing, the error envelope.

The body of a request stays a dict and is forwarded whole; unknown fields are nobody's business
here.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gateway.access.keys import ANYBODY, Caller
from gateway.errors import BodyTooLarge, GatewayError, InvalidRequest
from gateway.prompt import SYSTEM_ROLES
from router.decision import Route

Body = dict[str, Any]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # or nginx would collect the events
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"
_LIMITS = b"x-ratelimit-"
#: about the connection, not about the message; never passed on
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(slots=True, kw_only=True)
class Incoming:
    """One HTTP request as it arrived. ``headers`` have lower-case names; ``waited_s`` adds up the
    time spent on student and teacher."""

    id: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    caller: Caller = ANYBODY
    raw: bytes = b""
    arrived: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    #: tokens the caller's limit was charged at admission; None: it has none
    tokens_held: int | None = None
    #: tokens it really took; None while, or where, they are unknown
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """The fields of a chat completion request that Retort reads."""

    body: Body
    model: str
    messages: Sequence[Mapping[str, Any]]
    stream: bool
    #: the client wants the usage chunk at the end of its stream
    usage: bool
    #: how many alternatives per token the client wants; None: no log-probabilities
    top_logprobs: int | None
    forced: Route | None
    #: the text of this exchange may be kept
    keep: bool
    #: it may be learnt from; None: the client does not say
    consent: bool | None
    caller: Caller


class Gone(Exception):
    """The client went away before its request was complete."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge, without reading on, and Gone."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {limit} bytes (server.max_body_bytes).")


def read_chat(incoming: Incoming) -> Chat:
    """Parse a chat completion request. Raises InvalidRequest naming the parameter, Forbidden."""
    body = read_json(incoming.raw)
    model, messages = body.get("model"), body.get("messages")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("'model' must be a non-empty string.", param="model")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a non-empty array.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"'messages[{index}]' must be an object with a 'role'.",
                param=f"messages[{index}]",
            )
    stream = _typed(body, "stream", bool, "a boolean") or False
    options = _typed(body, "stream_options", dict, "an object") or {}
    wants = _typed(body, "logprobs", bool, "a boolean") or False
    top = _typed(body, "top_logprobs", int, "an integer") or 0
    return Chat(
        body=body,
        model=model,
        messages=messages,
        stream=stream,
        usage=options.get("include_usage") is True,
        top_logprobs=top if wants else None,
        forced=_forced(incoming),
        caller=incoming.caller,
        keep=body.get("store") is not False and "x-retort-no-store" not in incoming.headers,
        consent=_consent(incoming),
    )


def _consent(incoming: Incoming) -> bool | None:
    wish = incoming.headers.get("x-retort-train")
    if wish is None:
        return None
    if wish not in ("yes", "no"):
        raise InvalidRequest(
            f"Header x-retort-train must be yes or no, not {wish[:20]!r}.", param="x-retort-train"
        )
    return wish == "yes"


def read_json(raw: bytes) -> Body:
    """The JSON object a body holds. Raises InvalidRequest."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: {error.msg} at line {error.lineno} "
            f"column {error.colno}.",
            code="invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    return body


def json_object(data: bytes | bytearray) -> Body | None:
    """The JSON object these bytes are; None where they are something else."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _typed(body: Body, name: str, kind: type, what: str) -> Any:
    value = body.get(name)
    if value is None or (isinstance(value, kind) and not (kind is int and value is True)):
        return value
    raise InvalidRequest(f"'{name}' must be {what}.", param=name)


def _forced(incoming: Incoming) -> Route | None:
    value = incoming.headers.get("x-retort-route")
    if value is None:
        return None
    incoming.caller.require_route()
    try:
        return Route(value)
    except ValueError:
        raise InvalidRequest(
            "x-retort-route must be student or teacher.", param="x-retort-route"
        ) from None


#: a request that uses one of these needs more than a narrow text model
_BEYOND = ("tools", "functions", "audio", "web_search_options", "logit_bias")


def student_can(chat: Chat) -> bool:
    """Whether a narrow text model can take the request at all: one text answer to one user turn,
    without tools, other media, or biased tokens (their ids are the teacher's)."""
    body = chat.body
    if any(body.get(name) for name in _BEYOND) or body.get("n") not in (None, 1):
        return False
    if body.get("modalities") not in (None, ["text"]):
        return False
    if chat.messages[-1]["role"] != "user":
        return False
    return all(_plain_text(message) for message in chat.messages)


def _plain_text(message: Mapping[str, Any]) -> bool:
    role, content = message["role"], message.get("content")
    if role not in SYSTEM_ROLES and role not in ("user", "assistant"):
        return False
    if any(message.get(name) for name in ("tool_calls", "function_call", "audio")):
        return False
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str)


class Sink:
    """The response as it is written: one start, then parts. ``ended`` is set just before the last
    byte leaves, so that a client that has everything is never taken for one that left. ``more``
    are headers for whatever the answer turns out to be; ``copy`` gathers the body, where somebody
    set it to a list; ``error_body`` and ``error_event`` say an error, before and after the start,
    as the endpoint's API does."""

    __slots__ = (
        "_id",
        "_send",
        "copy",
        "ended",
        "error_body",
        "error_event",
        "first_byte_at",
        "more",
        "started",
        "status",
    )

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = request_id.encode()
        self.status = 0
        self.started = False
        self.ended = False
        self.first_byte_at: float | None = None
        self.more: Headers = []
        self.copy: list[bytes] | None = None
        self.error_body: Callable[[GatewayError], Body] = GatewayError.envelope
        self.error_event: Callable[[GatewayError], bytes] = error_event

    def wrap(self, around: Callable[[Send], Send]) -> None:
        """From now on messages go through ``around`` before they leave."""
        self._send = around(self._send)

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status = True, status
        if any(name.startswith(_LIMITS) for name, _ in self.more):
            # the caller's own limits, and not also those the upstream set for the gateway
            headers = [pair for pair in headers if not pair[0].startswith(_LIMITS)]
        headers += [(b"x-request-id", self._id), *self.more]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        if self.first_byte_at is None:
            self.first_byte_at = time.perf_counter()
        if self.copy is not None:
            self.copy.append(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        if self.first_byte_at is None:
            self.first_byte_at = time.perf_counter()
        if self.copy is not None:
            self.copy.append(data)
        self.ended = True
        await self._send({"type": "http.response.body", "body": data})

    async def whole(self, status: int, data: bytes, headers: Headers) -> None:
        headers.append((b"content-length", b"%d" % len(data)))
        await self.start(status, headers)
        await self.end(data)

    async def json(self, status: int, data: Any) -> None:
        await self.whole(status, orjson.dumps(data), [JSON])

    async def fail(self, error: GatewayError) -> None:
        """The error in its envelope: as a response, or inside a stream that has begun."""
        if self.started:
            await self.end(self.error_event(error))
            return
        headers: Headers = [JSON]
        if error.retry is not None:
            headers.append((b"x-should-retry", b"true" if error.retry else b"false"))
        headers += encode_headers(error.headers.items())
        if error.status == 413:
            # the rest of the body is not going to be read
            headers.append((b"connection", b"close"))
        await self.whole(error.status, orjson.dumps(self.error_body(error)), headers)


def error_event(error: GatewayError) -> bytes:
    return b"data: " + orjson.dumps(error.envelope()) + b"\n\n"


def event(data: Any) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def encode_headers(pairs: Iterable[tuple[str, str]]) -> Headers:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def number(value: float) -> bytes:
    """A header value for a small number: no exponent, no trailing zeros."""
    digits = 9 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 12)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).encode()
