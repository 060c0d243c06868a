"""One OpenAI-compatible server, teacher or student: the only place that talks to the network.

Pooled connections, a timeout on every wait, retries, and one translation of what can go wrong:
callers see GatewayError and nothing else.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import aiohttp
import orjson
from yarl import URL

from gateway import metrics
from gateway.breaker import Breaker
from gateway.errors import (
    GatewayError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.protocol import HOP_BY_HOP
from gateway.refusals import passed_on, refused, retry_after_s

T = TypeVar("T")

CONNECT_S = 5.0
#: a server that asks for a longer pause is left to the client's own retries
LONGEST_PAUSE_S = 5.0
#: of the client's headers, those that are between it and the gateway
_OURS = HOP_BY_HOP | {"host", "content-length", "authorization", "accept-encoding", "expect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer: its JSON object, the bytes it came in, and the headers to pass on."""

    data: bytes
    body: dict[str, Any]
    headers: dict[str, str]


class Upstream:
    """``timeout_s`` bounds a whole answer, and the wait for each chunk of a stream;
    ``stream_total_s`` a whole stream. ``gated``: after several failures in a row calls are refused
    at once until a probe succeeds; else the breaker only watches.
    """

    def __init__(
        self,
        name: Literal["teacher", "student"],
        base_url: str,
        *,
        timeout_s: float,
        stream_total_s: float | None = None,
        retries: int = 0,
        api_key: str | None = None,
        pass_key: bool = False,
        max_concurrency: int | None = None,
        gated: bool = False,
    ) -> None:
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.breaker = Breaker()
        self._gated = gated
        self._chat = URL(f"{self.base_url}/chat/completions")
        self._authorization = None if api_key is None else f"Bearer {api_key}"
        self._pass_key = pass_key
        self._retries = retries
        self._limit = max_concurrency
        self._in_flight = 0
        wait = {"sock_connect": min(CONNECT_S, timeout_s), "sock_read": timeout_s}
        self._whole = aiohttp.ClientTimeout(total=timeout_s, **wait)
        self._streamed = aiohttp.ClientTimeout(total=stream_total_s, **wait)
        self._timeout_s = timeout_s
        self._seconds = metrics.upstream_seconds.labels(name)
        self._up = metrics.upstream_up.labels(name)
        self._up.set(1)

    async def open(self) -> None:
        self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20.0)
        self._session = self._new_session(decompress=True)
        self._raw_session = self._new_session(decompress=False)

    def _new_session(self, *, decompress: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            auto_decompress=decompress,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        await self._session.close()
        await self._raw_session.close()
        await self._connector.close()

    def headers(self, client: Mapping[str, str]) -> dict[str, str]:
        """The client's headers as they are sent on, with this server's key in place of theirs."""
        sent = {
            name: value
            for name, value in client.items()
            if name not in _OURS and not name.startswith("x-retort-")
        }
        if self._authorization is not None:
            sent["authorization"] = self._authorization
        elif self._pass_key and "authorization" in client:
            sent["authorization"] = client["authorization"]
        if sent.pop("x-api-key", None) and "anthropic-version" in sent and "authorization" in sent:
            # Anthropic's API looks for its key where its client put the gateway's
            sent["x-api-key"] = sent.pop("authorization").removeprefix("Bearer ")
        return sent

    async def ask(self, data: bytes, headers: dict[str, str]) -> Reply:
        """A chat completion, whole. Raises GatewayError."""
        self._admit()
        attempt = 0
        while True:
            try:
                async with self._call("POST", self._chat, data, headers, self._whole) as response:
                    raw = await response.read()
                    return Reply(data=raw, body=self._object(raw), headers=passed_on(response))
            except GatewayError as error:
                await self._pause(error, attempt)
            attempt += 1

    @asynccontextmanager
    async def stream(
        self,
        data: bytes,
        headers: dict[str, str],
        begin: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    ) -> AsyncIterator[T]:
        """A chat completion as it comes. What goes wrong until ``begin`` returns is retried, for
        nothing has been shown to the client yet. Raises GatewayError."""
        self._admit()
        attempt = 0
        while True:
            begun = False
            try:
                async with self._call(
                    "POST", self._chat, data, headers, self._streamed
                ) as response:
                    made = await begin(response)
                    begun = True
                    yield made
                    return
            except GatewayError as error:
                if begun:
                    raise
                await self._pause(error, attempt)
            attempt += 1

    @asynccontextmanager
    async def forward(
        self, method: str, path_query: str, data: bytes, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Any request, its answer untouched (also errors and compression). ``path_query`` follows
        the base URL. Raises GatewayError where there is no answer."""
        url = URL(self.base_url + path_query, encoded=True)
        attempt = 0
        while True:
            begun = False
            try:
                async with self._call(
                    method, url, data, headers, self._streamed, raw=True
                ) as response:
                    begun = True
                    yield response
                    return
            except _Dropped:
                # the only thing repeated here: the application retries its own requests
                if begun or attempt:
                    raise
            attempt += 1

    async def get_json(self, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Raises GatewayError."""
        url = URL(self.base_url + path)
        async with self._call(
            "GET", url, b"", headers or self.headers({}), self._whole
        ) as response:
            return self._object(await response.read())

    async def mend(self) -> None:
        """Probe it, if it is down and a probe is due. Off the request path."""
        if not self.breaker.due():
            return
        try:
            await self.get_json("/models")
        except GatewayError as error:
            if error.status >= 500:
                self.breaker.delay()
                return
        self.breaker.mend()
        self._up.set(1)

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        url: URL,
        data: bytes,
        headers: dict[str, str],
        limits: aiohttp.ClientTimeout,
        *,
        raw: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One attempt."""
        if self._limit is not None and self._in_flight >= self._limit:
            raise UpstreamUnavailable(f"The {self.name} is busy.", code="overloaded")
        session = self._raw_session if raw else self._session
        if not raw:
            headers["accept-encoding"] = "identity"
        started, code = time.perf_counter(), "cancelled"
        self._in_flight += 1
        try:
            async with session.request(
                method,
                url,
                data=data or None,
                headers=headers,
                timeout=limits,
                allow_redirects=False,
            ) as response:
                code = str(response.status)
                if response.status >= 400 and not raw:
                    raise refused(response, await response.read())
                yield response
            self._succeeded()
        except TimeoutError as error:
            code = "timeout"
            self._failed()
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UpstreamUnavailable(f"The {self.name} cannot be reached.") from None
            raise UpstreamTimeout(
                f"The {self.name} did not answer within {self._timeout_s:g} s."
            ) from None
        except aiohttp.ServerDisconnectedError:
            code = "connect"
            self._failed()
            raise _Dropped(f"The {self.name} closed the connection.") from None
        except aiohttp.ClientConnectionError as error:
            code = "connect"
            self._failed()
            why = getattr(error, "strerror", None) or type(error).__name__
            raise UpstreamUnavailable(f"The {self.name} cannot be reached ({why}).") from None
        except aiohttp.ClientError:
            self._failed()
            raise UpstreamError(
                f"The {self.name}'s answer broke off.", code="upstream_broken"
            ) from None
        except UpstreamRefused as error:
            # below 500 it is up and does not like the request
            self._failed() if error.status >= 500 else self._succeeded()
            raise
        except UpstreamError:
            self._failed()
            raise
        finally:
            self._in_flight -= 1
            self._seconds.observe(time.perf_counter() - started)
            metrics.upstream_total.labels(self.name, code).inc()

    def _admit(self) -> None:
        if self._gated and not self.breaker.closed:
            raise UpstreamUnavailable(f"The {self.name} is down.", code="circuit_open")

    def _succeeded(self) -> None:
        self.breaker.success()
        self._up.set(self.breaker.closed)

    def _failed(self) -> None:
        self.breaker.failure()
        self._up.set(self.breaker.closed)

    async def _pause(self, error: GatewayError, attempt: int) -> None:
        """Wait before the next attempt, or raise the error for good."""
        if isinstance(error, _Dropped) and attempt == 0:
            # a pooled connection that the server closed while it lay idle
            return
        again = isinstance(error, UpstreamUnavailable | UpstreamError | UpstreamRefused) and (
            error.status == 429 or error.status >= 500
        )
        if not again:
            raise error
        if attempt >= self._retries:
            if self._retries and error.status != 429 and "x-should-retry" not in error.headers:
                # it was repeated here; the official clients' retries would multiply that
                error.retry = False
            raise error
        wait_s = random.uniform(0.5, 1.0) * min(0.25 * 2**attempt, LONGEST_PAUSE_S)
        asked_s = retry_after_s(error.headers)
        if asked_s is not None and asked_s > LONGEST_PAUSE_S:
            raise error
        await asyncio.sleep(wait_s if asked_s is None else asked_s)

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict):
            raise UpstreamError(f"The {self.name}'s answer is not a JSON object.")
        return body


class _Dropped(UpstreamUnavailable):
    """The server closed the connection before it answered."""
