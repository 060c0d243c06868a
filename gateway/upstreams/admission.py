"""How many requests the teacher gets at once, and the line in front of it."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from math import ceil
from typing import Literal

from gateway import metrics
from gateway.errors import RateLimited

#: how much the newest stay counts in the mean
_WEIGHT = 0.1
LONGEST_RETRY_AFTER_S = 60


class Gate:
    """At most ``places`` at once; ``line`` more wait, first come first served, each at most
    ``wait_s``. Whoever finds the line full, or waits too long, is told when to come back."""

    def __init__(self, name: Literal["teacher"], places: int, line: int, wait_s: float) -> None:
        self._name = name
        self._places = self._free = places
        self._longest = line
        self._wait_s = wait_s
        self._line: deque[asyncio.Future[None]] = deque()
        self._stay_s = 1.0
        metrics.queued.labels(name).set_function(lambda: len(self._line))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Raises RateLimited."""
        if self._free:
            self._free -= 1
        else:
            await self._queue()
        entered = time.monotonic()
        try:
            yield
        finally:
            self._stay_s += _WEIGHT * (time.monotonic() - entered - self._stay_s)
            self._leave()

    async def _queue(self) -> None:
        if len(self._line) >= self._longest:
            raise self._shed("full")
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # it was given a place in the same moment: to the next
                self._leave()
            else:
                with suppress(ValueError):
                    self._line.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._shed("slow") from None
            raise

    def _leave(self) -> None:
        while self._line:
            turn = self._line.popleft()
            # whoever has just given up is still in the line
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _shed(self, why: Literal["full", "slow"]) -> RateLimited:
        metrics.shed_total.labels(self._name, why).inc()
        after_s = ceil(self._stay_s * (len(self._line) + 1) / self._places)
        return RateLimited(
            f"The {self._name} is busy with other requests of this gateway.",
            code="overloaded",
            headers={"retry-after": str(min(max(1, after_s), LONGEST_RETRY_AFTER_S))},
        )
