"""What kind of answers a teacher gives, read off the answers: labels, JSON objects or text."""

import json
import math
from collections.abc import Sequence
from typing import Any

from gateway.config import Output
from router.output import parse_object

#: Labels: no more distinct answers than this, each seen this often on average, none longer.
MOST_LABELS, SEEN_ON_AVERAGE, LONGEST_LABEL = 300, 4, 80
#: A JSON field counts as one of the task when this share of the objects has it.
FIELD_SHARE = 0.95
#: Values of a field are listed when there are at most this many, each seen this often on average.
MOST_VALUES, VALUE_SEEN = 60, 8
#: A token has at least about this many characters; only used to leave room for the longest answer.
SHORTEST_TOKEN_CHARS = 2.0


def detect(answers: Sequence[str]) -> Output:
    """The output section that describes ``answers``, of which there must be at least one.

    JSON wins over labels, so that `{"ok": true}` from a teacher that always says so is JSON. Of a
    JSON task, the fields that (nearly) every object has are compared; values are listed for those
    with few.
    """
    longest = max(len(answer) for answer in answers)
    max_tokens = math.ceil(longest / SHORTEST_TOKEN_CHARS) + 8
    objects = [parse_object(answer, fences=True) for answer in answers]
    found = [data for data in objects if data is not None]
    if len(found) >= FIELD_SHARE * len(answers):
        return Output(kind="json", fields=_fields(found), max_tokens=max_tokens)
    labels = sorted({answer.strip() for answer in answers})
    few = min(MOST_LABELS, max(2, len(answers) // SEEN_ON_AVERAGE))
    if len(labels) <= few and all(len(text) <= LONGEST_LABEL for text in labels):
        return Output(kind="label", labels=labels, max_tokens=max_tokens)
    return Output(kind="text", max_tokens=max_tokens)


def _fields(objects: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for data in objects for name in data)
    fields: dict[str, list[Any]] = {}
    for name in names:
        values = [data[name] for data in objects if name in data]
        if len(values) >= FIELD_SHARE * len(objects):
            fields[name] = _values(values)
    return fields


def _values(values: Sequence[Any]) -> list[Any]:
    """The distinct values where they are few and plain, else none (any value goes)."""
    if not all(isinstance(value, str | bool | int | None) for value in values):
        return []
    distinct = {json.dumps(value): value for value in values}
    if len(distinct) > min(MOST_VALUES, len(values) // VALUE_SEEN):
        return []
    return [distinct[key] for key in sorted(distinct)]


def short_prompt(output: Output) -> str:
    """The student's system prompt for such a task: what it was trained on says the rest."""
    if output.kind == "label":
        return "Answer with the label."
    if output.kind == "json":
        return "Answer as JSON."
    return "Answer."
