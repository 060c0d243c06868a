"""The background loop: follow the champions, keep their adapters loaded, mend the breakers."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from gateway import metrics
from gateway.canaries import follow as canaries
from gateway.certificates import drift
from gateway.certificates import live as certificates
from gateway.certificates.standing import show
from gateway.config import Config
from gateway.errors import BundleError, RetortError
from gateway.lane import Lane, Live
from gateway.storage import bundles, exchanges, nights
from gateway.storage.response_store import forget_old
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, utcnow
from gateway.upstreams.chain import Chain
from gateway.upstreams.loading import Loading
from gateway.upstreams.pool import Pool
from router import artifact
from router.errors import RouterError

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
        self, config: Config, store: Store, lanes: Sequence[Lane], teacher: Chain, student: Pool
    ) -> None:
        self._config = config
        self._store = store
        self._lanes = lanes
        self._teacher = teacher
        self._student = student
        self._loading = Loading(student)
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
        await asyncio.gather(self._student.mend(), self._teacher.mend())
        for lane in self._lanes:
            try:
                await self._follow(lane, look=slow)
                if lane.live is not None:
                    subject = certificates.subject_of(self._config, lane, lane.live)
                    await certificates.follow(self._store, subject, lane)
                    if slow:
                        reference = len(lane.live.router.ood.reference)
                        lane.audit_factor = await asyncio.to_thread(
                            drift.follow, self._store, subject, reference
                        )
                await self._follow_canary(lane, look=slow)
                if slow:
                    await asyncio.to_thread(self._count, lane)
            except Exception:
                # whatever it was, the gateway serves on with what it has
                logger.exception("poll failed", extra={"task": lane.task.name})
        metrics.spool_rows.set(self._store.spool_rows)

    async def close(self) -> None:
        await self._loading.close()

    async def _follow(self, lane: Lane, *, look: bool) -> None:
        champion = await asyncio.to_thread(bundles.champion, self._store, lane.task.name)
        live = lane.live
        if champion is None:
            if live is not None:
                self._switch(lane, None)
            lane.problem = None
            return
        if live is not None and live.bundle.id == champion.id:
            if look or lane.problem is not None or not self._loading.complete(live.bundle):
                await self._loading.reconcile(live.bundle)
            self._trouble(lane, champion.id, self._loading.problem(live.bundle))
            lane.max_model_len = self._loading.max_model_len(live.bundle)
            return
        try:
            new = await self._prepare(lane, champion)
        except (RetortError, RouterError) as error:
            self._trouble(lane, champion.id, str(error))
        else:
            self._switch(lane, new)

    async def _follow_canary(self, lane: Lane, *, look: bool) -> None:
        async def reconcile(live: Live) -> str | None:
            if look or not self._loading.complete(live.bundle):
                await self._loading.reconcile(live.bundle)
            if self._loading.served(live.bundle):
                return None
            return self._loading.problem(live.bundle) or "no student is up"

        await canaries.follow(self._store, self._config, lane, self._prepare, reconcile)
        if lane.canary is not None:
            subject = certificates.subject_of(self._config, lane, lane.canary.live)
            await certificates.follow(self._store, subject, lane)

    async def _prepare(self, lane: Lane, champion: Bundle) -> Live:
        files = await asyncio.to_thread(bundles.read_bundle, champion.path)
        if files.adapter == self._config.student.base_model:
            raise BundleError(f"{files.id}: its adapter has the base model's name")
        if files.prompt_hash != lane.prompt_hash:
            raise BundleError(
                f"{files.id} was trained for another prompt contract than tasks.{lane.task.name}"
                ".prompt: change it back, or train a new student"
            )
        router = await asyncio.to_thread(artifact.load, files.router_dir, lane.embedder)
        live = Live(bundle=files, router=router)
        subject = certificates.subject_of(self._config, lane, live)
        standing = await certificates.begin(self._store, subject)
        await self._loading.first(files)
        return replace(live, standing=standing)

    def _trouble(self, lane: Lane, bundle: str, problem: str | None) -> None:
        if problem is not None and lane.problem != problem:
            extra = {"task": lane.task.name, "bundle": bundle, "error": problem}
            logger.warning("bundle not live everywhere", extra=extra)
        lane.problem = problem

    def _switch(self, lane: Lane, new: Live | None) -> None:
        task = lane.task.name
        lane.live = new
        lane.problem = None if new is None else self._loading.problem(new.bundle)
        lane.max_model_len = None if new is None else self._loading.max_model_len(new.bundle)
        if (old := self._infos.pop(task, None)) is not None:
            metrics.bundle_info.remove(task, *old)
        if new is not None:
            self._infos[task] = (new.bundle.id, new.bundle.adapter)
            metrics.bundle_info.labels(task, new.bundle.id, new.bundle.adapter).set(1)
        show(
            task,
            None if new is None else new.router.certificate,
            None if new is None else new.standing,
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
