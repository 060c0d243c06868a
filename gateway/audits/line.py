"""The audits of one task in one gateway that are promised and not made."""

import asyncio
import logging

from gateway.lane import Lane
from gateway.storage.promise import Promise

logger = logging.getLogger(__name__)


class WaitingLine:
    """``ready`` are due; the others of ``waiting`` are being made, or pause after a failure."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.ready: asyncio.Queue[Promise] = asyncio.Queue()
        self.waiting: dict[str, Promise] = {}
        #: what the next audit must find in the budgets for sampling to go on
        self.needs_usd: float | None = None
        self._pauses: dict[str, asyncio.TimerHandle] = {}

    def add(self, promise: Promise) -> None:
        self.waiting[promise.id] = promise
        self.ready.put_nowait(promise)
        self._look()

    def later(self, promise: Promise, pause_s: float) -> None:
        """Try it again after a pause."""
        loop = asyncio.get_running_loop()
        self._pauses[promise.id] = loop.call_later(pause_s, self._due, promise)

    def _due(self, promise: Promise) -> None:
        del self._pauses[promise.id]
        self.ready.put_nowait(promise)

    def end(self, promise: Promise) -> None:
        """It is written down."""
        self.waiting.pop(promise.id, None)
        self._look()

    def _look(self) -> None:
        """A full line promises nothing more until half of it is made: it does not open and close
        with every request, and what waits is not always the longest line."""
        most, sampling = self.lane.task.audit.max_waiting, self.lane.sampling
        if len(self.waiting) >= most and sampling.closed is None:
            sampling.closed = "line"
            logger.warning("audits: the line is full", extra={"task": self.lane.task.name})
        elif len(self.waiting) <= most // 2 and sampling.closed == "line":
            sampling.closed = None

    def close(self) -> None:
        for pause in self._pauses.values():
            pause.cancel()
        self._pauses.clear()
