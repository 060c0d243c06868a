"""How well a student's answers agree with the teacher's, and where not: pure functions on lists."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from router.decision import Answer
from router.output import OutputSpec, check, disagreement, label_of, parse_object
from router.threshold import interval

#: 95 % intervals in every report.
DELTA = 0.05
#: Confusions listed in a report.
MOST_CONFUSIONS = 20
#: Class of answers that have none (not JSON, field missing).
NO_LABEL = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """``share`` of ``n`` rows, with its 95 % interval."""

    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    teacher: str
    student: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``agreement``: 1 minus the mean loss. ``exact``: of fully equal answers, which is the same
    for labels and JSON. ``per_label`` by the teacher's class, ``per_field`` of the JSON fields.
    ``valid``: drafts that obey the output rules. ``unanswered``: rows without any draft; they
    count as disagreement. ``student_gold`` and ``teacher_gold``: accuracy against gold answers,
    on the rows that have one."""

    agreement: Share
    exact: Share
    valid: Share
    unanswered: int = 0
    per_label: Mapping[str, Share] = field(default_factory=dict)
    per_field: Mapping[str, Share] = field(default_factory=dict)
    confusions: tuple[Confusion, ...] = ()
    student_gold: Share | None = None
    teacher_gold: Share | None = None

    @property
    def n(self) -> int:
        return self.agreement.n


def losses(
    spec: OutputSpec, answers: Sequence[Answer | None], teachers: Sequence[str]
) -> list[float]:
    """The disagreement of each row; 1 where the student gave none."""
    return [
        1.0 if answer is None else disagreement(spec, answer.text, teacher)
        for answer, teacher in zip(answers, teachers, strict=True)
    ]


def evaluate(
    spec: OutputSpec,
    answers: Sequence[Answer | None],
    teachers: Sequence[str],
    gold: Sequence[str | None] = (),
    uncorrected: Sequence[str | None] | None = None,
) -> Report:
    """Compare the answers with the teacher's, and both with ``gold`` where a row has it.
    ``uncorrected``: what the teacher itself said, where ``teachers`` has corrections in it.

    A gold answer is written like the teacher's; a JSON object with only some of the fields is
    compared on those. Raises ValueError on lists of unequal length.
    """
    row_losses = losses(spec, answers, teachers)
    texts = ["" if answer is None else answer.text for answer in answers]
    valid = [answer is not None and check(spec, answer) is None for answer in answers]
    known = [(i, text) for i, text in enumerate(gold or [None] * len(texts)) if text is not None]
    own = teachers if uncorrected is None else uncorrected
    if gold and len(gold) != len(texts):
        raise ValueError(f"{len(gold)} gold answers for {len(texts)} rows")
    return Report(
        agreement=mean_share([1.0 - loss for loss in row_losses]),
        exact=mean_share([float(loss == 0.0) for loss in row_losses]),
        valid=mean_share([float(flag) for flag in valid]),
        unanswered=sum(answer is None for answer in answers),
        per_label=_per_label(spec, row_losses, teachers),
        per_field=_per_field(spec, texts, teachers),
        confusions=_confusions(spec, texts, teachers),
        student_gold=_accuracy(spec, [(texts[i], text) for i, text in known]),
        teacher_gold=_accuracy(
            spec, [(said, text) for i, text in known if (said := own[i]) is not None]
        ),
    )


def mean_share(values: Sequence[float]) -> Share:
    """The mean of values in [0, 1] with a 95 % interval: Clopper–Pearson for zeros and ones, else
    the Chernoff–Hoeffding bound (1963), which holds for any values in between."""
    n = len(values)
    if n == 0:
        return Share(n=0, share=0.0, low=0.0, high=1.0)
    mean = sum(values) / n
    if all(value in (0.0, 1.0) for value in values):
        low, high = interval(round(sum(values)), n, DELTA)
    else:
        low, high = 1.0 - _chernoff(1.0 - mean, n), _chernoff(mean, n)
    return Share(n=n, share=mean, low=low, high=high)


def _chernoff(mean: float, n: int) -> float:
    """The largest true mean that does not make one as low as ``mean`` rarer than DELTA / 2."""
    limit = math.log(2.0 / DELTA) / n
    low, high = mean, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _divergence(mean, middle) <= limit else (low, middle)
    return high


def _divergence(p: float, q: float) -> float:
    """Kullback–Leibler divergence of two coins."""
    if q >= 1.0:
        return 0.0 if p >= 1.0 else math.inf
    first = p * math.log(p / q) if p > 0.0 else 0.0
    return first + ((1.0 - p) * math.log((1.0 - p) / (1.0 - q)) if p < 1.0 else 0.0)


def _per_label(
    spec: OutputSpec, row_losses: Sequence[float], teachers: Sequence[str]
) -> dict[str, Share]:
    groups: dict[str, list[float]] = defaultdict(list)
    for loss, teacher in zip(row_losses, teachers, strict=True):
        label = label_of(spec, teacher)
        if label is not None:
            groups[label].append(1.0 - loss)
    return {label: mean_share(values) for label, values in sorted(groups.items())}


def _per_field(spec: OutputSpec, texts: Sequence[str], teachers: Sequence[str]) -> dict[str, Share]:
    if spec.kind != "json":
        return {}
    pairs = list(zip(texts, teachers, strict=True))
    objects = [parse_object(teacher, fences=True) for teacher in teachers]
    names = list(spec.fields) or sorted({key for data in objects if data for key in data})
    result = {}
    for name in names:
        alone = replace(spec, fields={name: ()})
        rows = [pair for pair, data in zip(pairs, objects, strict=True) if data and name in data]
        result[name] = mean_share([1.0 - disagreement(alone, ours, their) for ours, their in rows])
    return result


def _confusions(
    spec: OutputSpec, texts: Sequence[str], teachers: Sequence[str]
) -> tuple[Confusion, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    for text, teacher in zip(texts, teachers, strict=True):
        theirs = label_of(spec, teacher)
        ours = label_of(spec, text) or NO_LABEL
        if theirs is not None and ours != theirs:
            counts[theirs, ours] += 1
    return tuple(
        Confusion(teacher=theirs, student=ours, count=count)
        for (theirs, ours), count in counts.most_common(MOST_CONFUSIONS)
    )


def _accuracy(spec: OutputSpec, pairs: Sequence[tuple[str, str]]) -> Share | None:
    return mean_share([_right(spec, text, gold) for text, gold in pairs]) if pairs else None


def _right(spec: OutputSpec, text: str, gold: str) -> float:
    """1 where the answer is right. Only what the gold answer says is compared: some of the fields,
    or, where it is no object, the class."""
    if spec.kind != "json":
        return 1.0 - disagreement(spec, text, gold)
    fields = parse_object(gold, fences=False)
    if fields is None:
        return float(label_of(spec, text) == gold.strip())
    return 1.0 - disagreement(replace(spec, fields=dict.fromkeys(fields, ())), text, gold)


def gold_of(
    body: Mapping[str, Any], gold: Mapping[str, str] | None = None, id: str = ""
) -> str | None:
    """The gold answer of an exchange: from ``gold`` by its id, else from `metadata.gold` of its
    request body; an object is written as JSON."""
    if gold is not None and id in gold:
        return gold[id]
    metadata = body.get("metadata")
    value = metadata.get("gold") if isinstance(metadata, Mapping) else None
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
