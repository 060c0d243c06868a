"""One OpenAI-compatible server, teacher or student: the only place that talks to the network.

Pooled connections, a timeout on every wait, and one translation of what can go wrong: callers see
GatewayError and nothing else. One call is one attempt; who is asked next, and whether at all, is
for the chain of teachers and the pool of students to say.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import aiohttp
from yarl import URL

from gateway import metrics
from gateway.config import Price
from gateway.errors import (
    GatewayError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.upstreams.breaker import Breaker
from gateway.upstreams.refusals import envelope, passed_on, refused
from gateway.wire.protocol import HOP_BY_HOP, json_object

T = TypeVar("T")

#: a server that takes longer to list its models is not up
PROBE_S = 5.0
#: of the client's headers, those that are between it and the gateway
_OURS = HOP_BY_HOP | {"host", "content-length", "accept-encoding", "expect"}
#: what tells one provider who asks is no other's business
_CREDENTIALS = frozenset(
    {"authorization", "cookie", "api-key", "x-api-key", "openai-organization", "openai-project"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer: its JSON object, the bytes it came in, and the headers to pass on."""

    data: bytes
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """An answer that has begun; ``stack`` holds its connection until it is closed."""

    value: T
    stack: AsyncExitStack


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds one attempt may take: to connect; for a whole answer; until a stream's first
    content; between two pieces of a stream; for a whole stream."""

    connect_s: float
    whole_s: float
    first_s: float
    idle_s: float
    stream_s: float


def sent_on(client: Mapping[str, str]) -> dict[str, str]:
    """The client's headers, without what is between it and the gateway."""
    return {
        name: value
        for name, value in client.items()
        if name not in _OURS and not name.startswith("x-retort-")
    }


class Upstream:
    """``replica`` is its place in the configuration. Without a key of its own, ``pass_key`` sends
    the client's; ``stranger``: the client does not know of this server, and nothing that tells
    who the client is goes there. ``model`` replaces the one in a request's body."""

    def __init__(
        self,
        name: Literal["teacher", "student"],
        base_url: str,
        *,
        patience: Patience,
        replica: int = 0,
        api_key: str | None = None,
        pass_key: bool = False,
        stranger: bool = False,
        max_concurrency: int | None = None,
        model: str | None = None,
        price: Price | None = None,
        trainable: bool = True,
    ) -> None:
        self.name = name
        self.replica = replica
        self.base_url = base_url.rstrip("/")
        self.breaker = Breaker()
        self.model = model
        self.price = Price() if price is None else price
        self.trainable = trainable
        self.in_flight = 0
        self.own_key = api_key is not None
        self._chat = URL(f"{self.base_url}/chat/completions")
        self._authorization = None if api_key is None else f"Bearer {api_key}"
        self._pass_key = pass_key
        self._stranger = stranger
        self._limit = max_concurrency
        self._patience = patience
        connect_s = min(patience.connect_s, patience.whole_s)
        self._whole = aiohttp.ClientTimeout(
            total=patience.whole_s, sock_connect=connect_s, sock_read=patience.whole_s
        )
        self._streamed = aiohttp.ClientTimeout(
            total=patience.stream_s, sock_connect=connect_s, sock_read=patience.first_s
        )
        self._any = aiohttp.ClientTimeout(
            total=patience.stream_s,
            sock_connect=connect_s,
            sock_read=max(patience.whole_s, patience.first_s),
        )
        self._seconds = metrics.upstream_seconds.labels(name)
        metrics.replica_up.labels(name, str(replica)).set_function(lambda: self.breaker.closed)

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

    @property
    def full(self) -> bool:
        return self._limit is not None and self.in_flight >= self._limit

    def keyed(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers with this server's key in place of the client's."""
        gone = _CREDENTIALS if self._stranger else ("authorization",)
        sent = {name: value for name, value in headers.items() if name not in gone}
        if self._authorization is not None:
            sent["authorization"] = self._authorization
        elif self._pass_key and "authorization" in headers:
            sent["authorization"] = headers["authorization"]
        if sent.pop("x-api-key", None) and "anthropic-version" in sent and "authorization" in sent:
            # Anthropic's API looks for its key where its client put the gateway's
            sent["x-api-key"] = sent.pop("authorization").removeprefix("Bearer ")
        return sent

    async def ask(self, data: bytes, headers: dict[str, str]) -> Reply:
        """A chat completion, whole. Raises GatewayError."""
        async with self._call("POST", self._chat, data, headers, self._whole) as response:
            raw = await response.read()
            body = self._object(raw)
            if body.get("error") and "choices" not in body:
                # some servers and gateways have only one status for everything
                raise UpstreamRefused(envelope(raw, 502), status=502, headers=passed_on(response))
            return Reply(data=raw, body=body, headers=passed_on(response))

    async def read(
        self,
        data: bytes,
        headers: dict[str, str],
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        within_s: float | None = None,
    ) -> T:
        """A chat completion that ``read`` reads to its end, streamed or not, in ``within_s`` (by
        default the time for a whole answer). Raises GatewayError."""
        limits = self._whole
        if within_s is not None:
            connect_s = min(self._patience.connect_s, within_s)
            limits = aiohttp.ClientTimeout(total=within_s, sock_connect=connect_s)
        async with self._call("POST", self._chat, data, headers, limits) as response:
            return await read(response)

    async def begin(
        self,
        data: bytes,
        headers: dict[str, str],
        begin: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    ) -> Opened[T]:
        """A chat completion as it comes, once ``begin`` has returned. Raises GatewayError."""
        call = self._call("POST", self._chat, data, headers, self._streamed, first=True)
        return await self._begin(call, begin, self._patience.first_s)

    async def forward(
        self,
        method: str,
        path_query: str,
        data: bytes,
        headers: dict[str, str],
        begin: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        *,
        stream: bool,
    ) -> Opened[T]:
        """Any request, its answer untouched (also errors and compression). ``path_query`` follows
        the base URL. Raises GatewayError where there is no answer."""
        url = URL(self.base_url + path_query, encoded=True)
        call = self._call(method, url, data, headers, self._any, raw=True, first=stream)
        patience = self._patience
        return await self._begin(call, begin, patience.first_s if stream else patience.whole_s)

    async def _begin(
        self,
        call: AbstractAsyncContextManager[aiohttp.ClientResponse],
        begin: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        first_s: float,
    ) -> Opened[T]:
        deadline = asyncio.get_running_loop().time() + first_s
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(call)
            async with asyncio.timeout_at(deadline):
                value = await begin(response)
            connection = response.connection
            protocol = None if connection is None else connection.protocol
            if protocol is not None and response.content_type == "text/event-stream":
                # from here on the pieces may not be further apart than this
                protocol.read_timeout = self._patience.idle_s
                protocol.start_timeout()
            return Opened(value, stack.pop_all())

    async def get_json(self, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Raises GatewayError."""
        url = URL(self.base_url + path)
        sent = self.keyed({}) if headers is None else headers
        async with self._call("GET", url, b"", sent, self._whole) as response:
            return self._object(await response.read())

    async def mend(self) -> dict[str, Any] | None:
        """Probe it, if it is down and a probe is due; its list of models where it is up again.
        Off the request path."""
        if not self.breaker.due():
            return None
        models: dict[str, Any] = {}
        try:
            url, probe = URL(f"{self.base_url}/models"), aiohttp.ClientTimeout(total=PROBE_S)
            async with self._call("GET", url, b"", self.keyed({}), probe) as response:
                models = self._object(await response.read())
        except GatewayError as error:
            if error.status >= 500:
                self.breaker.delay()
                return None
        self.breaker.mend()
        return models

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
        first: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One attempt. ``first``: the headers must come in the time for the first content."""
        if self.full:
            raise UpstreamUnavailable(f"The {self.name} is busy.", code="overloaded")
        session = self._raw_session if raw else self._session
        if not raw:
            headers["accept-encoding"] = "identity"
        started, code = time.perf_counter(), "cancelled"
        self.in_flight += 1
        try:
            async with asyncio.timeout(self._patience.first_s if first else None):
                response = await session.request(
                    method,
                    url,
                    data=data or None,
                    headers=headers,
                    timeout=limits,
                    allow_redirects=False,
                )
            async with response:
                code = str(response.status)
                if response.status >= 400 and not raw:
                    raise refused(response, await response.read())
                yield response
            self.breaker.failure() if response.status >= 500 else self.breaker.success()
        except TimeoutError as error:
            code = "timeout"
            self.breaker.failure()
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UpstreamUnavailable(f"The {self.name} cannot be reached.") from None
            raise UpstreamTimeout(f"The {self.name} did not answer in time.") from None
        except aiohttp.ServerDisconnectedError:
            code = "connect"
            self.breaker.failure()
            raise Dropped(f"The {self.name} closed the connection.") from None
        except aiohttp.ClientConnectionError as error:
            code = "connect"
            self.breaker.failure()
            why = getattr(error, "strerror", None) or type(error).__name__
            raise UpstreamUnavailable(f"The {self.name} cannot be reached ({why}).") from None
        except aiohttp.ClientError:
            self.breaker.failure()
            raise UpstreamError(
                f"The {self.name}'s answer broke off.", code="upstream_broken"
            ) from None
        except UpstreamRefused as error:
            # below 500 it is up and does not like the request
            self.breaker.failure() if error.status >= 500 else self.breaker.success()
            raise
        except UpstreamError:
            self.breaker.failure()
            raise
        finally:
            self.in_flight -= 1
            self._seconds.observe(time.perf_counter() - started)
            metrics.upstream_total.labels(self.name, code).inc()

    def _object(self, raw: bytes) -> dict[str, Any]:
        body = json_object(raw)
        if body is None:
            raise UpstreamError(f"The {self.name}'s answer is not a JSON object.")
        return body


class Dropped(UpstreamUnavailable):
    """The server closed the connection before it answered: perhaps a pooled one that had lain
    idle."""
