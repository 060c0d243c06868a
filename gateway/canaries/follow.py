"""What a gateway does with its tasks' canaries, every second: count, and send them their share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway import metrics
from gateway.canaries import races
from gateway.canaries.fold import SETTLE_S, fold
from gateway.config import Config
from gateway.errors import BundleError, RetortError
from gateway.lane import Lane, Live, Trial
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, Canary, CanaryState
from router.errors import RouterError

logger = logging.getLogger(__name__)

#: steps of folding in one round
STEPS = 5

Prepare = Callable[[Lane, Bundle], Awaitable[Live]]
#: what keeps the student's servers from answering as this bundle; None: nothing
Reconcile = Callable[[Live], Awaitable[str | None]]


async def follow(
    store: Store, config: Config, lane: Lane, prepare: Prepare, reconcile: Reconcile
) -> None:
    """Raises StoreError: the lane then keeps what it has."""
    settle_s = min(SETTLE_S, config.certificate.settle_s)
    canary, bundle = await asyncio.to_thread(_round, store, lane, settle_s)
    show(lane.task.name, canary)
    live = lane.live
    if canary is None or bundle is None or live is None or live.bundle.id != canary.champion:
        lane.canary = lane.canary_problem = None
        return
    trial = lane.canary if lane.canary is not None and lane.canary.id == canary.id else None
    try:
        challenger = await prepare(lane, bundle) if trial is None else trial.live
        problem = None if trial is None else await reconcile(challenger)
        if problem is not None:
            raise BundleError(problem)
    except (RetortError, RouterError) as error:
        # it is no fault of the bundle's that this gateway cannot reach it
        said = f"{bundle.id} gets nothing from this gateway: {error}"
        if lane.canary_problem != said:
            extra = {"task": lane.task.name, "bundle": bundle.id, "error": str(error)}
            logger.warning("canary gets nothing from this gateway", extra=extra)
        lane.canary, lane.canary_problem = None, said
        return
    if trial is None:
        extra = {"task": lane.task.name, "bundle": bundle.id, "share": f"{canary.share:g}"}
        logger.info("canary live", extra=extra)
    elif lane.canary is not None:
        challenger = lane.canary.live  # its certificate may have moved meanwhile
    lane.canary = Trial(id=canary.id, live=challenger, share=canary.share)
    lane.canary_problem = None


def _round(store: Store, lane: Lane, settle_s: float) -> tuple[Canary | None, Bundle | None]:
    """The canary that runs now, with its bundle."""
    for _ in range(STEPS):
        canary, more = fold(store, lane.task, settle_s=settle_s)
        if not more:
            break
    if canary is None or canary.state != CanaryState.RUNNING:
        return None, None
    with store.session() as session:
        return canary, session.get(Bundle, canary.bundle)


def show(task: str, canary: Canary | None) -> None:
    """Set the gauges of a task."""
    metrics.canary_share.labels(task).set(0.0 if canary is None else canary.share)
    watches = None if canary is None else races.from_dict(canary.races)
    for name in races.RACES:
        if watches is not None and watches[name].race.n:
            metrics.canary_difference.labels(task, name).set(watches[name].race.difference)
        else:
            with suppress(KeyError):
                metrics.canary_difference.remove(task, name)
