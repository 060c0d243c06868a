"""The next rows of the ledger into the canary, and what follows. Every gateway tries; one of them
gets it done, as with certificates: worked out without a lock, written only if the canary still
stands where the work began.
"""

import logging
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session

from gateway import metrics
from gateway.canaries import races
from gateway.canaries.races import Watch
from gateway.canaries.rows import Row, counts, read_rows, values
from gateway.canaries.table import running_in
from gateway.config import Task
from gateway.storage import bundles
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import BundleState, Canary, CanaryState, utcnow

logger = logging.getLogger(__name__)

#: rows of one step
ROWS = 1000
#: How old a row must be: gateways' clocks differ a little, and a commit takes its time. What comes
#: later, from a spool, is not counted.
SETTLE_S = 3.0
#: an idle canary's frontier is moved on when it is so far behind, not every second
IDLE = timedelta(minutes=1)


def fold(
    store: Store,
    task: Task,
    *,
    settle_s: float = SETTLE_S,
    now: datetime | None = None,
    most: int = ROWS,
) -> tuple[Canary | None, bool]:
    """Count the next rows of the task's canary, and act. Returns the canary as it stands, None
    where none runs, and whether there may be more rows at once. Raises StoreError."""
    until = (utcnow() if now is None else now) - timedelta(seconds=settle_s)
    with refused_in_one_line(store.engine), store.session() as session:
        canary = running_in(session, task.name)
        if canary is None:
            return None, False
        rows = read_rows(session, canary, until, most)
    if not rows and until < canary.frontier_at + IDLE:
        return canary, False
    watches, requests = count(canary, rows)
    lost = races.lost(watches)
    passed = lost is None and races.passed(watches, requests, task.canary)
    last = canary.step + 1 >= len(task.canary.steps)
    with store.transaction() as session:
        if lost or (passed and last):
            # before the canary's: so does whoever changes the champion
            bundles.lock(session, canary.task)
        current = session.get(
            Canary, canary.id, with_for_update={"skip_locked": True}, populate_existing=True
        )
        if current is None or _place(current) != _place(canary):
            return canary, False  # another gateway was first
        current.frontier_at = rows[-1].at if rows else until
        current.frontier = rows[-1].id if rows else ""
        current.requests = requests
        if lost:
            _roll_back(session, current, races.why_lost(lost, watches[lost]))
        elif passed and last:
            _promote(session, current, "; ".join(races.said(*one) for one in watches.items()))
        elif passed:
            watches = races.next_step(watches)
            current.step += 1
            current.share = max(current.share, task.canary.steps[current.step])
            current.step_at, current.requests = utcnow(), 0
        current.races = races.to_dict(watches)
    _tell(current, canary.step)
    return current, len(rows) == most and current.state == CanaryState.RUNNING


def count(canary: Canary, rows: list[Row]) -> tuple[dict[str, Watch], int]:
    """The races after these rows, and the challenger's requests of the step."""
    seen: dict[str, list[races.Seen]] = {name: [] for name in races.RACES}
    requests = canary.requests
    for row in rows:
        challenger = row.bundle == canary.bundle
        requests += challenger and counts(row)
        for name, value in values(row).items():
            seen[name].append((challenger, value))
    watches = races.from_dict(canary.races)
    return {name: races.feed(watch, seen[name]) for name, watch in watches.items()}, requests


def _place(canary: Canary) -> tuple[Any, ...]:
    return canary.state, canary.frontier_at, canary.frontier


def _roll_back(session: Session, canary: Canary, why: str) -> None:
    _end(canary, CanaryState.ROLLED_BACK, why)
    bundle = bundles.known(session, canary.bundle)
    bundle.state = BundleState.REJECTED
    bundles.write_event(session, bundle, "rejected", f"canary: {why}")


def _promote(session: Session, canary: Canary, why: str) -> None:
    _end(canary, CanaryState.PROMOTED, why)
    session.flush()
    bundle = bundles.known(session, canary.bundle)
    champion = bundles.champion_in(session, canary.task)
    bundles.replace_champion(session, champion, bundle, "retired", f"for {bundle.id}")
    bundles.write_event(session, bundle, "promoted", f"canary: {why}")


def _end(canary: Canary, state: CanaryState, why: str) -> None:
    canary.state, canary.reason, canary.ended_at = state, why, utcnow()


def _tell(canary: Canary, step: int) -> None:
    extra: dict[str, Any] = {"task": canary.task, "bundle": canary.bundle}
    if canary.state == CanaryState.ROLLED_BACK:
        logger.error("canary rolled back", extra=extra | {"why": canary.reason})
    elif canary.state == CanaryState.PROMOTED:
        logger.info("canary promoted", extra=extra | {"why": canary.reason})
    elif canary.step != step:
        logger.info("canary goes on", extra=extra | {"share": canary.share})
    if canary.state != CanaryState.RUNNING:
        metrics.canary_ended_total.labels(canary.task, str(canary.state)).inc()
