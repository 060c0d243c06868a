"""From rows of the ledger to what the races see of them."""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, and_, col, or_, select

from gateway.canaries.races import FALLBACK, LOSS, TROUBLE
from gateway.storage.tables import Canary, Request
from router.decision import Reason
from router.sampler import sampled

#: the student was asked, or would have been but for its router
TRIED = frozenset(
    {
        Reason.TRUSTED,
        Reason.DEGRADED,
        Reason.UNSURE,
        Reason.UNSURE_EARLY,
        Reason.OOD,
        Reason.HARD,
        Reason.NOT_CERTIFIED,
        Reason.ALARM,
        Reason.INVALID,
        Reason.UNSAFE,
        Reason.STUDENT_ERROR,
    }
)
_TROUBLE = frozenset({Reason.INVALID, Reason.UNSAFE, Reason.STUDENT_ERROR})
#: what is left of them is trouble, and counted as that
_FALLBACK = TRIED - _TROUBLE - {Reason.TRUSTED, Reason.DEGRADED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is read of a request, or of the audit of one."""

    id: str
    at: datetime
    kind: str
    parent: str | None
    bundle: str
    reason: str
    status: int
    least: float | None
    loss: float | None


def read_rows(session: Session, canary: Canary, until: datetime, most: int) -> list[Row]:
    """Of both bundles, in the order in which they ended, after the canary's frontier."""
    after = or_(
        col(Request.at) > canary.frontier_at,
        and_(col(Request.at) == canary.frontier_at, col(Request.id) > canary.frontier),
    )
    statement = (
        select(*(getattr(Request, name) for name in Row.__slots__))
        .where(
            Request.task == canary.task,
            col(Request.at) >= canary.frontier_at,  # what the index is good for
            col(Request.at) <= until,
            after,
            col(Request.bundle).in_([canary.champion, canary.bundle]),
            col(Request.kind).in_(["answer", "audit"]),
        )
        .order_by(col(Request.at), col(Request.id))
        .limit(most)
    )
    return [Row(**values._mapping) for values in session.exec(statement)]


def counts(row: Row) -> bool:
    """A request that tells something of its bundle: not one that was forced, or from the cache."""
    return row.kind == "answer" and (row.reason in TRIED or row.reason == Reason.SHADOW)


def values(row: Row) -> dict[str, float]:
    """By race; empty where the row tells nothing."""
    found = {}
    if counts(row) and row.reason in TRIED:
        found[TROUBLE] = float(row.status >= 500 or row.reason in _TROUBLE)
        found[FALLBACK] = float(row.reason in _FALLBACK)
    loss = _loss(row)
    if loss is not None:
        found[LOSS] = loss
    return found


def _loss(row: Row) -> float | None:
    """Of requests that the uniform part of the sampling drew, before there was a draft. Their loss
    is known whether the draft was served, by its audit, or not; all losses that happen to be known
    would be mostly those of doubtful drafts, and more so the fewer a bundle serves."""
    if row.kind == "answer" and (not counts(row) or row.reason == Reason.TRUSTED):
        return None
    if row.kind == "audit" and row.reason != Reason.TRUSTED:
        return None
    # a lost audit says nothing of the draft, nor does a request without an answer
    if row.status >= 400 or row.loss is None or not 0.0 <= row.loss <= 1.0:
        return None
    request = row.id if row.kind == "answer" else row.parent or row.id
    return row.loss if row.least and sampled(request, row.least) else None
