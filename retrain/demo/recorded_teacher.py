"""An OpenAI-compatible teacher that answers from a table, so that the demo needs no key.

It behaves like a hosted model: it takes its time, streams token by token, counts usage, and
always answers the same request the same way. It never pretends: `system_fingerprint`, the header
`x-retort-recording` and the model's owner say that this is a recording, and a message that is not
in the table is an error, not an invention.
"""

import asyncio
import json
import math
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from aiohttp import web

from gateway.config import Price, StudentPrice
from gateway.errors import RetortError
from gateway.prompt import SYSTEM_ROLES, content_text

FINGERPRINT = "retort-recording"
MODEL = "recorded-teacher"
#: What a frontier model costs, and a small model behind one's own vLLM: dollars per million.
TEACHER_PRICE = Price(input_usd=2.50, output_usd=10.00)
STUDENT_PRICE = StudentPrice(input_usd=0.10, output_usd=0.30)

#: Latency of a hosted model for a short answer: lognormal, and the share until the first token.
MEDIAN_S, SIGMA, FIRST_SHARE = 0.7, 0.35, 0.6
#: Length of a token of English or JSON text in characters, the providers' own rule of thumb.
TOKEN_CHARS = 4
TOKEN = re.compile(r"\s?\w{1,4}|[^\w\s]{1,2}|\s")

Body = dict[str, Any]


def key_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Under which a conversation is recorded: everything in it but the system prompt."""
    turns = [
        f"{message.get('role')}\n{content_text(message.get('content'))}"
        for message in messages
        if message.get("role") not in SYSTEM_ROLES
    ]
    return "\n\n".join(turns)


def count_tokens(text: str) -> int:
    """About as many tokens as a provider would bill for ``text``."""
    return math.ceil(len(text) / TOKEN_CHARS)


class RecordedTeacher:
    """The server, on a loopback port and in a thread of its own; a context manager.

    ``answers`` maps `key_of(messages)` to the answer. ``pace`` scales the latency (0: at once).
    """

    def __init__(self, answers: Mapping[str, str], *, pace: float = 1.0) -> None:
        self._answers = answers
        self._pace = pace
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="recorded-teacher", daemon=True)
        self._port = 0
        self._failure: OSError | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "RecordedTeacher":
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise RetortError(f"the recorded teacher cannot start: {self._failure}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=20_000_000, middlewares=[_mark])
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/{path:.*}", _unknown)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        try:
            await site.start()
            self._port = runner.addresses[0][1]
        except OSError as error:
            self._failure = error
        self._ready.set()
        if self._failure is None:
            await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": FINGERPRINT}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        try:
            body: Body = await request.json()
            messages: list[Body] = body["messages"]
            answer = self._answers.get(key_of(messages))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _error(400, "The body must be a JSON object with 'messages'.", "invalid_request")
        if answer is None:
            return _error(
                422,
                "This teacher is a recording and does not know this message. It answers only the "
                "messages of the demo's traffic; set OPENAI_API_KEY to use a live teacher.",
                "not_recorded",
            )
        prompt_tokens = sum(4 + count_tokens(content_text(m.get("content"))) for m in messages)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count_tokens(answer),
            "total_tokens": prompt_tokens + count_tokens(answer),
        }
        seconds = self._pace * _latency(answer, messages)
        head = {
            "id": f"chatcmpl-{sha256(f'{time.time_ns()}'.encode()).hexdigest()[:24]}",
            "created": int(time.time()),
            "model": body.get("model") or MODEL,
            "system_fingerprint": FINGERPRINT,
        }
        if body.get("stream") is True:
            options = body.get("stream_options") or {}
            final = usage if options.get("include_usage") is True else None
            return await _stream(request, head, answer, seconds, final)
        await asyncio.sleep(seconds)
        message = {"role": "assistant", "content": answer, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return web.json_response(whole)


async def _stream(
    request: web.Request, head: Body, answer: str, seconds: float, usage: Body | None
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    response.headers["x-retort-recording"] = "true"
    await asyncio.sleep(seconds * FIRST_SHARE)
    await response.prepare(request)

    async def send(choices: list[Body], **more: Any) -> None:
        chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def choice(delta: Body, finish_reason: str | None = None) -> list[Body]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    pieces = TOKEN.findall(answer)
    await send(choice({"role": "assistant", "content": ""}))
    for piece in pieces:
        await send(choice({"content": piece}))
        await asyncio.sleep(seconds * (1 - FIRST_SHARE) / len(pieces))
    await send(choice({}, "stop"))
    if usage is not None:
        await send([], usage=usage)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _latency(answer: str, messages: Sequence[Mapping[str, Any]]) -> float:
    """Seconds this request takes: the same every time, longer for longer answers."""
    draw = random.Random(key_of(messages)).gauss(0.0, SIGMA)
    return MEDIAN_S * math.exp(draw) + 0.012 * max(0, count_tokens(answer) - 30)


@web.middleware
async def _mark(request: web.Request, handler: Any) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request)
    if not response.prepared:
        response.headers["x-retort-recording"] = "true"
    return response


async def _unknown(request: web.Request) -> web.Response:
    return _error(
        404, f"The recorded teacher has no {request.method} {request.path}.", "unknown_url"
    )


def _error(status: int, message: str, code: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)
