"""From the queue to usable rows: lease what was captured, judge it, settle where it belongs.

Rows are leased, judged in memory and settled in one transaction. If the process dies in
between, the leases run out and the next harvest finds the rows as they were: nothing is lost, and
nothing is counted twice.
"""

from dataclasses import dataclass, field

from sqlmodel import col, func, select

from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, DatasetRow, Exchange, State
from retrain.curate import conversation, curate, right_answer
from retrain.splits import split_of
from router.output import OutputSpec

#: Rows leased at a time.
BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """``leased`` rows and where they went; ``waiting``: usable rows, of this and earlier harvests,
    of which no bundle was made yet."""

    leased: int
    trainable: int
    held_out: int
    rejected: dict[str, int] = field(default_factory=dict)
    waiting: int = 0


def harvest(store: Store, task: str, spec: OutputSpec, *, owner: str, lease_s: float) -> Harvest:
    """Take all captured exchanges of the task that have a teacher's answer, or a correction."""
    _take_back(store, task, owner)
    rows = _lease(store, task, owner, lease_s)
    curated = curate(rows, spec, _known(store, task))
    trainable = [row.id for row in curated.kept if split_of(row.group_key) == "train"]
    held_out = [row.id for row in curated.kept if split_of(row.group_key) != "train"]
    with store.transaction() as session:
        exchanges.move_in(session, trainable, State.TRAINABLE, owner=owner)
        exchanges.move_in(session, held_out, State.HELD_OUT, owner=owner)
        for reason in curated.counts:
            ids = [row.id for row, why in curated.rejected if why == reason]
            exchanges.move_in(session, ids, State.REJECTED, reason, owner=owner)
    return Harvest(
        leased=len(rows),
        trainable=len(trainable),
        held_out=len(held_out),
        rejected=curated.counts,
        waiting=_waiting(store, task),
    )


def _lease(store: Store, task: str, owner: str, lease_s: float) -> list[Exchange]:
    rows: list[Exchange] = []
    unanswered: list[str] = []
    while True:
        batch = exchanges.claim(store, task, [State.CAPTURED], BATCH, owner, lease_s)
        rows += [row for row in batch if right_answer(row) is not None]
        unanswered += [row.id for row in batch if right_answer(row) is None]
        if len(batch) < BATCH:
            break
    exchanges.release(store, unanswered, owner)  # they may still get their answer
    return rows


def _take_back(store: Store, task: str, owner: str) -> None:
    """The same run, started again after it died, need not wait for its own leases to end."""
    with store.session() as session:
        ids = session.exec(
            select(Exchange.id).where(
                Exchange.task == task,
                Exchange.lease_owner == owner,
                Exchange.state == State.CAPTURED,
            )
        ).all()
    exchanges.release(store, ids, owner)


def _known(store: Store, task: str) -> list[tuple[str, str]]:
    """What was asked and answered in the training rows there are already."""
    states = (State.TRAINABLE, State.IN_DATASET)
    with store.session() as session:
        rows = session.exec(
            select(Exchange).where(Exchange.task == task, col(Exchange.state).in_(states))
        )
        return [
            (conversation(row), right_answer(row) or "")
            for row in rows
            if split_of(row.group_key) == "train"
        ]


def _waiting(store: Store, task: str) -> int:
    """Usable rows that no student was trained or tested on yet. A night that failed half-way, with
    its dataset frozen, has used up nothing, nor has a router fitted anew (it has no run)."""
    used = (
        select(DatasetRow.exchange_id)
        .join(Bundle, col(Bundle.dataset_id) == col(DatasetRow.dataset_id))
        .where(Bundle.task == task, col(Bundle.run_id).is_not(None))
    )
    with store.session() as session:
        return session.exec(
            select(func.count())
            .select_from(Exchange)
            .where(
                Exchange.task == task,
                col(Exchange.state).in_((State.TRAINABLE, State.HELD_OUT, State.IN_DATASET)),
                col(Exchange.id).not_in(used),
            )
        ).one()
