"""What is written down: durable rows for the queue, ledger rows, metrics, one log line."""

import asyncio
import logging
import time
from collections.abc import Coroutine

from gateway import metrics
from gateway.certificates import live as certificates
from gateway.config import Config
from gateway.errors import StoreError
from gateway.lane import Lane
from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import Exchange
from gateway.trip import Trip
from gateway.wire.protocol import Sink
from router.decision import ESCALATED, Route

logger = logging.getLogger(__name__)


class Ledger:
    """Writes outlive the request that asked for them: a client that leaves does not take its row
    along."""

    def __init__(self, store: Store, config: Config) -> None:
        self._store = store
        self._config = config
        self._writes: set[asyncio.Task[None]] = set()

    async def keep(self, lane: Lane, row: Exchange) -> None:
        """Returns when the row is durable. Never raises: an answer is not withheld because it
        cannot be written down, but the loss is counted."""
        started = time.perf_counter()
        try:
            outcome: str = await self._store.append([row])
        except StoreError as error:
            outcome = "lost"
            logger.error("exchange lost", extra={"request_id": row.id, "error": str(error)})
        metrics.exchange_write_seconds.observe(time.perf_counter() - started)
        lane.metrics.exchanges[(outcome,)].inc()

    def outlive(self, write: Coroutine[None, None, None]) -> asyncio.Future[None]:
        """Start a write that goes on also where whoever awaits it is cancelled."""
        task = asyncio.ensure_future(write)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return asyncio.shield(task)

    async def drain(self) -> None:
        while self._writes:
            await asyncio.wait(self._writes)

    async def hear(self, lane: Lane, bundle: str | None) -> None:
        """An audit of that bundle is in the database: let the alarms have it at once. Never raises;
        while the database is away they have it later."""
        live = lane.of_bundle(bundle)
        if live is None:
            return
        subject = certificates.subject_of(self._config, lane, live)
        try:
            await certificates.audited(self._store, subject, lane)
        except StoreError as error:
            extra = {"task": lane.task.name, "error": str(error)}
            logger.warning("audits not heard yet", extra=extra)

    def enter(self, line: Line) -> None:
        """Into the ledger, soon; never waits."""
        self._store.enqueue(line)

    def close(self, trip: Trip, sink: Sink) -> None:
        """The request is over, one way or the other."""
        ended = time.perf_counter()
        trip.status = trip.status or sink.status or 500
        lane, decision, incoming = trip.lane, trip.decision, trip.incoming
        route, reason = decision.route.value, decision.reason.value
        children = lane.metrics
        duration_s = ended - incoming.arrived
        stream = "true" if trip.chat.stream else "false"
        children.requests[(route, reason, str(trip.status), stream)].inc()
        children.seconds[(route,)].observe(duration_s)
        children.overhead.observe(max(0.0, duration_s - incoming.waited_s))
        if trip.chat.stream and sink.first_byte_at is not None:
            children.first_token[(route,)].observe(sink.first_byte_at - incoming.arrived)
        if decision.score is not None and decision.score >= 0.0:  # else: may never be served
            children.score.observe(decision.score)
        if decision.p_ood is not None:
            children.p_ood.observe(decision.p_ood)
        self._count_money(trip)
        if incoming.tokens_held is not None and (used := trip.usage) is not None:
            incoming.tokens = 0 if trip.cached is not None else used.prompt + used.completion
        self.enter(trip.line(sink.first_byte_at))
        logger.info(
            "answered",
            extra={
                "request_id": incoming.id,
                "task": lane.task.name,
                "route": route,
                "reason": reason,
                "check": trip.check,
                "status": trip.status,
                "score": decision.score,
                "p_ood": decision.p_ood,
                "bundle": None if trip.live is None else trip.live.bundle.id,
                "duration_ms": round(duration_s * 1000, 3),
            },
        )

    def _count_money(self, trip: Trip) -> None:
        children = trip.lane.metrics
        draft, spent = trip.draft, trip.spent
        if spent is not None:
            children.wasted[("stopped",)].inc(spent.tokens)
        elif draft is not None and trip.decision.reason in ESCALATED:
            children.wasted[("whole",)].inc(len(draft.answer.tokens))
        given = draft or spent
        for who, usage in (
            (Route.STUDENT.value, None if given is None else given.usage),
            (Route.TEACHER.value, trip.teacher_usage),
        ):
            if usage is not None:
                children.tokens[(who, "input")].inc(usage.prompt)
                children.tokens[(who, "output")].inc(usage.completion)
        student_usd, teacher_usd = trip.student_usd, trip.teacher_usd
        if student_usd is None:
            children.unknown[Route.STUDENT.value].inc()
        elif student_usd:
            children.cost[(Route.STUDENT.value,)].inc(student_usd)
        if trip.charged:
            if teacher_usd is None:
                children.unknown[Route.TEACHER.value].inc()
            elif teacher_usd:
                children.cost[(Route.TEACHER.value,)].inc(teacher_usd)
        elif trip.status >= 400 or (draft is None and trip.cached is None):
            return
        elif student_usd is not None and teacher_usd is not None:
            # a counter cannot fall; a student dearer than its teacher shows in the ledger
            children.avoided.inc(max(0.0, teacher_usd - student_usd))
