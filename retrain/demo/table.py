"""The demo's result: what each round did, counted, and written as one table."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.money.pricing import add
from retrain.demo.replay import Outcome
from router.decision import Reason, Route
from router.output import OutputSpec, disagreement
from router.threshold import interval

#: of the intervals in the table
CONFIDENCE = 0.95
#: Largest loss at which two free texts count as agreeing: four of five words in common.
TEXT_LOSS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One request as it went: what the client got, and what the ledger and the queue say of it.

    ``cost_usd`` includes the teacher's audit of the answer, if there was one; ``loss`` compares
    the student's draft, served or not, with the teacher's answer (None: no draft, or no answer to
    compare with).
    """

    outcome: Outcome
    teacher: str | None
    loss: float | None = None
    score: float | None = None
    p_ood: float | None = None
    cost_usd: float | None = None

    @property
    def served(self) -> bool:
        """By the student."""
        return self.outcome.route == Route.STUDENT and self.outcome.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """``hits`` of ``n``, with the exact (Clopper–Pearson) 95 % interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.hits, self.n, 1 - CONFIDENCE)

    def __str__(self) -> str:
        if not self.n:
            return "–"
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One column of the table. ``agreement`` is over all answered requests (the teacher's answers
    agree with the teacher), ``agreement_served`` over the student's; None where nothing can be
    compared. ``gold`` and ``gold_teacher`` judge system and teacher on the same requests."""

    name: str
    answered: int
    failed: int
    coverage: Share
    agreement: Share | None
    agreement_served: Share | None
    off_task_caught: Share
    off_task_wrong: int
    unseen_caught: Share
    gold: Share | None
    gold_teacher: Share | None
    p50_s: float
    p95_s: float
    first_token_s: float | None
    usd_per_1000: float | None
    reasons: Mapping[str, int]

    @property
    def asked_student(self) -> bool:
        """Whether a student could have answered at all; without one nothing was "caught"."""
        return not {*self.reasons} <= {Reason.COLLECT, Reason.NO_BUNDLE}


def summarise(name: str, played: Sequence[Played], spec: OutputSpec) -> Figures:
    """Count a round. At least one of its requests must have been answered."""
    answered = [item for item in played if item.outcome.error is None]
    served = [item for item in answered if item.served]
    compared = [item for item in answered if not item.served or item.teacher is not None]
    compared_served = [item for item in served if item.teacher is not None]
    right = [item for item in compared_served if _agrees(spec, item)]
    off_task = [item for item in answered if item.outcome.case.kind == "off_task"]
    unseen = [item for item in answered if item.outcome.case.kind == "unseen"]
    latencies = [item.outcome.latency_s for item in answered]
    firsts = [t for item in answered if (t := item.outcome.first_token_s) is not None]
    dollars = add(*(item.cost_usd for item in answered))
    return Figures(
        name=name,
        answered=len(answered),
        failed=len(played) - len(answered),
        coverage=Share(hits=len(served), n=len(answered)),
        agreement=_share(len(compared) - len(compared_served) + len(right), len(compared)),
        agreement_served=_share(len(right), len(compared_served)),
        off_task_caught=Share(hits=sum(not item.served for item in off_task), n=len(off_task)),
        off_task_wrong=sum(
            item.served and item.teacher is not None and not _agrees(spec, item)
            for item in off_task
        ),
        unseen_caught=Share(hits=sum(not item.served for item in unseen), n=len(unseen)),
        gold=_gold(spec, answered, teacher=False),
        gold_teacher=_gold(spec, answered, teacher=True),
        p50_s=statistics.median(latencies),
        p95_s=percentile(latencies, 0.95),
        first_token_s=statistics.median(firsts) if firsts else None,
        usd_per_1000=None if dollars is None else 1000 * dollars / len(answered),
        reasons=dict(Counter(item.outcome.reason for item in answered)),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that is at least as large as ``share`` of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _share(hits: int, n: int) -> Share | None:
    return Share(hits=hits, n=n) if n else None


def same(spec: OutputSpec, one: str, other: str) -> bool:
    """Whether two answers count as agreeing."""
    return disagreement(spec, one, other) <= (TEXT_LOSS if spec.kind == "text" else 0.0)


def _agrees(spec: OutputSpec, item: Played) -> bool:
    return item.teacher is not None and same(spec, item.outcome.answer, item.teacher)


def _gold(spec: OutputSpec, answered: Sequence[Played], *, teacher: bool) -> Share | None:
    """Accuracy against gold of what was answered, or of the teacher, on requests with both."""
    known = [
        (gold, item.teacher if teacher else item.outcome.answer)
        for item in answered
        if (gold := item.outcome.case.gold) is not None and item.teacher is not None
    ]
    hits = sum(text is not None and same(spec, text, gold) for gold, text in known)
    return _share(hits, len(known))


def rows(columns: Sequence[Figures]) -> Iterator[list[str]]:
    """The table's lines as cells, the first being the header."""
    yield ["", *(c.name for c in columns)]
    yield ["requests answered", *(f"{c.answered:,}" for c in columns)]
    if any(c.failed for c in columns):
        yield ["requests failed", *(f"{c.failed:,}" for c in columns)]
    yield ["coverage: answered by the student", *(_if(c, c.coverage) for c in columns)]
    yield ["agreement with the teacher, all answers"] + [
        _known(c.agreement) if c.asked_student else "itself" for c in columns
    ]
    yield ["agreement, the student's answers", *(_known(c.agreement_served) for c in columns)]
    if any(c.gold is not None for c in columns):
        yield ["gold accuracy, all answers", *(_known(c.gold) for c in columns)]
        yield ["gold accuracy of the teacher, same requests"] + [
            _known(c.gold_teacher) for c in columns
        ]
    yield ["off-task sent to the teacher", *(_if(c, c.off_task_caught) for c in columns)]
    yield ["off-task answered unlike the teacher"] + [
        f"{c.off_task_wrong} of {c.off_task_caught.n}" if c.asked_student else "–" for c in columns
    ]
    if any(c.unseen_caught.n for c in columns):
        yield ["unseen kinds sent to the teacher", *(_if(c, c.unseen_caught) for c in columns)]
    yield ["latency p50 / p95", *(f"{c.p50_s:.2f} / {c.p95_s:.2f} s" for c in columns)]
    yield ["first token p50, streams", *(_seconds(c.first_token_s) for c in columns)]
    yield ["cost per 1,000 requests, audits included", *(_dollars(c.usd_per_1000) for c in columns)]


def _known(share: Share | None) -> str:
    return "–" if share is None else str(share)


def _if(column: Figures, share: Share) -> str:
    return str(share) if column.asked_student else "–"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _dollars(value: float | None) -> str:
    return "price unknown" if value is None else f"${value:.2f}"


def text(columns: Sequence[Figures]) -> str:
    """For a terminal."""
    cells = list(rows(columns))
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    rule = "─" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def markdown(columns: Sequence[Figures]) -> str:
    """For a document."""
    head, *body = rows(columns)
    lines = [head, ["---"] + ["---:"] * len(columns), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
