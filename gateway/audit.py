"""Audits: a random sample of the student's answers, checked by the teacher off the request path."""

import asyncio
import logging
import time

import orjson

from gateway.access.budgets import Budgets
from gateway.errors import GatewayError, UpstreamTimeout
from gateway.ledger import Ledger
from gateway.money.pricing import read_usage
from gateway.trip import Trip
from gateway.upstreams.chain import Chain
from gateway.wire.protocol import Body, Chat
from router.decision import Route

logger = logging.getLogger(__name__)

WAITING = 1000
WORKERS = 2


class Auditor:
    """A bounded queue and a few workers. An audit that finds no place, or no teacher, is counted
    as failed and leaves no row: the sample gets smaller, not crooked."""

    def __init__(self, teacher: Chain, ledger: Ledger, budgets: Budgets) -> None:
        self._teacher = teacher
        self._budgets = budgets
        self._ledger = ledger
        self._queue: asyncio.Queue[Trip] = asyncio.Queue(WAITING)
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    async def stop(self, drain_s: float) -> None:
        """Finish what is waiting, within ``drain_s``."""
        try:
            async with asyncio.timeout(drain_s):
                await self._queue.join()
        except TimeoutError:
            logger.warning("audits dropped at shutdown", extra={"audits": self._queue.qsize()})
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def submit(self, trip: Trip) -> None:
        try:
            self._queue.put_nowait(trip)
        except asyncio.QueueFull:
            trip.lane.metrics.audits[("failed",)].inc()

    async def _work(self) -> None:
        while True:
            trip = await self._queue.get()
            try:
                await self._audit(trip)
            except Exception:
                trip.lane.metrics.audits[("failed",)].inc()
                logger.exception("audit failed", extra={"request_id": trip.incoming.id})
            finally:
                self._queue.task_done()

    async def _audit(self, trip: Trip) -> None:
        body = teacher_body(trip.chat, trip.config.teacher.model)
        for name in ("stream", "stream_options"):
            body.pop(name, None)
        sent = self._teacher.headers(trip.incoming.headers)
        hold, asking = None, trip.asking
        started = time.perf_counter()
        try:
            # the task's budget and not the key's: the audit serves the certificate
            hold = await self._budgets.hold(trip.incoming.raw, task=trip.lane.task)
            reply = await self._teacher.ask(orjson.dumps(body), sent, asking)
        except GatewayError as error:
            if hold is not None:
                lost = asking.lost or isinstance(error, UpstreamTimeout)
                hold.settle(None if lost else 0.0)
            trip.lane.metrics.audits[("failed",)].inc()
            extra = {"request_id": trip.incoming.id, "error": str(error)}
            logger.warning("audit failed", extra=extra)
            return
        trip.teacher_text = answer_text(reply.body)
        trip.teacher_model = reply.body.get("model")
        trip.teacher_usage = read_usage(reply.body.get("usage"), reply.body.get("service_tier"))
        trip.teacher_s = time.perf_counter() - started
        row = trip.exchange()
        trip.lane.estimate.learn(
            len(trip.incoming.raw), trip.teacher_text or "", trip.teacher_usage
        )
        children, line = trip.lane.metrics, trip.audit_line()
        await self._ledger.audited(trip.config, trip.lane, line)
        if hold is not None:
            hold.settle(line.teacher_usd)
        if trip.teacher_usage is not None:
            children.tokens[(Route.TEACHER.value, "input")].inc(trip.teacher_usage.prompt)
            children.tokens[(Route.TEACHER.value, "output")].inc(trip.teacher_usage.completion)
        if line.teacher_usd is None:
            children.unknown["audit"].inc()
        elif line.teacher_usd:
            children.cost[(Route.TEACHER.value,)].inc(line.teacher_usd)
        agrees = row.loss is not None and row.loss == 0
        children.audits[("agree" if agrees else "disagree",)].inc()
        children.audit_loss.inc(1.0 if row.loss is None else row.loss)
        await self._ledger.keep(trip.lane, row)


def teacher_body(chat: Chat, model: str | None) -> Body:
    """The client's body, for the teacher's model."""
    return {**chat.body, "model": model or chat.model}


def answer_text(body: Body) -> str | None:
    """The text of the first choice; None for a refusal, tool calls, or an answer cut by a
    content filter: nothing a student should learn as an answer."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("finish_reason") == "content_filter":
        return None
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) and content else None
