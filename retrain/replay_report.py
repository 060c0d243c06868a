"""A replay for people and programs: the curves of the bundles and signals asked for, in words."""

from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.money.savings import usd
from retrain.replay import Point, Share
from retrain.replay_charts import Chart, Subject, charts, steps
from retrain.replay_page import page
from retrain.replay_rows import Period

#: Lines of a table, those of certified thresholds aside.
LINES = 12
NOTES = (
    "Every number describes logged traffic. An interval holds for one threshold that is looked at "
    "once; only a certificate may be acted on.",
    "Band: 95 % interval. random: a router that knows nothing; oracle: one that knows the loss. "
    "Dotted line: the contract. Large points: certified thresholds.",
    "Dollars count the drafts that were not served, and audits of those that were. Unknown prices "
    "are left out, never taken for 0.",
    "Latency is the student's time, and the teacher's after it where the draft is not served. "
    "Queues that would grow or shrink are not in it.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Subject):
    """One curve and what is to be said of it. ``held``: the certified threshold in force; None
    where none is, and where the signal is not the one the certificate speaks of."""

    bundle: str
    signal: str
    live: bool
    held: float | None
    skipped: dict[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What was asked for. ``thresholds``: to be shown in any case."""

    task: str
    alpha: float
    confidence: float
    audit_rate: float
    period: Period
    subjects: tuple[Told, ...]
    thresholds: tuple[float, ...]

    @property
    def title(self) -> str:
        return f"Replay of task {self.task}, {period_of(self.period)}"

    def charts(self) -> list[Chart]:
        return charts(self.subjects, self.alpha)

    def text(self) -> str:
        parts = [self.title]
        for subject in self.subjects:
            rows, certified = self.table(subject)
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines = [
                ("* " if at - 1 in certified else "  ")
                + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
                for at, row in enumerate(rows)
            ]
            parts.append("\n".join([*self.about(subject), "", *lines, "", *self.advice(subject)]))
        return "\n\n".join(parts)

    def html(self) -> str:
        about = [line for s in self.subjects for line in (*self.about(s), *self.advice(s))]
        tables = [(subject.name, *self.table(subject)) for subject in self.subjects]
        return page(self.title, about, self.charts(), tables, NOTES)

    def as_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "since": None if self.period.since is None else self.period.since.isoformat(),
            "until": None if self.period.until is None else self.period.until.isoformat(),
            "max_disagreement": self.alpha,
            "confidence": self.confidence,
            "audit_rate": self.audit_rate,
            "curves": [self._curve_json(subject) for subject in self.subjects],
        }

    def _curve_json(self, subject: Told) -> dict[str, Any]:
        curve = subject.curve
        chosen = [*subject.certified, *((value, "asked for") for value in self.thresholds)]
        return {
            "bundle": subject.bundle,
            "signal": subject.signal,
            "live": subject.live,
            "requests": curve.rows,
            "labels": curve.labels,
            "audits": curve.audits,
            "labels_answered": curve.answered,
            "requests_unpriced": curve.unpriced,
            "skipped": subject.skipped,
            "servable": curve.servable,
            "mean_loss": curve.mean_loss,
            "apgr": curve.apgr,
            "teacher_alone": {
                "usd": curve.teacher_usd,
                "p50_ms": curve.teacher_p50_ms,
                "p95_ms": curve.teacher_p95_ms,
            },
            "certified": subject.held,
            "marked": [{"what": what, **asdict(curve.at(value))} for value, what in chosen],
            "points": [asdict(curve.point(place)) for place in steps(curve)],
            "reliability": [asdict(group) for group in curve.groups],
            "oracle": curve.oracle,
            "sentences": [*self.about(subject), *self.advice(subject)],
        }

    def table(self, subject: Told) -> tuple[list[list[str]], frozenset[int]]:
        """The head and the rows, and which of them are certified."""
        kept = [value for value, _ in subject.certified] + list(self.thresholds)
        marks = {subject.curve.at(value).threshold for value, _ in subject.certified}
        points = subject.curve.spread(LINES, kept)
        head = ["threshold", "coverage", "disagreement", "$ per 1,000", "saved", "p50", "p95"]
        rows = [
            [
                f"{point.threshold:.6g}",
                _interval(point.coverage, 1),
                _interval(point.disagreement, 2),
                "–" if point.usd is None else usd(point.usd),
                "–" if point.saved is None else usd(point.saved),
                _time(point.p50_ms),
                _time(point.p95_ms),
            ]
            for point in points
        ]
        certified = frozenset(at for at, point in enumerate(points) if point.threshold in marks)
        return [head, *rows], certified

    def about(self, subject: Told) -> list[str]:
        """What the curve is made of, and what is lacking."""
        curve = subject.curve
        lines = [
            f"{subject.bundle} by {subject.signal}: {curve.rows:,} requests, the draft's loss "
            f"known of {curve.labels:,}, {curve.audits:,} of these by audit"
        ]
        if curve.teacher_usd is None:
            lines.append("No dollars: the price of the student or the teacher is not known.")
        elif curve.unpriced:
            lines.append(f"Dollars are without {curve.unpriced:,} requests of unknown cost.")
        if curve.answered < 0.995:
            lines.append(
                f"{1 - curve.answered:.1%} of the losses due are not known (audits pending or "
                "lost, answers that are none); the others stand for them."
            )
        lines += [f"Left out: {n:,} rows, {why}." for why, n in subject.skipped.items() if n]
        if curve.mean_loss == 0.0:
            lines.append("Every draft agrees with the teacher: there is nothing to tell apart.")
        return [*lines, *subject.remarks]

    def advice(self, subject: Told) -> list[str]:
        """One sentence on the certified threshold, and one on what is in sight."""
        curve = subject.curve
        best = curve.laxest(self.alpha)
        if subject.held is not None:
            point = curve.at(subject.held)
            lines = [f"At the certified threshold {point.threshold:.4g} {_serves(point)}."]
            if point.disagreement.low > self.alpha:
                lines.append(
                    f"That is more than the contract's {self.alpha:.1%}: this traffic is not like "
                    "the one it was certified on."
                )
            if best is not None and best.coverage.value > point.coverage.value:
                lines.append(
                    f"In hindsight {best.threshold:.4g} would have kept the contract's "
                    f"{self.alpha:.1%} as well: {_serves(best)}. That is no certificate; it comes "
                    "with more audits."
                )
            return lines
        if subject.signal == "score":
            lines = ["No threshold is certified: the teacher answers everything."]
        else:
            lines = [
                f"No certificate speaks of {subject.signal}, which ranks the drafts at "
                f"{curve.apgr:.2f} (0.5 is random)."
            ]
        if best is None:
            lines.append(f"No threshold keeps its interval under the contract's {self.alpha:.1%}.")
        else:
            lines.append(
                f"In hindsight {best.threshold:.4g} would have kept the contract's "
                f"{self.alpha:.1%}: {_serves(best)}. That is no certificate."
            )
        return lines


def _serves(point: Point) -> str:
    text = (
        f"the student serves {_interval(point.coverage, 0)} of the requests at "
        f"{_interval(point.disagreement, 1)} disagreement"
    )
    if point.saved is None:
        return text
    word = "saves" if point.saved >= 0 else "costs"
    more = "" if point.saved >= 0 else " more"
    return f"{text} and {word} {usd(abs(point.saved))}{more} per 1,000"


def _interval(share: Share, places: int) -> str:
    low, high = 100 * share.low, 100 * share.high
    return f"{100 * share.value:.{places}f} % [{low:.{places}f}, {high:.{places}f}]"


def _time(ms: float | None) -> str:
    if ms is None:
        return "–"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def period_of(period: Period) -> str:
    ends = []
    if period.since is not None:
        ends.append(f"from {period.since:%Y-%m-%d %H:%M}")
    if period.until is not None:
        ends.append(f"to {period.until:%Y-%m-%d %H:%M}")
    if period.limit is not None:
        ends.append(f"the newest {period.limit:,}")
    return " ".join(ends) or "all logged traffic"
