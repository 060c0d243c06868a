"""What an answer of a task looks like, whether a draft obeys it, and how far two answers differ.

Two strictnesses on purpose. ``check`` is strict, because its verdict is "an application that
works with the teacher works with this draft": a fenced or chatty JSON breaks ``json.loads`` in
the application even where a human would understand it. ``disagreement`` is tolerant, because it
asks "do the two say the same?": fences, whitespace and, for labels, case do not count.
Only whitespace around a draft is forgiven on both sides. Where the teacher itself fences its
JSON, the application must cope already: ``fences=True`` (``learn`` sets it) accepts such drafts.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from router.decision import Answer

Kind = Literal["label", "json", "text"]

FENCE = re.compile(r"\A\s*```[\w-]*[ \t]*\n?(?P<body>.*?)\n?\s*```\s*\Z", re.DOTALL)
WORD = re.compile(r"\w+")
#: How refusals of instruction-tuned models begin. Only the beginning counts: a translated or
#: quoted "I cannot" further on is ordinary text.
REFUSAL = re.compile(
    r"\A\W*(?:(?:i(?:['’]m| am) (?:very |so |really )?sorry|sorry|unfortunately|apologies)\b"
    r"[^.\n]{0,40}?"
    r"\b(?:i (?:can(?:no|['’])?t|am unable|am not able|won['’]t)|i['’]m (?:unable|not able))"
    r"|i (?:can(?:not|['’]t)|am unable to|am not able to|won['’]t) "
    r"(?:help|assist|comply|answer|provide|do that|fulfil+|process|create|generate|continue)"
    r"|as an ai(?: language)? model)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """The output rules of one task.

    ``labels``: for kind label, the allowed ones; empty allows any. ``fields``: for kind json, the
    required fields, each with its allowed values (none: any value). ``max_tokens``: a draft that
    reaches this many tokens is invalid. ``fences``: JSON drafts may stand in a Markdown code
    fence, because the teacher's do. ``loss``: whether one wrong field makes a json answer wrong
    (exact), or as wrong as its share of the fields (fields).
    """

    kind: Kind = "text"
    labels: tuple[str, ...] = ()
    fields: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    max_tokens: int = 256
    fences: bool = False
    loss: Literal["exact", "fields"] = "exact"

    @property
    def binary(self) -> bool:
        """Whether losses are 0 or 1 by their nature."""
        return self.kind == "label" or (self.kind == "json" and self.loss == "exact")


def learn(spec: OutputSpec, teacher: Iterable[str]) -> OutputSpec:
    """``spec`` with what it leaves open read off the teacher's answers: the labels where none are
    given (those it gave more than once, so that a stray remark is not one; all if it repeated
    none), and whether its JSON comes in code fences."""
    answers = list(teacher)
    if spec.kind == "label" and not spec.labels:
        seen = Counter(answer.strip() for answer in answers if answer.strip())
        repeated = sorted(label for label, count in seen.items() if count > 1)
        return replace(spec, labels=tuple(repeated or sorted(seen)))
    if spec.kind == "json":
        fenced = sum(FENCE.match(answer) is not None for answer in answers)
        return replace(spec, fences=fenced * 2 > len(answers))
    return spec


def check(spec: OutputSpec, answer: Answer) -> str | None:
    """None if the draft obeys the output rules, else one of: empty, truncated, too_long, refusal,
    not_json, missing_field:<f>, bad_value:<f>, not_a_label."""
    text = answer.text.strip()
    if not text:
        return "empty"
    if answer.finish_reason == "length":
        return "truncated"
    if len(answer.tokens) >= spec.max_tokens:
        return "too_long"
    if answer.finish_reason == "content_filter":
        return "refusal"
    if spec.kind == "label":
        if text in spec.labels:
            return None
        if REFUSAL.match(text):
            return "refusal"
        return "not_a_label" if spec.labels else None
    if spec.kind == "json":
        return _check_object(spec, text)
    return "refusal" if REFUSAL.match(text) else None


def _check_object(spec: OutputSpec, text: str) -> str | None:
    data = parse_object(text, fences=spec.fences)
    if data is None:
        return "refusal" if REFUSAL.match(text) else "not_json"
    for name, allowed in spec.fields.items():
        if name not in data:
            return f"missing_field:{name}"
        if allowed and not any(_same(data[name], value) for value in allowed):
            return f"bad_value:{name}"
    return None


def disagreement(spec: OutputSpec, student: str, teacher: str) -> float:
    """The loss of the student's answer against the teacher's, in [0, 1].

    label: 0 if equal but for case, whitespace, quotes and a final stop, else 1. json: 0 if every
    field of the spec (every key of either, where it names none) is equal, else 1; with the loss
    by fields, 1 minus the F1 of the two sets of fields. text: 1 minus the F1 of the two bags of
    words.
    """
    if spec.kind == "label":
        return float(bare(student) != bare(teacher))
    if spec.kind == "json":
        return _object_loss(spec, student, teacher)
    return 1.0 - _word_f1(student, teacher)


def label_of(spec: OutputSpec, text: str) -> str | None:
    """A class name for an answer: the label itself, for json the first field's value, for text
    None. Also None where the answer has no such value."""
    if spec.kind == "label":
        return bare(text) or None
    if spec.kind == "json" and spec.fields:
        data = parse_object(text, fences=True)
        value = data.get(next(iter(spec.fields))) if data is not None else None
        if isinstance(value, str | int | float | bool):
            return str(value)
    return None


def parse_object(text: str, *, fences: bool) -> dict[str, Any] | None:
    """The JSON object ``text`` holds, or None. NaN and Infinity are not JSON."""
    if fences and (match := FENCE.match(text)) is not None:
        text = match["body"]
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _object_loss(spec: OutputSpec, student: str, teacher: str) -> float:
    ours, theirs = (parse_object(text, fences=True) for text in (student, teacher))
    if ours is None or theirs is None:
        # A teacher that answered no object (a refusal, say) is matched only word for word.
        return float(student.strip() != teacher.strip())
    names = spec.fields.keys() or ours.keys() | theirs.keys()
    said, wanted = ours.keys() & names, theirs.keys() & names
    right = sum(_same(ours[name], theirs[name]) for name in said & wanted)
    if spec.loss == "exact" or not (said or wanted):
        return float(right < len(said | wanted))
    return 1.0 - 2.0 * right / (len(said) + len(wanted))


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: true is not 1, but 1 is 1.0; strings compare without the
    whitespace around them."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def bare(text: str) -> str:
    """A label as labels are compared: without case, quotes, outer blanks and a final stop."""
    return " ".join(text.split()).strip("\"'`. ").casefold()


def _word_f1(student: str, teacher: str) -> float:
    ours, theirs = (Counter(WORD.findall(text.casefold())) for text in (student, teacher))
    if not ours or not theirs:
        # Nothing to compare word by word (symbols, emoji): equal or not.
        return float(student.strip() == teacher.strip())
    common = (ours & theirs).total()
    return 2.0 * common / (ours.total() + theirs.total())
