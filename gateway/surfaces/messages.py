"""Anthropic's Messages API: asked as chat completions, answered in its own words and errors."""

import math
import secrets
from functools import partial
from typing import Any

import orjson

from gateway.errors import GatewayError
from gateway.parts import Parts
from gateway.prompt import content_text
from gateway.surfaces.messages_request import read_request, system_texts
from gateway.surfaces.messages_stream import MessageSpeech
from gateway.surfaces.passthrough import pass_through
from gateway.surfaces.translated import Ask, Inexpressible, ask_chat, claiming, served_natively, sse
from gateway.wire.protocol import JSON, Body, Incoming, Sink, read_json

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
#: where tokens are guessed: bytes of text for one, and what an image takes at most
_BYTES_PER_TOKEN = 4
_IMAGE_TOKENS = 1600


def as_anthropic(incoming: Incoming, sink: Sink) -> None:
    """The key may stand in `x-api-key`; errors and the request's id look like Anthropic's."""
    key = incoming.headers.get("x-api-key")
    if key is not None and "authorization" not in incoming.headers:
        incoming.headers = {**incoming.headers, "authorization": f"Bearer {key}"}
    sink.more.append((b"request-id", incoming.id.encode()))
    sink.error_body = partial(error_body, incoming.id)
    sink.error_event = partial(error_event, incoming.id)


def error_body(request_id: str, error: GatewayError) -> Body:
    kind = _ERRORS.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    said = {"type": kind, "message": error.message}
    return {"type": "error", "error": said, "request_id": request_id}


def error_event(request_id: str, error: GatewayError) -> bytes:
    return sse("error", error_body(request_id, error))


async def create_message(ask: Ask, parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """POST /v1/messages, with whatever answers chat completions. Raises GatewayError."""
    body = read_json(incoming.raw)
    native = served_natively(parts, "messages")
    task = claiming(parts, incoming, body.get("model"), system_texts(body), None)
    if native and task is None:
        await pass_through(parts, incoming, sink, stream=body.get("stream") is True)
        return
    try:
        chat = read_request(body)
    except Inexpressible:
        if not native:
            raise
        await pass_through(parts, incoming, sink, stream=body.get("stream") is True)
        return
    speech = MessageSpeech(f"msg_{secrets.token_hex(12)}", chat["model"], chat.get("stop", ()))
    await ask_chat(ask, parts, incoming, chat, sink, speech, _keep_nothing)


async def count_tokens(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """The teacher's count where it serves this API; else a guess, marked as one."""
    if served_natively(parts, "messages"):
        await pass_through(parts, incoming, sink)
        return
    chat = read_request({"max_tokens": 1, **read_json(incoming.raw)})
    data = orjson.dumps({"input_tokens": guess_tokens(chat)})
    await sink.whole(200, data, [JSON, (b"x-retort-estimated", b"true")])


def guess_tokens(chat: Body) -> int:
    """About how many tokens a model sees: text, tool calls and tools by their length."""
    size = len(orjson.dumps(chat.get("tools") or []))
    images = 0
    for message in chat["messages"]:
        content = message["content"]
        # a role and its delimiters take about as much as this
        size += 4 * _BYTES_PER_TOKEN + len(content_text(content).encode())
        size += len(orjson.dumps(message.get("tool_calls") or []))
        if isinstance(content, list):
            images += sum(part["type"] == "image_url" for part in content)
    return math.ceil(size / _BYTES_PER_TOKEN) + images * _IMAGE_TOKENS


async def _keep_nothing(message: Any) -> None:
    """A message is kept as its exchange, and has no id to be asked for again."""
