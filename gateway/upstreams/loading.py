"""Adapters on the replicas of the student: loaded and seen to answer, on each by itself."""

import asyncio
import logging

import aiohttp

from gateway.errors import BundleError
from gateway.storage.bundles import BundleFiles
from gateway.upstreams.adapters import answers, list_models, load_adapter
from gateway.upstreams.pool import Pool, Replica

logger = logging.getLogger(__name__)

#: how long a bundle waits for its first replica before it is called a problem; loading goes on
FIRST_S = 20.0
#: how long the loop waits for replicas beside one that serves
OTHERS_S = 0.5

Place = tuple[int, str]


class Loading:
    """A replica that hangs, or loads slowly, holds up nothing but itself."""

    def __init__(self, student: Pool) -> None:
        self._student = student
        self._running: dict[Place, asyncio.Task[None]] = {}
        self._problems: dict[Place, str] = {}

    async def first(self, files: BundleFiles) -> None:
        """Returns as soon as one replica answers under the adapter. Raises BundleError where none
        does."""
        waiting = self._start(files)
        deadline = asyncio.get_running_loop().time() + FIRST_S
        while waiting and not self.served(files):
            left_s = deadline - asyncio.get_running_loop().time()
            done, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
        if not self.served(files):
            raise BundleError(self.problem(files) or f"{files.id} is not loaded yet")
        if waiting:
            # those that are as fast are there when the bundle goes live
            await asyncio.wait(waiting, timeout=OTHERS_S)

    async def reconcile(self, files: BundleFiles) -> None:
        """Look whether every replica still has the adapter: one that restarted has none."""
        waiting = self._start(files)
        if waiting:
            await asyncio.wait(waiting, timeout=OTHERS_S)

    def complete(self, files: BundleFiles) -> bool:
        """Every replica that is up has the adapter."""
        return all(
            files.adapter in replica.ready
            for replica in self._student.replicas
            if replica.server.breaker.closed
        )

    def problem(self, files: BundleFiles) -> str | None:
        """What keeps replicas from serving the bundle, in one line."""
        several = len(self._student.replicas) > 1
        said = []
        for replica in self._student.replicas:
            place = (replica.server.replica, files.adapter)
            what = self._problems.get(place)
            if what is None and place in self._running and files.adapter not in replica.ready:
                what = f"adapter {files.adapter} is being loaded"
            if what is not None:
                said.append(f"replica {place[0]}: {what}" if several else what)
        return "; ".join(said) or None

    def max_model_len(self, files: BundleFiles) -> int | None:
        lengths = [
            replica.max_model_len
            for replica in self._student.replicas
            if replica.max_model_len is not None and files.adapter in replica.ready
        ]
        return max(lengths, default=None)

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def served(self, files: BundleFiles) -> bool:
        """Whether any replica answers under the adapter."""
        return any(files.adapter in replica.ready for replica in self._student.replicas)

    def _start(self, files: BundleFiles) -> set[asyncio.Task[None]]:
        started = set()
        for replica in self._student.replicas:
            place = (replica.server.replica, files.adapter)
            task = self._running.get(place)
            if task is None:
                task = asyncio.create_task(self._load(replica, files, place))
                self._running[place] = task
            started.add(task)
        return started

    async def _load(self, replica: Replica, files: BundleFiles, place: Place) -> None:
        try:
            async with aiohttp.ClientSession() as session:
                await make_ready(session, replica, files)
        except BundleError as error:
            self._problems[place] = str(error)
        except Exception:
            self._problems[place] = "the gateway has a bug; its log says more"
            logger.exception("loading failed", extra={"adapter": files.adapter})
        else:
            self._problems.pop(place, None)
        finally:
            del self._running[place]


async def make_ready(session: aiohttp.ClientSession, replica: Replica, files: BundleFiles) -> None:
    """The replica answers under the adapter, or is not asked for it. Raises BundleError."""
    url, adapter = replica.server.base_url, files.adapter
    models = await list_models(session, url)
    replica.max_model_len = models.max_len
    if adapter not in models.names:
        missed = adapter in replica.ready
        replica.ready.discard(adapter)
        await load_adapter(session, url, adapter, str(files.adapter_dir))
        if missed:
            extra = {"adapter": adapter, "replica": replica.server.replica}
            logger.warning("adapter reloaded", extra=extra)
    if adapter not in replica.ready:
        await answers(session, url, adapter)
        replica.ready.add(adapter)
