"""What another threshold would have done with logged traffic: the curve, from arrays of numbers.

A request's score is known whether it was served or not; what its draft was worth is known of the
drafts that the teacher answered after all (all of them) and of the audited ones (drawn with a
logged probability pi, so each stands for 1/pi of its kind). For each threshold t of `GRID`:

    coverage(t)      the weighted share of requests with score >= t
    disagreement(t)  the weighted mean of 1{score >= t} * loss, over *all* requests

The interval describes the logged traffic at one threshold, at the 95 % level. It is no certificate:
looked at for many thresholds, or again and again, it promises nothing (`router/threshold.py`,
docs/replay.md). How it comes about: `retrain/replay_tally.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.threshold import GRID

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

THRESHOLDS: Doubles = np.asarray(GRID)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Logged requests as columns. ``score``: REJECTED where no threshold would serve it.
    ``weight``: how many requests of the traffic it stands for. ``loss``: NaN where unknown.
    ``label_weight``: the same as ``weight``, among the requests that the teacher answered; 0 where
    it was not to answer. ``audited``: the student was served, so the label is an audit's. Dollars
    and milliseconds: NaN where unknown, 0 where the student was not asked; of the teacher, what it
    took or would have taken."""

    score: Doubles
    weight: Doubles
    loss: Doubles
    label_weight: Doubles
    audited: Flags
    student_usd: Doubles
    teacher_usd: Doubles
    student_ms: Doubles
    teacher_ms: Doubles

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """At one threshold, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One threshold. Dollars per 1,000 requests and milliseconds are None where unknown.
    ``saved``: against the teacher alone; negative where it costs more."""

    threshold: float
    coverage: Share
    disagreement: Share
    usd: float | None
    saved: float | None
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Drafts of similar scores: the mean score, and how often they agree with the teacher."""

    score: float
    agreement: Share
    labels: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Everything by threshold of `THRESHOLDS`, strictest first. ``rows`` were used, ``labels`` of
    them with a known loss, ``audits`` of those by audit; ``answered``: share of the labels due
    that became known. ``servable``: share of the requests with a draft that may be served, with
    its ``mean_loss``. ``oracle``: (coverage, disagreement) of a score that knows the loss."""

    coverage: Doubles
    coverage_low: Doubles
    coverage_high: Doubles
    disagreement: Doubles
    disagreement_low: Doubles
    disagreement_high: Doubles
    usd: Doubles
    p50_ms: Doubles
    p95_ms: Doubles
    teacher_usd: float | None
    teacher_p50_ms: float | None
    teacher_p95_ms: float | None
    rows: int
    labels: int
    audits: int
    answered: float
    unpriced: int
    servable: float
    mean_loss: float
    apgr: float
    oracle: tuple[tuple[float, float], ...]
    groups: tuple[Group, ...]

    def at(self, threshold: float) -> Point:
        """The point of the grid that serves what ``threshold`` serves, or the next stricter one.
        Over 1 nothing is served."""
        place = _place(threshold)
        if place is None:
            nothing = Share(value=0.0, low=0.0, high=0.0)
            return Point(
                threshold=threshold,
                coverage=nothing,
                disagreement=nothing,
                usd=self.teacher_usd,
                saved=None if self.teacher_usd is None else 0.0,
                p50_ms=self.teacher_p50_ms,
                p95_ms=self.teacher_p95_ms,
            )
        return self.point(place)

    def point(self, place: int) -> Point:
        usd = known(self.usd[place])
        alone = self.teacher_usd
        return Point(
            threshold=float(THRESHOLDS[place]),
            coverage=Share(
                value=float(self.coverage[place]),
                low=float(self.coverage_low[place]),
                high=float(self.coverage_high[place]),
            ),
            disagreement=Share(
                value=float(self.disagreement[place]),
                low=float(self.disagreement_low[place]),
                high=float(self.disagreement_high[place]),
            ),
            usd=usd,
            saved=None if usd is None or alone is None else alone - usd,
            p50_ms=known(self.p50_ms[place]),
            p95_ms=known(self.p95_ms[place]),
        )

    def spread(self, count: int, keep: Iterable[float] = ()) -> list[Point]:
        """About ``count`` points at even steps of coverage, and those of ``keep``, strictest
        first."""
        most = float(self.coverage[-1])
        steps = np.searchsorted(self.coverage, np.linspace(0.0, most, count + 1)[1:])
        places = {min(int(step), len(THRESHOLDS) - 1) for step in steps}
        places |= {place for value in keep if (place := _place(value)) is not None}
        return [self.point(place) for place in sorted(places)]

    def laxest(self, alpha: float) -> Point | None:
        """The point that serves most with the interval of its disagreement under ``alpha``."""
        fits = (self.disagreement_high <= alpha) & (self.coverage > 0.0)
        over = np.flatnonzero(~fits & (self.coverage > 0.0))
        fits[over[0] if len(over) else len(fits) :] = False
        return self.point(int(np.flatnonzero(fits)[-1])) if fits.any() else None


def _place(threshold: float) -> int | None:
    """The laxest point of the grid that is not laxer; None over 1."""
    at = int(np.searchsorted(-THRESHOLDS, -threshold * (1.0 - 1e-12), side="right")) - 1
    return at if at >= 0 else None


def known(value: float) -> float | None:
    """None for NaN."""
    return float(value) if np.isfinite(value) else None
