"""The endpoints: thin, plain ASGI, every error in OpenAI's envelope."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.routing import Route as Endpoint
from starlette.types import Receive, Scope, Send

from gateway import metrics
from gateway.access.keys import UNCLAIMED
from gateway.completions import answer
from gateway.errors import (
    GatewayError,
    InvalidKey,
    MethodNotAllowed,
    UnknownEndpoint,
    UpstreamRefused,
)
from gateway.ids import new_id
from gateway.parts import Parts
from gateway.recall import recalled, remember
from gateway.surfaces.feedback import feedback
from gateway.surfaces.messages import as_anthropic, count_tokens, create_message
from gateway.surfaces.passthrough import Broken, pass_through
from gateway.surfaces.responses import create_response, stored_response
from gateway.surfaces.stored import keep_answer, list_completions, one_completion
from gateway.trip import Trip
from gateway.wire.protocol import Gone, Incoming, Sink, read_body, read_chat

logger = logging.getLogger(__name__)

Work = Callable[[Parts, Incoming, Sink], Coroutine[Any, Any, None]]
Greet = Callable[[Incoming, Sink], None]


def endpoints(parts: Parts) -> list[Endpoint]:
    """In the order they are matched."""

    def endpoint(
        path: str, work: Work, methods: str, *, public: bool = False, greet: Greet | None = None
    ) -> Endpoint:
        return Endpoint(path, Served(parts, work, methods.split(), public=public, greet=greet))

    return [
        endpoint("/v1/chat/completions", chat_completions, "POST GET"),
        endpoint("/v1/chat/completions/{rest:path}", one_completion, "GET POST DELETE"),
        endpoint("/v1/feedback", feedback, "GET POST"),
        endpoint("/v1/responses", partial(create_response, chat_completions), "POST"),
        # what the API has beside our responses (/input_tokens, /compact) is the teacher's
        endpoint("/v1/responses/{path:path}", stored_response, "GET POST DELETE"),
        endpoint(
            "/v1/messages", partial(create_message, chat_completions), "POST", greet=as_anthropic
        ),
        endpoint("/v1/messages/count_tokens", count_tokens, "POST", greet=as_anthropic),
        endpoint("/v1/messages/{path:path}", pass_through, "GET POST DELETE", greet=as_anthropic),
        endpoint("/v1/models", list_models, "GET"),
        endpoint("/v1/models/{name:path}", one_model, "GET DELETE"),
        endpoint("/v1/{path:path}", pass_through, "GET POST DELETE"),
        endpoint("/healthz", healthz, "GET", public=True),
        endpoint("/readyz", readyz, "GET", public=True),
        endpoint("/metrics", show_metrics, "GET", public=True),
        endpoint("/{path:path}", unknown, "GET POST PUT PATCH DELETE", public=True),
    ]


class Served:
    """One endpoint as an ASGI application: key, body, the work, its errors. ``greet`` sees the
    request first: where the endpoint's API has its own place for the key and its own errors."""

    def __init__(
        self,
        parts: Parts,
        work: Work,
        methods: list[str],
        *,
        public: bool,
        greet: Greet | None = None,
    ) -> None:
        self._parts = parts
        self._greet = greet
        self._work = work
        self._methods = methods
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = self._parts
        incoming = Incoming(
            id=new_id("req"),
            method=scope["method"],
            path=scope["raw_path"].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers={k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]},
        )
        sink = Sink(send, incoming.id)
        if self._greet is not None:
            self._greet(incoming, sink)
        if parts.draining.is_set():
            # the next request shall find another gateway
            sink.more.append((b"connection", b"close"))
        metrics.inflight.inc()
        try:
            if not self._public:
                incoming.caller = parts.keys.check(incoming.headers.get("authorization"))
                if incoming.path.startswith("/admin/"):
                    incoming.caller.require_admin()
            if incoming.method not in self._methods:
                raise MethodNotAllowed(
                    f"{incoming.method} is not possible here.",
                    headers={"allow": ", ".join(self._methods)},
                )
            limit = parts.config.server.max_body_bytes
            incoming.raw = await read_body(scope, receive, limit)
            if incoming.caller.limited:
                await parts.limits.admit(incoming, sink)
            await attended(self._work(parts, incoming, sink), receive, sink)
        except GatewayError as error:
            if not isinstance(error, InvalidKey):
                extra = {"request_id": incoming.id, "status": error.status, "code": error.code}
                logger.warning("request failed", extra=extra)
            await sink.fail(error)
        except (Gone, Broken):
            return
        except Exception:
            logger.exception("request crashed", extra={"request_id": incoming.id})
            await sink.fail(GatewayError("The gateway has a bug; its log says more."))
        finally:
            metrics.inflight.dec()
            if incoming.tokens_held is not None:
                parts.limits.settle(incoming, sink.status)


async def attended(work: Awaitable[None], receive: Receive, sink: Sink) -> None:
    """The work, cancelled as soon as the client leaves. Raises Gone then."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        # after its last byte a response ends in a disconnect too
        if not sink.ended:
            gone = True
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise Gone from None
    finally:
        watcher.cancel()


async def chat_completions(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    if incoming.method != "POST":
        await list_completions(parts, incoming, sink)
        return
    chat = read_chat(incoming)
    task = parts.claims.find(chat, incoming.headers)
    if task is None:
        await pass_through(parts, incoming, sink, stream=chat.stream)
        return
    lane = parts.lanes[task.name]
    trip = Trip(incoming=incoming, chat=chat, lane=lane, config=parts.config)
    if chat.body.get("store") is True:
        keep_answer(parts, trip, sink)
    if not await recalled(parts, trip, sink):
        await answer(parts, trip, sink)
        remember(trip, sink)


async def list_models(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """The teacher's models and the tasks; without a teacher, the tasks alone. A key for some tasks
    sees no more than it may ask for."""
    caller = incoming.caller
    listed = await teacher_models(parts, incoming) if caller.may_use(UNCLAIMED) else []
    known = {model.get("id") for model in listed}
    tasks = [_model(name) for name in parts.lanes if name not in known and caller.may_use(name)]
    await sink.json(200, {"object": "list", "data": [*listed, *tasks]})


async def teacher_models(parts: Parts, incoming: Incoming) -> list[dict[str, Any]]:
    try:
        body = await parts.teacher.get_json("/models", parts.teacher.headers(incoming.headers))
        return body.get("data") or []
    except GatewayError as error:
        client_error = isinstance(error, UpstreamRefused) and error.status in (401, 403)
        if client_error or not parts.lanes:
            raise
        return []


async def one_model(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    name = incoming.path.removeprefix("/v1/models/")
    if incoming.method == "GET" and name in parts.lanes and incoming.caller.may_use(name):
        await sink.json(200, _model(name))
        return
    await pass_through(parts, incoming, sink)


_STARTED = int(time.time())


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "retort"}


async def healthz(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """The process lives; nothing about what it depends on, or an outage elsewhere would have it
    restarted."""
    await sink.json(200, {"status": "ok"})


async def readyz(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    state = parts.readiness()
    await sink.json(200 if state["ready"] else 503, state)


async def show_metrics(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    text = await asyncio.to_thread(generate_latest, REGISTRY)
    await sink.whole(200, text, [(b"content-type", CONTENT_TYPE_LATEST.encode())])


async def unknown(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    raise UnknownEndpoint(f"Unknown request URL: {incoming.method} {incoming.path}.")
