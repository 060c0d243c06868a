"""The audits of one gateway: promised, made off the request path, tried again, taken over.

What is promised is kept. A sampled answer of the student gets exactly one audit row: the teacher's
word on it, or, where that will not come, the row of a lost audit, which counts as a disagreement. A
promise that could be dropped when the teacher is busy would make the sample crooked.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from gateway.access.budgets import Budgets
from gateway.access.purses import Hold
from gateway.audits.checking import Checker, Failed, lost_line
from gateway.audits.counts import LOST, Reader
from gateway.audits.line import WaitingLine
from gateway.errors import InsufficientQuota, StoreError
from gateway.ids import new_id
from gateway.lane import Lane
from gateway.ledger import Ledger
from gateway.storage import exchanges, pending
from gateway.storage.line import endpoint_of
from gateway.storage.promise import Promise, storable
from gateway.storage.store import Store
from gateway.storage.tables import utcnow
from gateway.trip import Trip
from router.output import check

logger = logging.getLogger(__name__)

#: how often counts and budgets are read, leases renewed, and orphans looked for
TICK_S = 5.0
#: pauses between attempts begin with the one and grow to the other
PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
#: room that a budget must have for sampling to begin, where no audit has told its price yet
LEAST_USD = 1e-6
OVERDUE = timedelta(seconds=LONGEST_PAUSE_S)


class Auditor:
    """``submit`` what was sampled. Every task has a line of its own, with its own workers."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        checker: Checker,
        ledger: Ledger,
        store: Store,
        budgets: Budgets,
    ) -> None:
        self._lanes = lanes
        self._lines: dict[str, WaitingLine] = {}
        self._checker = checker
        self._ledger = ledger
        self._store = store
        self._budgets = budgets
        self._reader = Reader(store)
        self._owner = new_id("gateway")
        self._done: set[str] = set()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        leases = [lane.task.audit.lease_s for lane in lanes.values()]
        self._lease_s = min(leases, default=TICK_S)
        # a lease is renewed twice before it ends
        self._tick_s = min(TICK_S, self._lease_s / 3)

    async def start(self) -> None:
        self._lines = {name: WaitingLine(lane) for name, lane in self._lanes.items()}
        await self._tick()
        for line in self._lines.values():
            for _ in range(line.lane.task.audit.concurrency):
                self._tasks.append(asyncio.create_task(self._work(line)))
        self._tasks.append(asyncio.create_task(self._tick_on()))

    async def stop(self, drain_s: float) -> None:
        """Make what is due, within ``drain_s``; the rest is for another gateway, or the next
        start."""
        self._stopping = True
        lines = self._lines.values()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await asyncio.gather(*(line.ready.join() for line in lines))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in lines:
            line.close()
        if left := sum(len(line.waiting) for line in lines):
            logger.warning("audits left for the next start", extra={"audits": left})
        try:
            await asyncio.to_thread(self._forget)
            await asyncio.to_thread(pending.release, self._store, self._owner)
        except StoreError as error:
            logger.warning("audits not handed over", extra={"error": str(error)})
        await self._checker.close()

    def submit(self, trip: Trip) -> None:
        """The draft of this trip is to be served, and was sampled. Never waits. The promise goes
        to the database before the request's own row does, so there is no row without it."""
        if trip.draft is None:
            return
        promise = promised(trip, self._owner)
        trip.lane.sampling.promised()
        self._store.enqueue(storable(promise, trip.lane.task.redact))
        self._lines[promise.task].add(promise)

    async def _work(self, line: WaitingLine) -> None:
        while True:
            promise = await line.ready.get()
            try:
                await self._audit(line, promise)
            except StoreError as error:
                # it is not written down, so it is not made
                logger.error("audit not written", extra={"error": str(error)})
                self._pause(line, promise, None)
            except Exception:
                logger.exception("audit failed", extra={"request_id": promise.id})
                self._pause(line, promise, None)
            finally:
                line.ready.task_done()

    async def _audit(self, line: WaitingLine, promise: Promise) -> None:
        lane = line.lane
        with suppress(StoreError):  # the database is away, and nobody could erase anything
            if await asyncio.to_thread(pending.erased, self._store, promise.id):
                promise.body = {}
        if not promise.body:
            # its text was erased, or not to be stored, and its gateway is gone
            await self._lose(promise, Failed(status=410))
            return
        if promise.failures and pending.expired(promise, utcnow() - OVERDUE):
            # it fails in a way that nobody foresaw
            await self._lose(promise, Failed(status=500))
            return
        try:
            hold = await self._hold(line, promise)
        except InsufficientQuota as error:
            await self._failed(line, promise, Failed(status=error.status, again=True))
            return
        found = await self._checker.check(lane, promise)
        if isinstance(found, Failed):
            if hold is not None:
                hold.settle(None if found.cost_lost else 0.0)
            await self._failed(line, promise, found)
            return
        if hold is not None:
            hold.settle(found.paid_usd)
        await self._ledger.keep(lane, found.exchange)
        await self._store.append(found.lines)
        await self._ledger.hear(lane, promise.bundle)
        found.count(lane)
        self._end(promise)

    async def _hold(self, line: WaitingLine, promise: Promise) -> Hold | None:
        """The money for it. Where none is left nothing more is promised, and what was promised is
        paid all the same. Raises InsufficientQuota where nobody knows: the database is away."""
        task, sampling = line.lane.task, line.lane.sampling
        if sampling.closed == "budget":
            return self._budgets.overdraw(task)
        data = self._checker.request(promise)
        try:
            # the task's budgets and not the key's: the audit serves the certificate
            return await self._budgets.hold(data, task=task, audit=True)
        except InsufficientQuota as error:
            if error.retry:
                raise
            line.needs_usd = max(self._budgets.estimate(data) or 0.0, LEAST_USD)
            sampling.closed = "budget"
            extra = {"task": task.name, "error": str(error)}
            logger.warning("audits: the budget is spent, nothing more is sampled", extra=extra)
            return self._budgets.overdraw(task)

    async def _failed(self, line: WaitingLine, promise: Promise, failed: Failed) -> None:
        promise.cost_lost = promise.cost_lost or failed.cost_lost
        if not failed.again or pending.expired(promise):
            await self._lose(promise, failed)
            return
        line.lane.metrics.audit_retries.inc()
        self._pause(line, promise, failed.pause_s)

    def _pause(self, line: WaitingLine, promise: Promise, asked_s: float | None) -> None:
        """Try it again later: each time a little later, and once more when its time is over."""
        promise.failures += 1
        if self._stopping:
            return
        pause_s = min(PAUSE_S * 2.0 ** (promise.failures - 1), LONGEST_PAUSE_S)
        pause_s = max(pause_s * random.uniform(0.5, 1.0), asked_s or 0.0)
        left_s = (promise.expires - utcnow()).total_seconds()
        line.later(promise, min(pause_s, left_s) if left_s > 0 else pause_s)

    async def _lose(self, promise: Promise, failed: Failed) -> None:
        """Nobody will ever know: it counts as a disagreement, which is the safe side."""
        await self._store.append([lost_line(promise, failed)])
        extra = {"request_id": promise.id, "status": failed.status}
        logger.warning("audit lost", extra=extra)
        if promise.task in self._lanes:
            self._lanes[promise.task].metrics.audits[(LOST,)].inc()
        self._end(promise)

    def _end(self, promise: Promise) -> None:
        """Its row is durable: its promise may be forgotten."""
        if promise.task in self._lines:
            self._lines[promise.task].end(promise)
        self._done.add(promise.id)

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            await self._tick()

    async def _tick(self) -> None:
        try:
            # first what others wait for: leases must not end because the ledger is slow
            await asyncio.to_thread(self._forget)
            for promise in await asyncio.to_thread(self._orphans):
                await self._take_over(promise)
            for line in self._lines.values():
                if line.lane.live is not None:
                    line.lane.sampling.learn(await asyncio.to_thread(self._reader.read, line.lane))
                await self._reopen(line)
        except StoreError as error:
            logger.warning("audits: the database is away", extra={"error": str(error)})
        except Exception:
            # whatever it was, audits go on with what is known
            logger.exception("audits: not looked after")
        for line in self._lines.values():
            children, lane = line.lane.metrics, line.lane
            children.audits_waiting.set(len(line.waiting))
            children.audit_rate.set(0.0 if lane.live is None else lane.propensity())

    async def _reopen(self, line: WaitingLine) -> None:
        """Whether there is money for an audit now."""
        sampling = line.lane.sampling
        if sampling.closed == "line":
            return
        room = await self._budgets.room(line.lane.task, line.needs_usd or LEAST_USD)
        sampling.closed = None if room else "budget"

    def _forget(self) -> None:
        """Delete the promises that were kept."""
        done = set(self._done)
        pending.finish(self._store, done)
        self._done -= done

    def _orphans(self) -> list[Promise]:
        """Hold on to what is ours, and take what nobody holds."""
        for line in self._lines.values():
            lease_s = line.lane.task.audit.lease_s
            pending.renew(self._store, self._owner, list(line.waiting), lease_s)
        return pending.claim(self._store, self._owner, self._lanes.keys(), self._lease_s)

    async def _take_over(self, promise: Promise) -> None:
        line = self._lines.get(promise.task)
        if line is None:
            # of a task that is configured no more, and its time is over
            await self._lose(promise, Failed(status=504))
        elif promise.id not in line.waiting:
            line.add(promise)


def promised(trip: Trip, owner: str) -> Promise:
    """What an audit of this trip's draft needs, whoever makes it."""
    assert trip.draft is not None
    incoming, decision, live, now = trip.incoming, trip.decision, trip.live, utcnow()
    section = trip.lane.task.audit
    return Promise(
        id=incoming.id,
        at=now,
        task=trip.lane.task.name,
        bundle=None if live is None else live.bundle.id,
        caller=incoming.caller.id,
        endpoint=endpoint_of(incoming.path),
        dedupe_key=exchanges.dedupe_key(trip.lane.task.name, incoming.raw),
        body=trip.chat.body,
        prompt=trip.prompt,
        student_text=trip.draft.answer.text,
        prompt_hash=trip.lane.prompt_hash,
        subject=exchanges.subject(trip.chat.body),
        consent=trip.consent,
        broken=live is not None and check(live.router.spec, trip.draft.answer) is not None,
        reason=decision.reason.value,
        score=decision.score,
        p_ood=decision.p_ood,
        propensity=trip.propensity,
        uniform=trip.uniform,
        guess=trip.guess,
        signals=trip.signals(),
        expires=now + timedelta(seconds=section.patience_s),
        lease_owner=owner,
        lease_until=now + timedelta(seconds=section.lease_s),
        headers=incoming.headers,
    )
