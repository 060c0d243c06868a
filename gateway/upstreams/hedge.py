"""A second attempt beside one that is slow to begin; whoever begins first answers."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gateway import metrics
from gateway.upstreams.retries import Bucket

R = TypeVar("R")


class Hedge:
    """At most ``share`` of the requests are sent twice, each ``after_s`` after the first time."""

    def __init__(self, after_s: float, share: float) -> None:
        self._after_s = after_s
        self._bucket = Bucket(share, 1.0)
        self._ending: set[asyncio.Task[None]] = set()

    async def race(
        self,
        first: Coroutine[Any, Any, R],
        second: Callable[[], Coroutine[Any, Any, R]],
        lose: Callable[[R], Coroutine[Any, Any, None]],
    ) -> R:
        """What the first of the two returns that returns anything. The other is cancelled; where
        it had returned already, ``lose`` gets what. Raises what the first raised where both
        fail."""
        self._bucket.deposit()
        runners = [asyncio.create_task(first)]
        winner: asyncio.Task[R] | None = None
        try:
            done, running = await asyncio.wait(runners, timeout=self._after_s)
            if running and self._bucket.take():
                runners.append(asyncio.create_task(second()))
            done, running = set(), set(runners)
            while winner is None and running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                winner = next((task for task in runners if task in done and _answered(task)), None)
        finally:
            for task in runners:
                if task is not winner:
                    task.cancel()
                    task.add_done_callback(lambda task: self._end(task, lose))
        if len(runners) > 1:
            result = "failed" if winner is None else "lost" if winner is runners[0] else "won"
            metrics.hedges_total.labels("teacher", result).inc()
        return (winner or runners[0]).result()

    def _end(self, task: asyncio.Task[R], lose: Callable[[R], Coroutine[Any, Any, None]]) -> None:
        if _answered(task):
            ending = asyncio.create_task(lose(task.result()))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


def _answered(task: asyncio.Task[R]) -> bool:
    return not task.cancelled() and task.exception() is None
