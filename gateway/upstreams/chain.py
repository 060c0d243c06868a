"""The teachers, in the order in which they are asked."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import orjson

from gateway import metrics
from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout
from gateway.upstreams.admission import Gate
from gateway.upstreams.hedge import Hedge
from gateway.upstreams.refusals import refused
from gateway.upstreams.retries import Bucket, another_may, pause_s, to_tell
from gateway.upstreams.upstream import Dropped, Opened, Reply, Upstream, sent_on
from gateway.wire.protocol import json_object

R = TypeVar("R")
T = TypeVar("T")

logger = logging.getLogger(__name__)

#: retries are at most this share of the requests, plus a few
RETRY_SHARE = 0.2
RETRY_RESERVE = 10.0
#: an error body larger than this is no error body
ERROR_BYTES = 1_000_000

Headers = dict[str, str]
Attempt = Callable[[Upstream, bytes, Headers], Awaitable[R]]


@dataclass(slots=True, kw_only=True)
class Asking:
    """What became of one request to the teachers. ``by`` answered it. ``lost`` attempts were given
    up after they were sent: they may cost something, and nobody will say how much."""

    by: Upstream | None = None
    lost: int = 0
    #: time spent waiting for a place; None: nobody has to
    queued_s: float | None = None


class Chain:
    """The first teacher that is up answers; one that fails with a connection error, a timeout, 429
    or 5xx before the client has seen anything of its answer is followed by the next. When all are
    down, all are asked."""

    def __init__(
        self,
        teachers: Sequence[Upstream],
        *,
        retries: int = 0,
        gate: Gate | None = None,
        hedge: Hedge | None = None,
    ) -> None:
        self.teachers = tuple(teachers)
        self._retries = retries
        self._budget = Bucket(RETRY_SHARE, RETRY_RESERVE)
        self._hedge = hedge
        self._gate = gate
        metrics.upstream_up.labels("teacher").set_function(lambda: self.up)
        metrics.queued.labels("teacher")
        self._retried = metrics.retries_total.labels("teacher")
        self._passed_on = metrics.failovers_total.labels("teacher")

    @property
    def up(self) -> bool:
        return any(teacher.breaker.closed for teacher in self.teachers)

    @property
    def down(self) -> list[int]:
        """The places of those that are down; the first teacher has 0, its fallbacks 1, 2, …"""
        return [t.replica for t in self.teachers if not t.breaker.closed]

    async def open(self) -> None:
        for teacher in self.teachers:
            await teacher.open()

    async def close(self) -> None:
        for teacher in self.teachers:
            await teacher.close()

    async def mend(self) -> None:
        await asyncio.gather(*(teacher.mend() for teacher in self.teachers))

    def headers(self, client: Mapping[str, str]) -> Headers:
        """The client's headers as they are sent on. Whose key is put into them is settled when it
        is known who is asked."""
        return sent_on(client)

    async def ask(self, data: bytes, headers: Headers, asking: Asking | None = None) -> Reply:
        """A chat completion, whole. Raises GatewayError."""
        asking = asking or Asking()
        async with self._place(asking):
            return await self._answer(Upstream.ask, data, headers, asking, _nothing)

    @asynccontextmanager
    async def stream(
        self,
        data: bytes,
        headers: Headers,
        begin: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        asking: Asking | None = None,
    ) -> AsyncIterator[T]:
        """A chat completion as it comes. What goes wrong until ``begin`` returns is made good, for
        nothing has been shown to the client yet. Raises GatewayError."""

        async def attempt(teacher: Upstream, data: bytes, headers: Headers) -> Opened[T]:
            return await teacher.begin(data, headers, begin)

        asking = asking or Asking()
        async with self._place(asking):
            opened = await self._answer(attempt, data, headers, asking, _close)
            async with opened.stack:
                yield opened.value

    @asynccontextmanager
    async def forward(
        self, method: str, path_query: str, data: bytes, headers: Headers
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Any request to the first teacher, its answer untouched (also errors and compression).
        ``path_query`` follows the base URL. Raises GatewayError where there is no answer."""
        relayed = self.relay(method, path_query, data, headers, _untouched)
        async with relayed as (response, _):
            yield response

    @asynccontextmanager
    async def relay(
        self,
        method: str,
        path_query: str,
        data: bytes,
        headers: Headers,
        begin: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        *,
        stream: bool = False,
        elsewhere: bool = False,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, T]]:
        """The same, with what ``begin`` made of the answer. ``stream``: the first content must come
        in the time for it. ``elsewhere``: another teacher than the first may answer. The same
        teacher is not asked again: the application retries its own requests."""
        asked = self._order() if elsewhere else self.teachers[:1]
        self._budget.deposit()

        async def attempt(
            teacher: Upstream, data: bytes, headers: Headers
        ) -> Opened[tuple[aiohttp.ClientResponse, T]]:
            async def begun(response: aiohttp.ClientResponse) -> tuple[aiohttp.ClientResponse, T]:
                if len(asked) > 1 and response.status >= 400:
                    refusal = refused(response, await response.content.read(ERROR_BYTES))
                    if another_may(refusal, own_key=teacher.own_key):
                        raise refusal
                return response, await begin(response)

            return await teacher.forward(method, path_query, data, headers, begun, stream=stream)

        asking = Asking()
        async with self._place(asking):
            _, opened = await self._line(asked, attempt, data, headers, asking, retries=0)
            async with opened.stack:
                yield opened.value

    async def get_json(self, path: str, headers: Headers | None = None) -> dict[str, Any]:
        """From the first teacher: what it lists is what the application knows. Raises
        GatewayError."""
        first = self.teachers[0]
        return await first.get_json(path, first.keyed(headers or {}))

    @asynccontextmanager
    async def _place(self, asking: Asking) -> AsyncIterator[None]:
        if self._gate is None:
            yield
            return
        started = time.perf_counter()
        async with self._gate.place():
            asking.queued_s = time.perf_counter() - started
            yield

    def _order(self) -> Sequence[Upstream]:
        if len(self.teachers) == 1:
            return self.teachers
        return [teacher for teacher in self.teachers if teacher.breaker.closed] or self.teachers

    async def _answer(
        self,
        attempt: Attempt[R],
        data: bytes,
        headers: Headers,
        asking: Asking,
        discard: Callable[[R], Awaitable[None]],
    ) -> R:
        self._budget.deposit()
        order = self._order()
        first = self._line(order, attempt, data, headers, asking, retries=self._retries)
        if self._hedge is None:
            by, answer = await first
            asking.by = by
            return answer

        def second() -> Coroutine[Any, Any, tuple[Upstream, R]]:
            return self._line(order[1:2] or order, attempt, data, headers, asking, retries=0)

        async def lose(answered: tuple[Upstream, R]) -> None:
            asking.lost += 1
            await discard(answered[1])

        try:
            by, answer = await self._hedge.race(first, second, lose)
        except asyncio.CancelledError:
            # the attempts learn of it after the request has been written down
            asking.lost += 1
            raise
        asking.by = by
        return answer

    async def _line(
        self,
        teachers: Sequence[Upstream],
        attempt: Attempt[R],
        data: bytes,
        headers: Headers,
        asking: Asking,
        *,
        retries: int,
    ) -> tuple[Upstream, R]:
        """One after the other until one answers."""
        errors: list[GatewayError] = []
        for teacher in teachers:
            try:
                answer = await self._persist(teacher, attempt, data, headers, asking, retries)
            except GatewayError as error:
                if teacher is self.teachers[0] and not another_may(error, own_key=teacher.own_key):
                    raise
                errors.append(error)
                if teacher is not teachers[-1]:
                    self._passed_on.inc()
                    extra = {"replica": teacher.replica, "error": str(error)}
                    logger.warning("teacher failed, the next is asked", extra=extra)
            else:
                return teacher, answer
        told = to_tell(errors)
        if len(errors) > 1 and told.status != 429 and "x-should-retry" not in told.headers:
            told.retry = False
        raise told

    async def _persist(
        self,
        teacher: Upstream,
        attempt: Attempt[R],
        data: bytes,
        headers: Headers,
        asking: Asking,
        retries: int,
    ) -> R:
        """The same teacher, again where that may help and the budget allows."""
        sent = data if teacher.model is None else with_model(data, teacher.model)
        again = 0
        dropped = False
        while True:
            try:
                return await attempt(teacher, sent, teacher.keyed(headers))
            except asyncio.CancelledError:
                asking.lost += 1
                raise
            except GatewayError as error:
                if isinstance(error, UpstreamTimeout | UpstreamError):
                    asking.lost += 1
                if isinstance(error, Dropped) and not dropped and self._budget.take():
                    # a pooled connection that the server closed while it lay idle
                    dropped = True
                    continue
                wait_s = pause_s(error, again)
                if wait_s is None:
                    raise
                if again >= retries or not self._budget.take():
                    if again and error.status != 429 and "x-should-retry" not in error.headers:
                        # it was repeated here; the official clients' retries would multiply that
                        error.retry = False
                    raise
            self._retried.inc()
            again += 1
            await asyncio.sleep(wait_s)


def with_model(data: bytes, model: str) -> bytes:
    """The body with another model named; one that is no JSON object is left as it is."""
    body = json_object(data)
    return data if body is None else orjson.dumps({**body, "model": model})


async def _untouched(response: aiohttp.ClientResponse) -> None:
    return None


async def _nothing(reply: Reply) -> None:
    return None


async def _close(opened: Opened[Any]) -> None:
    await opened.stack.aclose()
