"""Work for the database from many requests, done together: whatever comes while one round trip is
under way shares the next. An idle gateway makes one small trip at once, a busy one few large ones.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: items of one trip
MOST = 200


class Batches(Generic[Item, Result]):
    """``work`` is called with some items, in a thread of its own, never twice at once, and returns
    a result for each. What it raises, each of them raises."""

    def __init__(self, name: str, work: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    def send(self, item: Item) -> asyncio.Future[Result]:
        """Await it, or not. Cancelling does not take the item back."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            try:
                results = await loop.run_in_executor(
                    self._thread, self._work, [item for item, _ in batch]
                )
            except Exception as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                        done.exception()  # whoever does not await it need not hear of it
            else:
                for (_, done), result in zip(batch, results, strict=True):
                    if not done.done():
                        done.set_result(result)
        self._running = None

    async def close(self, wait_s: float) -> None:
        """Finish what is under way, within ``wait_s``."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=wait_s)
        self._thread.shutdown(wait=False, cancel_futures=True)
