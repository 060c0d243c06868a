"""Rows of the ledger as the certificate sees them: who is counted, with which score and loss.

The population is every request of a task that came while a bundle was live and that its student
might have answered. What is left out must not depend on a draft's loss:

- ``outside``: the caller chose the route, a stored answer was repeated, the student was down, the
  teacher was (nobody learns what it would have said), or nothing was observable because audits were
  switched off (propensity 0);
- ``unseen``: the teacher answered everything and no draft was made, or it came too late;
- ``late``: the row was written so long after its request that the frontier may have passed it.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlmodel import Session, col, select

from gateway.storage.pending import audit_id
from gateway.storage.tables import Request
from router.certificate import Outcome
from router.decision import Reason
from router.threshold import REJECTED

#: The draft could never be served, whatever the threshold: no loss, and part of the population.
NEVER_SERVED = frozenset(
    {
        Reason.INVALID,
        Reason.UNSAFE,
        Reason.OOD,
        Reason.HARD,
        Reason.UNSUPPORTED,
        Reason.UNSURE_EARLY,
    }
)
#: The teacher answered, so the loss of the draft is known for free.
FREE = frozenset({Reason.UNSURE, Reason.SHADOW, Reason.NOT_CERTIFIED, Reason.ALARM})
#: Of those: nothing was served at the time, so no loss was to be observed by chance.
UNSERVED = frozenset({Reason.SHADOW, Reason.NOT_CERTIFIED, Reason.ALARM})
#: 1, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, … down to 0.0001, upwards
LEVELS = (*(float(f"{m}e-{k}") for k in (5, 4, 3, 2) for m in (10, 15, 20, 30, 50, 70)), 1.0)


class Left(StrEnum):
    """Why a row is not counted; WAIT: not yet."""

    OUTSIDE = "outside"
    UNSEEN = "unseen"
    LATE = "late"
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is read of a request."""

    id: str
    at: datetime
    reason: str
    status: int
    score: float | None
    p_ood: float | None
    sampled: bool
    propensity: float | None
    least: float | None
    guess: float | None
    loss: float | None
    written_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is read of the audit of a served request."""

    id: str
    status: int
    loss: float | None
    written_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """``settle_s``: how long rows may take to be written; ``audit_wait_s``: how long an audit may.
    Kept with a certificate, so that it can be recomputed. Both are waited for settle_s longer: a
    gateway's clock may be off, and a commit may take its time."""

    settle_s: float
    audit_wait_s: float

    def horizon(self, now: float) -> str:
        """Every row with an id under this is there, or is late. ``now``: Unix time."""
        return bound(now - 2 * self.settle_s)


def bound(at: float) -> str:
    """Under every id of a request that comes at this Unix time or later."""
    return f"req-{max(0, math.floor(at * 1000)):012x}"


def came(row: Row) -> float:
    """When the request came, by its id; Unix time."""
    stamp = row.id.partition("-")[2][:12]
    try:
        return int(stamp, 16) / 1000
    except ValueError:
        return row.at.timestamp()


def read_rows(
    session: Session, task: str, bundle: str, after: str, until: str, limit: int
) -> list[Row]:
    """Requests with ids in (after, until], in their order."""
    statement = (
        select(*(getattr(Request, name) for name in Row.__slots__))
        .where(
            Request.task == task,
            Request.bundle == bundle,
            Request.kind == "answer",
            col(Request.id) > after,
            col(Request.id) <= until,
        )
        .order_by(col(Request.id))
        .limit(limit)
    )
    return [Row(**values._mapping) for values in session.exec(statement)]


def read_audits(session: Session, rows: Iterable[Row]) -> dict[str, Audit]:
    """The audits of these requests there are, by the request's id."""
    wanted = {audit_id(row.id): row.id for row in rows if served(row) and row.sampled}
    if not wanted:
        return {}
    statement = select(*(getattr(Request, name) for name in Audit.__slots__))
    found = session.exec(statement.where(col(Request.id).in_(list(wanted))))
    return {wanted[values.id]: Audit(**values._mapping) for values in found}


def served(row: Row) -> bool:
    return row.reason == Reason.TRUSTED


def outcome(row: Row, audit: Audit | None, window: Window, now: float) -> Outcome | Left:
    """One row. The same now and in a year: what came too late for its time stays so."""
    at = came(row)
    if row.written_at is not None and row.written_at.timestamp() > at + window.settle_s:
        return Left.LATE
    if row.status >= 400 or not row.propensity or not _plausible(row):
        return Left.OUTSIDE
    least = rounded_down(row.propensity if row.least is None else min(row.least, row.propensity))
    if row.reason in NEVER_SERVED or row.score == REJECTED:
        return Outcome(score=REJECTED, propensity=1.0, loss=0.0, least=least)
    if row.reason in FREE:
        if row.score is None:
            return Left.UNSEEN
        # a teacher that refused, or called a tool, did not say what the student said
        loss = 1.0 if row.loss is None else row.loss
        least = 1.0 if row.reason in UNSERVED else least
        return Outcome(score=row.score, propensity=1.0, loss=loss, least=least)
    if not served(row) or row.score is None:
        return Left.OUTSIDE
    found: float | None = None
    if row.sampled and row.loss is not None:
        found = row.loss  # released before its end, which broke the output rules: nobody is asked
    elif row.sampled:
        deadline = at + window.audit_wait_s
        if audit is not None and not _after(audit.written_at, deadline):
            found = 1.0 if audit.loss is None else audit.loss
        elif now > deadline + window.settle_s:
            found = 1.0
        else:
            return Left.WAIT
    return Outcome(
        score=row.score,
        propensity=row.propensity,
        loss=found,
        guess=row.guess or 0.0,
        least=least,
    )


def rounded_down(least: float) -> float:
    """To a few levels. The audit rate moves all the time, and requests of one least propensity are
    worked out together; a lower one is as valid."""
    at = bisect_right(LEVELS, least)
    return LEVELS[at - 1] if at else least


def outcomes(
    rows: Sequence[Row], audits: Mapping[str, Audit], window: Window, now: float
) -> list[tuple[Row, Outcome | Left]]:
    """One per row, up to the first that waits for its audit."""
    made: list[tuple[Row, Outcome | Left]] = []
    for row in rows:
        what = outcome(row, audits.get(row.id), window, now)
        if what is Left.WAIT:
            break
        made.append((row, what))
    return made


def _after(written_at: datetime | None, deadline: float) -> bool:
    return written_at is not None and written_at.timestamp() > deadline


def _plausible(row: Row) -> bool:
    """One broken row must not stop the certificate for ever."""
    shares = (row.propensity, row.least, row.guess, row.loss)
    if any(value is not None and not 0.0 <= value <= 1.0 for value in shares):
        return False
    return row.score is None or row.score == REJECTED or 0.0 <= row.score <= 1.0
