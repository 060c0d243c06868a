"""Logged requests of a task as numbers, read from the database chunk by chunk.

The ledger has every request with its score; the queue (`exchange`) those that the teacher answered
or audited, with the draft's signals. Which of both is read depends on the question: the ledger
knows the coverage of the logged score best, the signals are in the queue only.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, and_, case, func, literal, select

from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Request
from retrain.replay import Rows
from router.decision import Answer, Reason, Route
from router.kept_signals import KEPT, as_score
from router.output import OutputSpec, check
from router.threshold import REJECTED

Doubles = NDArray[np.float64]
Signal = Literal["score", "seq", "mean", "min", "first", "margin", "field_min", "length", "random"]
#: Rows read, and turned into numbers, at a time.
CHUNK = 20_000


def _values(*reasons: Reason) -> tuple[str, ...]:
    return tuple(reason.value for reason in reasons)


#: never served by any threshold: the gates before and after the score
GATED = _values(
    *(Reason.OOD, Reason.HARD, Reason.UNSUPPORTED),
    *(Reason.UNSURE_EARLY, Reason.INVALID, Reason.UNSAFE),
)
#: the score decided
SCORED = _values(Reason.TRUSTED, Reason.UNSURE)
#: the teacher answered whatever the score was; drafts of the sampled requests
WATCHED = _values(Reason.SHADOW, Reason.NOT_CERTIFIED, Reason.ALARM)
_GATED, _SERVED, _UNSURE, _WATCHED = range(4)

_request = Request.metadata.tables["request"]
_exchange = Exchange.metadata.tables["exchange"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Requests from ``since`` on and before ``until``; of these the ``limit`` newest."""

    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None


@dataclass(kw_only=True)
class Logged:
    """The rows of one bundle, as its own ``signal`` scored them. Iterate once; ``skipped`` then
    says how many rows could not be used, and why."""

    store: Store
    task: str
    bundle: str
    spec: OutputSpec
    ood_epsilon: float
    signal: Signal = "score"
    period: Period = field(default_factory=Period)
    skipped: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Rows]:
        """Raises StoreError."""
        ledger = self.signal in ("score", "random")
        statement = self._from_ledger() if ledger else self._from_queue()
        options = {"stream_results": True, "yield_per": CHUNK}
        with refused_in_one_line(self.store.engine), self.store.engine.connect() as connection:
            result = connection.execution_options(**options).execute(statement)
            for chunk in result.partitions(CHUNK):
                yield self._rows(chunk)

    def _from_ledger(self) -> Select[Any]:
        """Served rows get the loss of their audit. Of those the score did not decide, the draft's
        text says whether it could be served at all."""
        r, audit, e = _request.c, _request.alias("audit"), _exchange.c
        served = r.route == Route.STUDENT.value
        audited = and_(audit.c.id == r.id + literal("-audit"), served, r.sampled)
        texts = and_(e.id == r.id, r.reason.in_(WATCHED))
        found = _request.outerjoin(audit, audited).outerjoin(_exchange, texts)
        chosen = [r.task == self.task, r.kind == "answer", r.bundle == self.bundle]
        statement = (
            select(
                r.id,
                _kind(r),
                r.score,
                r.p_ood,
                r.sampled,
                r.propensity,
                case((served, audit.c.loss), else_=r.loss).label("loss"),
                literal(1).label("seen"),
                r.student_usd,
                func.coalesce(audit.c.teacher_usd, r.teacher_cost_usd).label("teacher_usd"),
                r.student_ms,
                case((served, audit.c.teacher_ms), else_=r.teacher_ms).label("teacher_ms"),
                e.student_text,
                e.check,
                literal(None).label("signal"),
            )
            .select_from(found)
            .where(*chosen, *within(r, self.period), r.reason.in_((*GATED, *SCORED, *WATCHED)))
        )
        return _newest(statement, _request, chosen, self.period)

    def _from_queue(self) -> Select[Any]:
        r, audit, e = _request.alias("answer"), _request.alias("audit"), _exchange.c
        served = e.route == Route.STUDENT.value
        found = _exchange.outerjoin(r, r.c.id == e.id).outerjoin(
            audit, and_(audit.c.id == e.id + literal("-audit"), served)
        )
        chosen = [e.task == self.task, e.bundle == self.bundle]
        signal = func.length(e.prompt) if self.signal == "length" else e.signals
        statement = (
            select(
                e.id,
                _kind(e),
                e.score,
                e.p_ood,
                # an audit's part that does not depend on the draft is the queue's; the whole counts
                func.coalesce(r.c.sampled, e.sampled).label("sampled"),
                func.coalesce(r.c.propensity, e.propensity).label("propensity"),
                e.loss,
                e.seen,
                r.c.student_usd,
                func.coalesce(audit.c.teacher_usd, r.c.teacher_cost_usd).label("teacher_usd"),
                r.c.student_ms,
                case((served, audit.c.teacher_ms), else_=r.c.teacher_ms).label("teacher_ms"),
                e.student_text,
                e.check,
                signal.label("signal"),
            )
            .select_from(found)
            .where(*chosen, *within(e, self.period), e.reason.in_((*GATED, *SCORED, *WATCHED)))
        )
        return _newest(statement, _exchange, chosen, self.period)

    def _rows(self, chunk: Sequence[Any]) -> Rows:
        columns = list(zip(*chunk, strict=True))
        (ids, kinds, scores, p_oods, samples, propensities, losses, seen) = columns[:8]
        kind = np.asarray(kinds)
        score, p_ood, propensity, loss, times = map(
            numbers, (scores, p_oods, propensities, losses, seen)
        )
        student_usd, teacher_usd, student_ms, teacher_ms = map(numbers, columns[8:12])
        gated, served, watched = kind == _GATED, kind == _SERVED, kind == _WATCHED
        gated |= watched & (p_ood <= self.ood_epsilon)
        gated |= watched & self._broken(watched, columns[12], columns[13])
        score = np.where(gated, REJECTED, self._signal(ids, score, columns[14]))
        drawn = np.asarray(samples, dtype=bool) & (propensity > 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            stands_for = np.where(drawn, 1.0 / propensity, 0.0)
        # what was not sampled stands for nothing where drafts were made of sampled requests only
        in_queue = self.signal not in ("score", "random")
        weight = np.where(watched | (served & in_queue), stands_for, 1.0) * times
        # no chance to see a loss: no evidence of either kind (an audit budget that was spent)
        blind = ~gated & ~(propensity > 0.0)
        weight[blind] = 0.0
        label = np.where(served & ~gated, stands_for * times, weight)
        missing = "no signals kept" if self.signal in KEPT else "no draft"
        self.skipped["not to be sampled"] += int(blind.sum())
        self.skipped[missing] += int((~blind & np.isnan(score) & (weight > 0.0)).sum())
        self.skipped["a score that is not finite"] += int(np.isinf(score).sum())
        used = np.isfinite(score) & (weight > 0.0)
        loss[~((loss >= 0.0) & (loss <= 1.0))] = np.nan
        student_ms[np.isnan(student_ms) & gated] = 0.0
        return Rows(
            score=np.minimum(score, 1.0)[used],
            weight=weight[used],
            loss=loss[used],
            label_weight=label[used],
            audited=served[used],
            student_usd=student_usd[used],
            teacher_usd=teacher_usd[used],
            student_ms=student_ms[used],
            teacher_ms=teacher_ms[used],
        )

    def _signal(self, ids: Sequence[str], score: Doubles, kept: Sequence[Any]) -> Doubles:
        """NaN where the draft has none."""
        match self.signal:
            case "score":
                return score
            case "random":
                return np.where(np.isnan(score), np.nan, numbers(map(coin, ids)))
            case "length":
                # shorter is surer; without its draft there is nothing to serve
                return np.where(np.isnan(score), np.nan, 1.0 / (1.0 + numbers(kept)))
        return numbers([as_score(self.signal, value) for value in kept])

    def _broken(
        self, watched: NDArray[np.bool_], texts: Sequence[Any], checks: Sequence[Any]
    ) -> NDArray[np.bool_]:
        """Drafts made beside the teacher that break the output rules or failed a check."""
        broken = np.zeros(len(watched), dtype=bool)
        for at in np.flatnonzero(watched).tolist():
            text = texts[at]
            broken[at] = checks[at] is not None or (
                text is not None and check(self.spec, Answer(text=text)) is not None
            )
        return broken


def _kind(columns: Any) -> Any:
    """One small number in place of route and reason."""
    return case(
        (columns.reason.in_(GATED), _GATED),
        (columns.reason.in_(WATCHED), _WATCHED),
        (columns.route == Route.STUDENT.value, _SERVED),
        else_=_UNSURE,
    ).label("kind")


def within(columns: Any, period: Period) -> list[Any]:
    """The conditions of a period."""
    found = []
    if period.since is not None:
        found.append(columns.at >= period.since)
    if period.until is not None:
        found.append(columns.at < period.until)
    return found


def _newest(statement: Select[Any], table: Any, chosen: list[Any], period: Period) -> Select[Any]:
    if period.limit is None:
        return statement
    ids = (
        select(table.c.id)
        .where(*chosen, *within(table.c, period))
        .where(table.c.reason.in_((*GATED, *SCORED, *WATCHED)))
        .order_by(table.c.at.desc(), table.c.id.desc())
        .limit(period.limit)
    )
    return statement.where(table.c.id.in_(ids))


def coin(id: str) -> float:
    """A number in [0, 1) that says nothing of the request."""
    return zlib.crc32(id.encode()) / 2**32


def numbers(values: Iterable[Any]) -> Doubles:
    """NaN for null."""
    return np.array(list(values), dtype=np.float64)
