"""The student's replicas: which of them is asked, and which can be asked at all."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, TypeVar

import aiohttp

from gateway import metrics
from gateway.errors import GatewayError, UpstreamRefused, UpstreamUnavailable
from gateway.storage.exchanges import CONVERSATION
from gateway.upstreams.adapters import read_models
from gateway.upstreams.retries import Bucket, another_may
from gateway.upstreams.upstream import Upstream
from gateway.wire.protocol import Body

T = TypeVar("T")

#: second attempts are at most this share of the requests, plus a few
RETRY_SHARE = 0.2
RETRY_RESERVE = 10.0
#: a favourite replica may have this much more than its share in flight
LEAN = 1.25
#: characters of a conversation's beginning that tell which cache knows it
PREFIX = 1024

_JSON = {"content-type": "application/json"}


@dataclass(slots=True, eq=False)
class Replica:
    """``ready``: the adapters it was seen to answer with, since it was last seen to be up."""

    server: Upstream
    ready: set[str] = field(default_factory=set)
    max_model_len: int | None = None

    def able(self, adapter: str) -> bool:
        return self.server.breaker.closed and adapter in self.ready


class Pool:
    """Of the replicas that are up and have the adapter, the less busy of two is asked, or with a
    ``key`` the one that had the key's last request, unless that one is much busier than the
    others. An attempt that fails is made once more elsewhere, in the time that is left."""

    def __init__(self, servers: Sequence[Upstream], timeout_s: float) -> None:
        self.replicas = tuple(Replica(server) for server in servers)
        self._timeout_s = timeout_s
        self._budget = Bucket(RETRY_SHARE, RETRY_RESERVE)
        metrics.upstream_up.labels("student").set_function(lambda: self.up)
        self._passed_on = metrics.failovers_total.labels("student")

    @property
    def up(self) -> bool:
        return any(replica.server.breaker.closed for replica in self.replicas)

    @property
    def down(self) -> list[int]:
        """The places in the configuration of those that are down."""
        return [r.server.replica for r in self.replicas if not r.server.breaker.closed]

    async def open(self) -> None:
        for replica in self.replicas:
            await replica.server.open()

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.server.close()

    async def mend(self) -> None:
        """A replica that is back may have been restarted: only the adapters it lists are still
        ready."""
        probes = await asyncio.gather(*(replica.server.mend() for replica in self.replicas))
        for replica, models in zip(self.replicas, probes, strict=True):
            if models is not None:
                replica.ready &= read_models(models).names

    async def ask(
        self,
        adapter: str,
        data: bytes,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        key: str | None = None,
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> T:
        """What ``read`` made of an answer. ``may_repeat`` is False once the client has seen some
        of it: then nobody else is asked. Raises GatewayError."""
        self._budget.deposit()
        started = time.monotonic()
        replica = self.pick(adapter, key)
        try:
            return await self._attempt(replica, adapter, data, read)
        except GatewayError as error:
            left_s = self._timeout_s - (time.monotonic() - started)
            lost = isinstance(error, UpstreamRefused) and error.status == 404
            if left_s <= 0 or not (lost or another_may(error, own_key=False)):
                raise
            if not may_repeat():
                raise
            try:
                other = self.pick(adapter, key, but=replica)
            except UpstreamUnavailable:
                raise error from None
            if not self._budget.take():
                raise
        self._passed_on.inc()
        return await self._attempt(other, adapter, data, read, left_s)

    async def _attempt(
        self,
        replica: Replica,
        adapter: str,
        data: bytes,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        within_s: float | None = None,
    ) -> T:
        try:
            return await replica.server.read(data, dict(_JSON), read, within_s)
        except UpstreamRefused as error:
            if error.status == 404:
                # it has lost the adapter, by a restart perhaps
                replica.ready.discard(adapter)
            raise

    def pick(self, adapter: str, key: str | None, but: Replica | None = None) -> Replica:
        """Raises UpstreamUnavailable."""
        able = [r for r in self.replicas if r is not but and r.able(adapter)]
        if not able:
            raise UpstreamUnavailable(
                "The student is down, or has lost its adapter.", code="circuit_open"
            )
        free = [replica for replica in able if not replica.server.full]
        if not free:
            raise UpstreamUnavailable("The student is busy.", code="overloaded")
        if len(free) == 1:
            return free[0]
        if key is not None:
            most = LEAN * sum(r.server.in_flight for r in free) / len(free) + 1
            free.sort(key=lambda replica: _rank(key, replica), reverse=True)
            for replica in free:
                if replica.server.in_flight <= most:
                    return replica
        one, other = random.sample(free, 2)
        return one if one.server.in_flight <= other.server.in_flight else other


def affinity_key(
    kind: Literal["none", "session", "prefix"], body: Body, rendered: Sequence[Body]
) -> str | None:
    """What requests have in common that one replica's cache should see. ``rendered``: the
    messages as the student gets them."""
    if kind == "session":
        metadata = body.get("metadata")
        named = [metadata.get(name) for name in CONVERSATION] if isinstance(metadata, dict) else []
        for value in (*named, body.get("prompt_cache_key"), body.get("user")):
            if isinstance(value, str) and value:
                return value
    elif kind == "prefix":
        return "\n".join(str(message.get("content")) for message in rendered)[:PREFIX]
    return None


def _rank(key: str, replica: Replica) -> bytes:
    """Rendezvous hashing: every gateway has the same order of replicas for a key, and one that
    goes away moves only its own keys."""
    name = f"{replica.server.replica}\0{key}".encode("utf-8", "replace")
    return blake2b(name, digest_size=8).digest()
