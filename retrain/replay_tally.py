"""Logged requests added up to a curve, chunk by chunk, into arrays of fixed size.

Two kinds of evidence: drafts that the teacher answered after all, and audits of those that were
served. Within each, the labels that are known stand for all requests of the kind (a ratio
estimate): an audit that was lost does not make the student better, and neither does a sample that
happens to be small.

The interval of a weighted share is Clopper and Pearson's with the number of equally weighted
requests that would be as sure (Korn and Graubard, 1998). The two kinds are bounded apart and put
together by their squared widths (MOVER; Zou and Donner, 2008), so that many labels of the one do
not speak for the other. With equal weights it is Clopper and Pearson's interval.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrain.replay import THRESHOLDS, Curve, Doubles, Flags, Group, Rows, Share, known

#: the level of every interval
DELTA = 0.05
_BINS = len(THRESHOLDS) + 1
#: milliseconds, 8 % apart; what is shorter or longer counts as the first or last
_EDGES: Doubles = np.geomspace(0.1, 1e7, 241)
_LOSSES = 101
#: groups of the reliability diagram
GROUPS = 10


def _zeros() -> Doubles:
    return np.zeros(_BINS)


@dataclass(slots=True, kw_only=True)
class _Evidence:
    """Sums by bin of one kind: the ``mass`` of its requests with a draft, and of those with a known
    loss the weights, their squares, the losses and the scores. ``due``: the weight of the labels
    that were to come."""

    mass: Doubles = field(default_factory=_zeros)
    due: float = 0.0
    count: int = 0
    w: Doubles = field(default_factory=_zeros)
    ww: Doubles = field(default_factory=_zeros)
    loss: Doubles = field(default_factory=_zeros)
    square: Doubles = field(default_factory=_zeros)
    crossed: Doubles = field(default_factory=_zeros)
    score: Doubles = field(default_factory=_zeros)
    losses: Doubles = field(default_factory=lambda: np.zeros(_LOSSES))

    def add(self, rows: Rows, place: NDArray[np.intp], mine: Flags) -> None:
        servable = mine & (rows.score >= 0.0)
        labelled = servable & np.isfinite(rows.loss) & (rows.label_weight > 0.0)
        w, loss, at = rows.label_weight[labelled], rows.loss[labelled], place[labelled]
        y = w * loss
        self.mass += _sum(place[servable], rows.weight[servable])
        self.due += float(rows.label_weight[servable].sum())
        self.count += int(labelled.sum())
        self.w += _sum(at, w)
        self.ww += _sum(at, w * w)
        self.loss += _sum(at, y)
        self.square += _sum(at, y * y)
        self.crossed += _sum(at, y * rows.weight[labelled])
        self.score += _sum(at, w * rows.score[labelled])
        self.losses += np.bincount(np.rint(loss * (_LOSSES - 1)).astype(np.intp), w, _LOSSES)

    @property
    def more(self) -> float:
        """How many requests of its kind a weight of 1 stands for; about 1."""
        weight = float(self.w.sum())
        return float(self.mass.sum()) / weight if weight > 0.0 else 0.0

    def for_groups(self) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        return self.w, self.more * self.ww, self.loss, self.score

    def bounded(self, total: float, squares: float) -> tuple[Doubles, Doubles, Doubles]:
        """Its part of the disagreement by threshold, with its interval. ``total`` and ``squares``:
        of the weights of all requests."""
        more = self.more
        mass, w, ww, loss, square, crossed = (
            np.cumsum(sums[:-1])
            for sums in (self.mass, self.w, self.ww, self.loss, self.square, self.crossed)
        )
        value = more * loss / total
        variance = (more**2 * square - 2 * value * more * crossed + value**2 * squares) / total**2
        with np.errstate(divide="ignore", invalid="ignore"):
            alike = np.where(ww > 0.0, total * w / (more * ww), 0.0)
            seen = np.where(variance > 0.0, value * (1.0 - value) / variance, np.inf)
        low, high = interval(value, np.minimum(alike, seen))
        # it cannot be more than is served, and without any label it may be all of that
        most = mass / total
        high = np.where(w > 0.0, np.minimum(high, np.maximum(most, value)), most)
        return value, np.minimum(low, value), np.maximum(high, value)


class Tally:
    """Rows added up. Feed it chunk by chunk, then ask for the curve."""

    def __init__(self) -> None:
        self.rows = 0
        self._mass = _zeros()
        self._squares = _zeros()
        self._evidence = (_Evidence(), _Evidence())
        self._unpriced = 0
        self._priced = _zeros()
        self._student = _zeros()
        self._teacher = _zeros()
        self._served = np.zeros((_BINS, len(_EDGES) - 1))
        self._deferred = np.zeros((_BINS, len(_EDGES) - 1))
        self._alone = np.zeros(len(_EDGES) - 1)

    def add(self, rows: Rows) -> None:
        """Raises ValueError on scores or weights that are not finite."""
        if not (np.isfinite(rows.score).all() and np.isfinite(rows.weight).all()):
            raise ValueError("scores and weights must be finite")
        # the first threshold that serves it; the last bin: none does
        place = len(THRESHOLDS) - np.searchsorted(THRESHOLDS[::-1], rows.score, side="right")
        self.rows += len(rows)
        self._mass += _sum(place, rows.weight)
        self._squares += _sum(place, rows.weight**2)
        for evidence, mine in zip(self._evidence, (~rows.audited, rows.audited), strict=True):
            evidence.add(rows, place, mine)
        self._add_costs(rows, place)
        self._add_times(rows, place)

    def _add_costs(self, rows: Rows, place: NDArray[np.intp]) -> None:
        priced = np.isfinite(rows.student_usd) & np.isfinite(rows.teacher_usd)
        at, w = place[priced], rows.weight[priced]
        self._unpriced += int((~priced).sum())
        self._priced += _sum(at, w)
        self._student += _sum(at, w * rows.student_usd[priced])
        self._teacher += _sum(at, w * rows.teacher_usd[priced])

    def _add_times(self, rows: Rows, place: NDArray[np.intp]) -> None:
        servable = (rows.score >= 0.0) & np.isfinite(rows.student_ms)
        self._served += _by_time(place[servable], rows.student_ms[servable], rows.weight[servable])
        both = rows.student_ms + rows.teacher_ms
        asked = np.isfinite(both) & (rows.label_weight > 0.0)
        self._deferred += _by_time(place[asked], both[asked], rows.label_weight[asked])
        alone = np.isfinite(rows.teacher_ms) & (rows.label_weight > 0.0)
        self._alone += np.bincount(
            _time(rows.teacher_ms[alone]), rows.label_weight[alone], len(_EDGES) - 1
        )

    def curve(self, *, audit_rate: float = 0.0, fixed_usd: float = 0.0) -> Curve:
        """``audit_rate``: share of the served answers that the teacher checks; ``fixed_usd``: what
        a request costs at any threshold (hardware by the hour). Raises ValueError where no row
        has a known loss."""
        free, audits = self._evidence
        if not free.count + audits.count:
            raise ValueError("no row with a draft whose answer by the teacher is known")
        total, squares = float(self._mass.sum()), float(self._squares.sum())
        coverage = np.cumsum(self._mass[:-1]) / total
        inside = np.cumsum(self._squares[:-1])
        variance = (inside * (1.0 - 2.0 * coverage) + coverage**2 * squares) / (total * total)
        with np.errstate(divide="ignore", invalid="ignore"):
            alike = np.where(variance > 0.0, coverage * (1.0 - coverage) / variance, np.inf)
        low, high = interval(coverage, np.minimum(alike, total * total / squares))
        parts = [evidence.bounded(total, squares) for evidence in self._evidence]
        value = parts[0][0] + parts[1][0]
        below = np.sqrt(sum(((v - lo) ** 2 for v, lo, _ in parts), np.zeros(len(value))))
        above = np.sqrt(sum(((hi - v) ** 2 for v, _, hi in parts), np.zeros(len(value))))
        servable = float(coverage[-1])
        p50, p95 = self._latencies()
        return Curve(
            coverage=coverage,
            coverage_low=np.minimum(low, coverage),
            coverage_high=np.maximum(high, coverage),
            disagreement=value,
            disagreement_low=np.maximum(value - below, 0.0),
            disagreement_high=np.minimum(value + above, np.maximum(high, value)),
            usd=self._usd(audit_rate, fixed_usd),
            p50_ms=p50,
            p95_ms=p95,
            teacher_usd=known(1000.0 * _ratio(self._teacher.sum(), self._priced.sum())),
            teacher_p50_ms=known(_quantile(self._alone[None, :], 0.5)[0]),
            teacher_p95_ms=known(_quantile(self._alone[None, :], 0.95)[0]),
            rows=self.rows,
            labels=int(free.count + audits.count),
            audits=int(audits.count),
            answered=_ratio(float(free.w.sum() + audits.w.sum()), free.due + audits.due),
            unpriced=self._unpriced,
            servable=servable,
            mean_loss=float(value[-1]) / servable if servable else 0.0,
            apgr=_apgr(coverage, value),
            oracle=self._oracle(servable),
            groups=self._groups(),
        )

    def _usd(self, audit_rate: float, fixed_usd: float) -> Doubles:
        served = np.cumsum(self._teacher[:-1])
        paid = float(self._student.sum()) + float(self._teacher.sum()) - (1 - audit_rate) * served
        priced = float(self._priced.sum())
        if priced <= 0.0:
            return np.full(len(served), np.nan)
        return 1000.0 * (paid / priced + fixed_usd)

    def _latencies(self) -> tuple[Doubles, Doubles]:
        """Those served wait for the student, the others for both; each part is scaled to the
        requests it stands for, because the teacher's time is known of some only."""
        served = np.cumsum(self._served[:-1], axis=0)
        deferred = np.cumsum(self._deferred[::-1], axis=0)[::-1][1:]
        mass, total = np.cumsum(self._mass[:-1]), float(self._mass.sum())
        least = 1e-9 * total
        both = _scaled(served, mass, least) + _scaled(deferred, total - mass, least)
        return _quantile(both, 0.5), _quantile(both, 0.95)

    def _oracle(self, servable: float) -> tuple[tuple[float, float], ...]:
        """The best there could be: drafts are served in the order of their loss."""
        losses = sum((kind.more * kind.losses for kind in self._evidence), np.zeros(_LOSSES))
        shares = losses / losses.sum() * servable
        used = np.flatnonzero(shares)
        coverage = np.cumsum(shares[used])
        harm = np.cumsum(shares[used] * used / (_LOSSES - 1))
        return ((0.0, 0.0), *zip(coverage.tolist(), harm.tolist(), strict=True))

    def _groups(self) -> tuple[Group, ...]:
        """The labelled drafts in groups of about equal weight, lowest scores first."""

        w, ww, loss, score = (
            sum(
                (kind.more * sums for kind, sums in zip(self._evidence, pair, strict=True)),
                _zeros(),
            )
            for pair in zip(*(kind.for_groups() for kind in self._evidence), strict=True)
        )
        w, ww, loss, score = (sums[:-1][::-1] for sums in (w, ww, loss, score))
        group = np.minimum((np.cumsum(w) - w / 2) / w.sum() * GROUPS, GROUPS - 1).astype(np.intp)
        found = []
        for at in range(GROUPS):
            mine = group == at
            weight = float(w[mine].sum())
            if weight <= 0.0:
                continue
            value = 1.0 - float(loss[mine].sum()) / weight
            count = weight * weight / float(ww[mine].sum())
            low, high = interval(np.array([value]), np.array([count]))
            share = Share(value=value, low=float(low[0]), high=float(high[0]))
            mean = float(score[mine].sum()) / weight
            found.append(Group(score=mean, agreement=share, labels=round(count)))
        return tuple(found)


def _sum(place: NDArray[np.intp], values: Doubles) -> Doubles:
    return np.bincount(place, values, _BINS).astype(np.float64)


def _time(ms: Doubles) -> NDArray[np.intp]:
    return np.clip(np.searchsorted(_EDGES, ms, side="right") - 1, 0, len(_EDGES) - 2)


def _by_time(place: NDArray[np.intp], ms: Doubles, weight: Doubles) -> Doubles:
    columns = len(_EDGES) - 1
    flat = np.bincount(place * columns + _time(ms), weight, _BINS * columns)
    return flat.astype(np.float64).reshape(_BINS, columns)


def _scaled(counts: Doubles, mass: Doubles, least: float) -> Doubles:
    """Rows of counts, each to sum up to its mass; NaN where there is mass and nothing counted.
    Under ``least`` a mass is what rounding left over."""
    sums = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(mass <= least, 0.0, np.where(sums > 0.0, mass / sums, np.nan))
    return counts * scale[:, None]


def _quantile(counts: Doubles, share: float) -> Doubles:
    """Of each row of counts by time, within its bin by proportion; NaN where nothing is known."""
    sums = np.cumsum(counts, axis=1)
    total = sums[:, -1]
    wanted = share * total
    at = np.minimum((sums < wanted[:, None]).sum(axis=1), counts.shape[1] - 1)
    row = np.arange(len(counts))
    inside = counts[row, at]
    before = sums[row, at] - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(inside > 0.0, (wanted - before) / inside, 0.5)
        found = _EDGES[at] * (_EDGES[at + 1] / _EDGES[at]) ** part
    return np.where(total > 0.0, found, np.nan)


def interval(share: Doubles, n: Doubles) -> tuple[Doubles, Doubles]:
    """Clopper and Pearson's, also for numbers that are not whole."""
    from scipy.stats import beta

    hits = np.clip(share, 0.0, 1.0) * n
    with np.errstate(invalid="ignore", divide="ignore"):
        low = np.where(hits > 0.0, beta.ppf(DELTA / 2, hits, n - hits + 1), 0.0)
        high = np.where(hits < n, beta.ppf(1 - DELTA / 2, hits + 1, n - hits), 1.0)
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)


def _apgr(coverage: Doubles, disagreement: Doubles) -> float:
    """The average share of the disagreement that deferring removes, over all shares of the drafts
    that may be served (0.5 is random); as `router/report.py: apgr` has it."""
    most, worst = float(coverage[-1]), float(disagreement[-1])
    if most <= 0.0 or worst <= 0.0:
        return 0.5
    kept = np.concatenate([[0.0], coverage]) / most
    harm = np.concatenate([[0.0], disagreement]) / worst
    return 1.0 - float(np.trapezoid(harm, kept))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
