"""The charts of a replay, described once: `replay_page` draws them as SVG, `replay_png` as PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrain.replay import THRESHOLDS, Curve, Doubles, Point

#: Values of an axis: a share of 1, dollars, milliseconds, or a probability on a scale of its odds.
Unit = Literal["share", "usd", "ms", "odds"]
#: More points than this a line has not.
POINTS = 160
#: Points with a text to read.
DOTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point with a text; ``marked``: drawn large."""

    x: float
    y: float
    text: str
    marked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``colour``: which of the series colours. ``band``: (x, low, high). ``dots`` alone, without
    ``points``, are drawn with the whiskers of ``band``."""

    name: str
    colour: int
    points: tuple[tuple[float, float], ...] = ()
    band: tuple[tuple[float, float, float], ...] = ()
    dots: tuple[Dot, ...] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """``level``: a horizontal line with its name."""

    title: str
    x_name: str
    y_name: str
    x_unit: Unit
    y_unit: Unit
    lines: tuple[Line, ...]
    level: tuple[float, str] | None = None

    def range(self, axis: Literal["x", "y"]) -> tuple[float, float]:
        """What is shown: from 0 up, or for dollars and milliseconds around the values."""
        at = 0 if axis == "x" else 1
        unit = self.x_unit if axis == "x" else self.y_unit
        values = [p[at] for line in self.lines for p in line.points]
        values += [(dot.x, dot.y)[at] for line in self.lines for dot in line.dots]
        if axis == "y":
            solid = [line for line in self.lines if not line.dashed]
            values = [p[1] for line in solid for p in line.points]
            values += [dot.y for line in solid for dot in line.dots]
            values += [high for line in solid for _, _, high in line.band]
            if self.level is not None:
                values.append(1.15 * self.level[0])
        if unit == "odds":
            return 0.05, 0.9999
        top = max(values, default=1.0) or 1.0
        if unit == "share" and (axis == "x" or min(values, default=0.0) < 0.5):
            return 0.0, min(1.0, 1.05 * top)
        low = min(values, default=0.0)
        if unit == "share":
            room = 0.04 * (1.0 - low) + 0.002
            return max(0.0, low - room), 1.0 + room
        return (0.0, 1.08 * top) if unit == "ms" else (max(0.0, low * 0.9), top * 1.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One curve with its name; ``certified``: thresholds with what certifies them;
    ``probable``: the score is meant as a probability."""

    name: str
    curve: Curve
    probable: bool = True
    certified: tuple[tuple[float, str], ...] = ()


def charts(subjects: Sequence[Subject], alpha: float) -> list[Chart]:
    """Those that can be drawn of what is known."""
    found = [_deferral(subjects, alpha)]
    if any(subject.curve.teacher_usd is not None for subject in subjects):
        found.append(_cost(subjects))
    if any(np.isfinite(subject.curve.p95_ms).any() for subject in subjects):
        found.append(_latency(subjects))
    probable = [subject for subject in subjects if subject.probable]
    return [*found, _reliability(probable)] if probable else found


def told(point: Point, what: str = "") -> str:
    """A point in one line."""
    parts = [
        f"threshold {point.threshold:.4g}" + (f" ({what})" if what else ""),
        f"coverage {point.coverage.value:.1%} "
        f"[{point.coverage.low:.1%}, {point.coverage.high:.1%}]",
        f"disagreement {point.disagreement.value:.2%} "
        f"[{point.disagreement.low:.2%}, {point.disagreement.high:.2%}]",
    ]
    if point.usd is not None:
        parts.append(f"${point.usd:.2f} per 1,000")
    if point.p50_ms is not None and point.p95_ms is not None:
        parts.append(f"p50 {point.p50_ms:.0f} ms, p95 {point.p95_ms:.0f} ms")
    return ", ".join(parts)


def odds(probability: float) -> float:
    """Its logarithmic odds, within what a chart shows."""
    kept = min(0.9999, max(0.05, probability))
    return math.log(kept / (1.0 - kept))


def steps(curve: Curve) -> list[int]:
    """The thresholds where the coverage changes, thinned out evenly."""
    coverage = curve.coverage
    places = np.flatnonzero(np.diff(coverage, prepend=0.0) > 0.0)
    if len(places) > POINTS:
        wanted = np.linspace(coverage[places[0]], coverage[places[-1]], POINTS)
        places = np.unique(np.searchsorted(coverage, wanted).clip(0, len(THRESHOLDS) - 1))
    return [int(place) for place in places]


def _xy(x: Doubles, y: Doubles, places: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """Without what is unknown."""
    return tuple(
        (float(x[place]), float(y[place]))
        for place in places
        if np.isfinite(x[place]) and np.isfinite(y[place])
    )


def _marks(subject: Subject) -> list[tuple[Point, str]]:
    """The certified points, and others by the way; strictest first."""
    named = {subject.curve.at(threshold): what for threshold, what in subject.certified}
    others = {point: "" for point in subject.curve.spread(DOTS) if point not in named}
    return sorted([*others.items(), *named.items()], key=lambda item: -item[0].threshold)


def _deferral(subjects: Sequence[Subject], alpha: float) -> Chart:
    lines = []
    for at, subject in enumerate(subjects):
        curve, places = subject.curve, steps(subject.curve)
        lines.append(
            Line(
                name=subject.name,
                colour=at,
                points=_xy(curve.coverage, curve.disagreement, places),
                band=tuple(
                    (float(x), float(low), float(high))
                    for x, low, high in zip(
                        curve.coverage[places],
                        curve.disagreement_low[places],
                        curve.disagreement_high[places],
                        strict=True,
                    )
                ),
                dots=tuple(
                    Dot(
                        x=point.coverage.value,
                        y=point.disagreement.value,
                        text=told(point, what),
                        marked=bool(what),
                    )
                    for point, what in _marks(subject)
                ),
            )
        )
    first = subjects[0].curve
    whole = (first.servable, first.servable * first.mean_loss)
    lines.append(Line(name="random", colour=8, points=((0.0, 0.0), whole), dashed=True))
    lines.append(Line(name="oracle", colour=9, points=first.oracle, dashed=True))
    return Chart(
        title="Quality: what is served, and how much of it disagrees with the teacher",
        x_name="coverage: share the student serves",
        y_name="disagreement, over all requests",
        x_unit="share",
        y_unit="share",
        lines=tuple(lines),
        level=(alpha, f"contract {alpha:.1%}"),
    )


def _cost(subjects: Sequence[Subject]) -> Chart:
    lines = []
    for at, subject in enumerate(subjects):
        curve = subject.curve
        if curve.teacher_usd is None:
            continue
        lines.append(
            Line(
                name=subject.name,
                colour=at,
                points=_xy(curve.usd, 1.0 - curve.disagreement, steps(curve)),
                dots=tuple(
                    Dot(
                        x=point.usd,
                        y=1.0 - point.disagreement.value,
                        text=told(point, what),
                        marked=bool(what),
                    )
                    for point, what in _marks(subject)
                    if point.usd is not None
                ),
            )
        )
    alone = subjects[0].curve.teacher_usd
    if alone is not None:
        text = f"the teacher alone: ${alone:.2f} per 1,000"
        dot = Dot(x=alone, y=1.0, text=text, marked=True)
        lines.append(Line(name="teacher alone", colour=3, dots=(dot,)))
    return Chart(
        title="Cost: dollars per 1,000 requests, audits included, and agreement",
        x_name="dollars per 1,000 requests",
        y_name="agreement with the teacher",
        x_unit="usd",
        y_unit="share",
        lines=tuple(lines),
    )


def _latency(subjects: Sequence[Subject]) -> Chart:
    lines = []
    for at, subject in enumerate(subjects):
        curve = subject.curve
        for which, (name, values) in enumerate((("p50", curve.p50_ms), ("p95", curve.p95_ms))):
            points = _xy(curve.coverage, values, steps(curve))
            dots = tuple(
                Dot(x=point.coverage.value, y=y, text=told(point, what), marked=bool(what))
                for point, what in _marks(subject)
                if (y := (point.p50_ms, point.p95_ms)[which]) is not None
            )
            label = name if len(subjects) == 1 else f"{subject.name} {name}"
            colour = which if len(subjects) == 1 else at
            lines.append(Line(name=label, colour=colour, points=points, dots=dots))
    first = subjects[0].curve
    for name, value in (("p50", first.teacher_p50_ms), ("p95", first.teacher_p95_ms)):
        if value is not None:
            level = ((0.0, value), (first.servable, value))
            lines.append(Line(name=f"teacher {name}", colour=8, points=level, dashed=True))
    return Chart(
        title="Latency: the student's time, and the teacher's after it where it is not served",
        x_name="coverage: share the student serves",
        y_name="milliseconds",
        x_unit="share",
        y_unit="ms",
        lines=tuple(lines),
    )


def _reliability(subjects: Sequence[Subject]) -> Chart:
    lines = []
    for at, subject in enumerate(subjects):
        groups = subject.curve.groups
        lines.append(
            Line(
                name=subject.name,
                colour=at,
                band=tuple((g.score, g.agreement.low, g.agreement.high) for g in groups),
                dots=tuple(
                    Dot(
                        x=g.score,
                        y=g.agreement.value,
                        text=f"mean score {g.score:.4g}, agreement {g.agreement.value:.1%} "
                        f"[{g.agreement.low:.1%}, {g.agreement.high:.1%}], {g.labels} labels",
                        marked=True,
                    )
                    for g in groups
                ),
            )
        )
    grid = [1 / (1 + math.exp(-z / 10)) for z in range(-29, 93)]
    same = tuple((value, value) for value in grid)
    lines.append(Line(name="as it says", colour=8, points=same, dashed=True))
    return Chart(
        title="Reliability: how often drafts of a score agree with the teacher",
        x_name="score of the draft (odds)",
        y_name="agreement with the teacher",
        x_unit="odds",
        y_unit="share",
        lines=tuple(lines),
    )
