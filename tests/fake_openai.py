"""A scriptable OpenAI-compatible server on a real loopback port; plays student, teacher and vLLM.

    with FakeOpenAI(reply=lambda body: Reply(text="hello")) as teacher:
        client = OpenAI(base_url=teacher.url, api_key="x")

`reply` is called with the parsed body of every request (in the server's thread) and may be a
function, a `Reply` or a string. `stop()` and `start()` simulate an outage on the same port.
"""

import asyncio
import contextlib
import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from router.decision import Token

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server does with one request."""

    text: str | None = "ok"
    #: with their log-probabilities; default: `text` cut into words, each at `logprob`
    tokens: Sequence[Token] = ()
    logprob: float = -0.01
    finish_reason: str = "stop"
    #: before the first byte, and between the chunks of a stream
    delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    status: int = 200
    #: body for a status of 400 and more; default: a proper envelope
    error: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: a stream waits for it before its second content chunk, or the one after ``hold_after``
    hold: threading.Event | None = None
    hold_after: int = 1
    #: the pieces a stream is sent in; default: one per token
    chunks: Sequence[str] | None = None
    #: the connection is cut after this many content chunks or pieces (stream) or bytes (otherwise)
    cut_after: int | None = None
    #: sent as an `{"error": …}` event after the content, in place of a clean end
    stream_error: Any = None
    usage: Mapping[str, Any] | None = None
    send_usage: bool = True
    #: more keys of the message, such as tool_calls
    message: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    #: sent as the body as it is
    raw: bytes | None = None
    #: events sent as they are, on a connection that then stays open without a word
    raw_then_hang: bytes | None = None
    content_type: str = "application/json"
    #: an event stream, sent in these pieces
    pieces: Sequence[bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    raw: bytes
    body: Body
    at: float


ReplyLike = Reply | str | Callable[[Body], Reply | str]


class FakeOpenAI:
    """The server; a context manager.

    ``models`` are always listed and served. With ``strict_models`` any other model is a 404, as
    vLLM answers for an adapter it has lost. ``vllm`` adds vLLM's null keys to every answer.
    ``api_key``: other bearer tokens get a 401.
    """

    def __init__(
        self,
        reply: ReplyLike = "ok",
        *,
        models: Sequence[str] = ("fake-model",),
        strict_models: bool = False,
        vllm: bool = False,
        api_key: str | None = None,
        port: int = 0,
    ) -> None:
        self.reply = reply
        self.models = tuple(models)
        self.strict_models = self._strict_at_first = strict_models
        self.vllm = vllm
        self.api_key = api_key
        self.port = port
        self.adapters: dict[str, str] = {}
        #: more keys of every listed model
        self.model_fields: Body = {}
        #: what vLLM lists for its base model
        self.max_model_len: int | None = None
        self.requests: list[Recorded] = []
        #: the clients' ports, one per connection that carried a request
        self.connections: set[int] = set()
        #: requests whose client went away before the answer was complete
        self.disconnects = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self._count = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def reset(self, reply: ReplyLike) -> None:
        """As new, with this reply; the server goes on (or up again, if it was stopped)."""
        self.reply = reply
        self.strict_models = self._strict_at_first
        self.api_key = None
        self.max_model_len = None
        self.adapters.clear()
        self.model_fields = {}
        self.requests.clear()
        self.connections.clear()
        self.disconnects = self.max_in_flight = 0
        if self._server is None:
            self.start()

    # -- life

    @property
    def url(self) -> str:
        """The base URL, with /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Body]:
        """Bodies of the chat completions asked so far."""
        return [r.body for r in self.requests if r.path == "/v1/chat/completions"]

    def __enter__(self) -> "FakeOpenAI":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            interface="asgi3",
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="fake-openai", daemon=True
        )
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the fake server did not start")
            time.sleep(0.005)
        self._server, self._thread = server, thread

    def stop(self) -> None:
        """Refuse connections from now on; running answers are cut."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._server = self._thread = None

    def wait_for(self, condition: Callable[["FakeOpenAI"], bool], timeout_s: float = 5.0) -> None:
        """Block until the condition on this server holds. Raises AssertionError after a while."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, "condition not met in time"
            time.sleep(0.005)

    # -- protocol

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        raw = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            raw += message.get("body", b"")
            if not message.get("more_body", False):
                break
        try:
            parsed = json.loads(raw) if raw else {}
        except ValueError:
            parsed = {}
        body: Body = parsed if isinstance(parsed, dict) else {}
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request = Recorded(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode(),
            headers=headers,
            raw=raw,
            body=body,
            at=time.monotonic(),
        )
        self.requests.append(request)
        self.connections.add(scope["client"][1])
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        over = False

        def leave() -> None:
            nonlocal over
            self.in_flight -= not over
            over = True

        async def counting(message: Any) -> None:
            # before the last byte: who has it may send the next request at once
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                leave()
            await send(message)

        work = asyncio.ensure_future(self._respond(request, counting))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.disconnects += 1
            else:
                work.result()
        except _Cut:
            # leaving without the last body part makes uvicorn drop the connection
            return
        finally:
            leave()
            for task in (work, gone):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, _Cut):
                    await task

    async def _respond(self, request: Recorded, send: Any) -> None:
        path, body = request.path, request.body
        if self.api_key is not None and request.headers.get("authorization") != (
            f"Bearer {self.api_key}"
        ):
            await _json(send, 401, _envelope("Incorrect API key provided.", "invalid_api_key"))
        elif path == "/health":
            await _json(send, 200, {})
        elif path == "/v1/models":
            await _json(send, 200, {"object": "list", "data": self._listed()})
        elif path.startswith("/v1/models/"):
            found = [m for m in self._listed() if m["id"] == path.removeprefix("/v1/models/")]
            if found:
                await _json(send, 200, found[0])
            else:
                await _json(send, 404, _envelope("No such model.", "model_not_found", "model"))
        elif path == "/v1/load_lora_adapter":
            await self._load(body, send)
        elif path == "/v1/unload_lora_adapter":
            name = body.get("lora_name", "")
            if self.adapters.pop(name, None) is None:
                await _json(send, 404, _envelope(f"adapter '{name}' not found", "NotFoundError"))
            else:
                await _raw(send, 200, f"Success: {name} removed".encode(), "text/plain", {})
        else:
            await self._answer(request, send)

    def _listed(self) -> list[Body]:
        listed: list[Body] = [
            {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}
            | self.model_fields
            for name in (*self.models, *self.adapters)
        ]
        if self.vllm:
            for entry in listed:
                name = entry["id"]
                entry["root"] = self.adapters.get(name, name)
                entry["parent"] = self.models[0] if name in self.adapters else None
                entry["max_model_len"] = None if name in self.adapters else self.max_model_len
        return listed

    async def _load(self, body: Body, send: Any) -> None:
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            text = "Both 'lora_name' and 'lora_path' must be provided."
            await _json(send, 400, _envelope(text, "InvalidUserInput"))
        elif name in self.adapters:
            text = f"The lora adapter '{name}' has already been loaded."
            await _json(send, 400, _envelope(text, "InvalidUserInput"))
        else:
            self.adapters[name] = path
            await _raw(send, 200, f"Success: {name} added".encode(), "text/plain", {})

    async def _answer(self, request: Recorded, send: Any) -> None:
        body = request.body
        known = (*self.models, *self.adapters)
        if self.strict_models and body.get("model") not in known:
            text = f"The model `{body.get('model')}` does not exist."
            await _json(send, 404, _envelope(text, "model_not_found", "model"))
            return
        made = self.reply(body) if callable(self.reply) else self.reply
        reply = made if isinstance(made, Reply) else Reply(text=made)
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        if reply.pieces is not None:
            await _start(send, 200, "text/event-stream", None, reply.headers)
            for sent, piece in enumerate(reply.pieces):
                if sent == reply.cut_after:
                    raise _Cut
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b""})
        elif reply.raw_then_hang is not None:
            await _start(send, 200, "text/event-stream", None, reply.headers)
            part = reply.raw_then_hang
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(60)
        elif reply.raw is not None:
            await _raw(send, reply.status, reply.raw, reply.content_type, reply.headers)
        elif reply.status >= 400:
            error = reply.error or _envelope(f"scripted error {reply.status}", "scripted")
            await _json(send, reply.status, error, reply.headers)
        elif request.path != "/v1/chat/completions":
            echo = {"path": request.path, "echo": body}
            if reply.cut_after is not None:
                data = json.dumps(echo).encode()
                await _start(send, reply.status, "application/json", len(data), reply.headers)
                part = data[: reply.cut_after]
                await send({"type": "http.response.body", "body": part, "more_body": True})
                raise _Cut
            await _json(send, reply.status, echo, reply.headers)
        elif body.get("stream"):
            await self._stream(body, reply, send)
        else:
            await self._whole(body, reply, send)

    def _head(self, body: Body, reply: Reply, kind: str) -> Body:
        self._count += 1
        return {
            "id": f"chatcmpl-fake-{self._count}",
            "object": kind,
            "created": 1_700_000_000 + self._count,
            "model": reply.model or body.get("model"),
        }

    async def _whole(self, body: Body, reply: Reply, send: Any) -> None:
        tokens = _tokens(reply)
        choices = []
        for index in range(body.get("n") or 1):
            message: Body = {"role": "assistant", "content": reply.text, "refusal": None}
            if self.vllm:
                message |= {"annotations": None, "audio": None, "reasoning": None}
            message |= reply.message
            choice: Body = {
                "index": index,
                "message": message,
                "logprobs": _logprobs(body, tokens),
                "finish_reason": reply.finish_reason,
            }
            if self.vllm:
                choice |= {"stop_reason": None, "token_ids": None, "routed_experts": None}
            choices.append(choice)
        answer = self._head(body, reply, "chat.completion") | {"choices": choices}
        if reply.send_usage:
            answer["usage"] = _usage(body, reply, tokens)
        if self.vllm:
            answer |= {"prompt_logprobs": None, "kv_transfer_params": None}
        data = json.dumps(answer).encode()
        await _start(send, reply.status, "application/json", len(data), reply.headers)
        if reply.cut_after is not None:
            part = data[: reply.cut_after]
            await send({"type": "http.response.body", "body": part, "more_body": True})
            raise _Cut
        await send({"type": "http.response.body", "body": data})

    async def _stream(self, body: Body, reply: Reply, send: Any) -> None:
        await _start(send, reply.status, "text/event-stream", None, reply.headers)
        head = self._head(body, reply, "chat.completion.chunk")
        tokens = _tokens(reply)
        if reply.chunks is None:
            pieces = [(token.text, [token]) for token in tokens]
        else:
            pieces = [(text, []) for text in reply.chunks]
        options = body.get("stream_options") or {}
        wants_usage = bool(options.get("include_usage"))
        # as vLLM: every chunk with the usage so far
        running = wants_usage and bool(options.get("continuous_usage_stats"))

        async def event(choices: list[Body], usage: Any = None) -> None:
            chunk = head | {"choices": choices}
            if wants_usage and reply.send_usage:
                chunk["usage"] = usage
            if self.vllm:
                chunk["prompt_token_ids"] = None
            data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})

        def choice(index: int, delta: Body, logprobs: Any, finish: str | None) -> Body:
            made: Body = {
                "index": index,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": finish,
            }
            return made | ({"token_ids": None} if self.vllm else {})

        indices = range(body.get("n") or 1)
        for index in indices:
            first = {"role": "assistant", "content": "", **reply.message}
            await event([choice(index, first, None, None)])
        for sent, (text, of) in enumerate(pieces):
            if reply.cut_after is not None and sent >= reply.cut_after:
                raise _Cut
            if reply.chunk_delay_s:
                await asyncio.sleep(reply.chunk_delay_s)
            if sent == reply.hold_after and reply.hold is not None:
                await asyncio.to_thread(reply.hold.wait, 10)
            for index in indices:
                usage = _usage(body, reply, tokens[: sent + 1]) if running else None
                await event([choice(index, {"content": text}, _logprobs(body, of), None)], usage)
        if reply.cut_after is not None:
            raise _Cut
        if reply.stream_error is not None:
            data = b"data: " + json.dumps({"error": reply.stream_error}).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data})
            return
        for index in indices:
            await event([choice(index, {}, None, reply.finish_reason)])
        if wants_usage and reply.send_usage:
            await event([], _usage(body, reply, tokens))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class _Cut(Exception):
    """The script says: drop the connection."""


def _tokens(reply: Reply) -> list[Token]:
    if reply.tokens or not reply.text:
        return list(reply.tokens)
    words = re.findall(r"\s*\S+\s*$|\s*\S+", reply.text) or [reply.text]
    other = math.log(max(1e-9, 1 - math.exp(reply.logprob)))
    return [Token(text=word, logprob=reply.logprob, top=(reply.logprob, other)) for word in words]


def _logprobs(body: Body, tokens: Sequence[Token]) -> Body | None:
    if not body.get("logprobs"):
        return None
    top = body.get("top_logprobs") or 0
    content = []
    for token in tokens:
        alternatives = [
            {"token": token.text if value == token.logprob else f"~{k}", "logprob": value}
            for k, value in enumerate(token.top[:top])
        ]
        content.append(
            {
                "token": token.text,
                "logprob": token.logprob,
                "bytes": list(token.text.encode()),
                "top_logprobs": [item | {"bytes": None} for item in alternatives],
            }
        )
    return {"content": content, "refusal": None}


def _usage(body: Body, reply: Reply, tokens: Sequence[Token]) -> Body:
    if reply.usage is not None:
        return dict(reply.usage)
    asked = max(1, len(json.dumps(body.get("messages", []))) // 4)
    answered = len(tokens) * (body.get("n") or 1)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
    }


def _envelope(message: str, code: str, param: str | None = None) -> Body:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(
    send: Any, status: int, content_type: str, length: int | None, headers: Mapping[str, str]
) -> None:
    pairs = [(b"content-type", content_type.encode())]
    if length is not None:
        pairs.append((b"content-length", str(length).encode()))
    pairs += [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _raw(
    send: Any, status: int, data: bytes, content_type: str, headers: Mapping[str, str]
) -> None:
    await _start(send, status, content_type, len(data), headers)
    await send({"type": "http.response.body", "body": data})


async def _json(
    send: Any, status: int, data: Any, headers: Mapping[str, str] | None = None
) -> None:
    await _raw(send, status, json.dumps(data).encode(), "application/json", headers or {})
