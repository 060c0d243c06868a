"""The background loop: follow the champions, keep their adapters loaded, mend the breaker."""

import asyncio
import logging
import time
from collections.abc import Sequence

import aiohttp

from gateway import bundles, exchanges, metrics, nights
from gateway.adapters import answers, load_adapter, loaded
from gateway.bundles import BundleFiles
from gateway.config import Config
from gateway.errors import BundleError, RetortError
from gateway.lane import Lane, Live
from gateway.response_store import forget_old
from gateway.store import Store
from gateway.tables import Bundle, utcnow
from gateway.upstream import Upstream
from router import artifact
from router.errors import RouterError
from router.threshold import NEVER

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
#: how often adapters are looked for that nobody missed yet, and the queue is counted
SLOW_S = 10.0
#: how often old responses are deleted
FORGET_S = 3600.0


class Poller:
    """A new champion goes live only when its bundle is whole, its router loads, and the student
    server answers under its adapter; until then, and if anything fails, what was live stays."""

    def __init__(
        self, config: Config, store: Store, lanes: Sequence[Lane], upstreams: Sequence[Upstream]
    ) -> None:
        self._config = config
        self._store = store
        self._lanes = lanes
        self._upstreams = upstreams
        self._url = config.student.base_url.rstrip("/")
        self._slow_at = 0.0
        self._forget_at = 0.0
        self._infos: dict[str, tuple[str, str]] = {}

    async def run(self) -> None:
        while True:
            if time.monotonic() >= self._forget_at:
                self._forget_at = time.monotonic() + FORGET_S
                await self._forget()
            await asyncio.sleep(INTERVAL_S)
            await self.round()

    async def _forget(self) -> None:
        days = self._config.store.responses_days
        try:
            await asyncio.to_thread(forget_old, self._store, days)
        except RetortError as error:
            logger.warning("old responses not deleted", extra={"error": str(error)})

    async def round(self) -> None:
        slow = time.monotonic() >= self._slow_at
        if slow:
            self._slow_at = time.monotonic() + SLOW_S
        async with aiohttp.ClientSession() as session:
            for lane in self._lanes:
                try:
                    await self._follow(lane, session, look=slow)
                    if slow:
                        await asyncio.to_thread(self._count, lane)
                except Exception:
                    # whatever it was, the gateway serves on with what it has
                    logger.exception("poll failed", extra={"task": lane.task.name})
        for upstream in self._upstreams:
            await upstream.mend()
        metrics.spool_rows.set(self._store.spool_rows)

    async def _follow(self, lane: Lane, session: aiohttp.ClientSession, *, look: bool) -> None:
        champion = await asyncio.to_thread(bundles.champion, self._store, lane.task.name)
        live = lane.live
        if champion is None:
            if live is not None:
                self._switch(lane, None)
            lane.problem = None
            return
        if live is not None and live.bundle.id == champion.id:
            if look or lane.suspect or lane.problem is not None:
                await self._reconcile(lane, live.bundle, session)
            return
        try:
            new = await self._prepare(lane, champion, session)
        except (RetortError, RouterError) as error:
            self._trouble(lane, champion.id, error)
        else:
            self._switch(lane, new)

    async def _prepare(self, lane: Lane, champion: Bundle, session: aiohttp.ClientSession) -> Live:
        files = await asyncio.to_thread(bundles.read_bundle, champion.path)
        if files.adapter == self._config.student.base_model:
            raise BundleError(f"{files.id}: its adapter has the base model's name")
        if files.prompt_hash != lane.prompt_hash:
            raise BundleError(
                f"{files.id} was trained for another prompt contract than tasks.{lane.task.name}"
                ".prompt: change it back, or train a new student"
            )
        router = await asyncio.to_thread(artifact.load, files.router_dir)
        await self._load(files, session)
        return Live(bundle=files, router=router)

    async def _load(self, files: BundleFiles, session: aiohttp.ClientSession) -> None:
        if files.adapter not in await loaded(session, self._url):
            await load_adapter(session, self._url, files.adapter, str(files.adapter_dir))
        await answers(session, self._url, files.adapter)

    async def _reconcile(
        self, lane: Lane, files: BundleFiles, session: aiohttp.ClientSession
    ) -> None:
        """A restarted student server knows nothing of our adapters."""
        try:
            if files.adapter not in await loaded(session, self._url):
                await self._load(files, session)
                logger.warning("adapter reloaded", extra={"adapter": files.adapter})
        except BundleError as error:
            self._trouble(lane, files.id, error)
        else:
            lane.problem, lane.suspect = None, False

    def _trouble(self, lane: Lane, bundle: str, error: Exception) -> None:
        if lane.problem != str(error):
            extra = {"task": lane.task.name, "bundle": bundle, "error": str(error)}
            logger.warning("bundle not live", extra=extra)
        lane.problem = str(error)

    def _switch(self, lane: Lane, new: Live | None) -> None:
        task = lane.task.name
        lane.live, lane.problem, lane.suspect = new, None, False
        if (old := self._infos.pop(task, None)) is not None:
            metrics.bundle_info.remove(task, *old)
        if new is not None:
            self._infos[task] = (new.bundle.id, new.bundle.adapter)
            metrics.bundle_info.labels(task, new.bundle.id, new.bundle.adapter).set(1)
        certificate = None if new is None else new.router.certificate
        metrics.threshold.labels(task).set(NEVER if new is None else new.router.threshold)
        metrics.certified_coverage.labels(task).set(certificate.coverage if certificate else 0.0)
        metrics.certified_disagreement.labels(task).set(
            certificate.upper_bound if certificate else 0.0
        )
        bundle = None if new is None else new.bundle.id
        logger.info("bundle live", extra={"task": task, "bundle": bundle})

    def _count(self, lane: Lane) -> None:
        for state, rows in exchanges.counts(self._store, lane.task.name).items():
            metrics.queue_rows.labels(lane.task.name, state).set(rows)
        oldest = exchanges.oldest(self._store, lane.task.name)
        age_s = 0.0 if oldest is None else (utcnow() - oldest).total_seconds()
        metrics.queue_oldest_seconds.labels(lane.task.name).set(age_s)
        nights.show(self._store, lane.task.name)
