"""Personal data and secrets taken out of a row before it is stored, and never put back.

A value becomes the same placeholder wherever it stands in one row: in the request, the teacher's
answer and the student's. So an answer that repeats a value of the request still does, and can be
learnt from. Rows are numbered each for itself: a placeholder says nothing about who is meant, and
two rows about one person cannot be joined by it.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

from router.pii import PII, find

#: kinds that are looked for whatever a task says
ALWAYS: tuple[PII, ...] = ("secret",)
#: deeper than any request is nested
_DEEPEST = 100


class Redaction:
    """Of one row. ``counts``: values replaced, by kind; the same value twice counts twice."""

    def __init__(self, kinds: Collection[PII]) -> None:
        # a secret first: an address or number within it is no value of its own
        self._kinds = (*ALWAYS, *(kind for kind in kinds if kind not in ALWAYS))
        self._names: dict[tuple[PII, str], str] = {}
        self.counts: Counter[PII] = Counter()

    def text(self, text: str) -> str:
        """The text with placeholders such as ``<EMAIL_1>``."""
        for kind in self._kinds:
            parts, at = [], 0
            for found in find(text, kind):
                if found.start < at:
                    continue
                parts += [text[at : found.start], self._name(kind, found.value)]
                at = found.end
                self.counts[kind] += 1
            if parts:
                text = "".join([*parts, text[at:]])
        return text

    def optional(self, text: str | None) -> str | None:
        return None if text is None else self.text(text)

    def json(self, value: Any, depth: int = 0) -> Any:
        """The same of every string in a JSON value, keys included; numbers and all else stay."""
        if isinstance(value, str):
            return self.text(value)
        if depth > _DEEPEST:
            return value
        if isinstance(value, dict):
            return {self.text(key): self.json(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.json(inner, depth + 1) for inner in value]
        return value

    def _name(self, kind: PII, value: str) -> str:
        if (name := self._names.get((kind, value))) is None:
            number = 1 + sum(known == kind for known, _ in self._names)
            name = self._names[kind, value] = f"<{kind.upper()}_{number}>"
        return name
