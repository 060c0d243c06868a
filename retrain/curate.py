"""Which exchanges are fit to learn from, and why the others are not: pure, with counted reasons.

The two sides of the split are judged differently on purpose. Training rows must be worth
imitating: what the teacher refused, cut short or formatted badly is dropped, and so are repeats.
Held-out rows must be the traffic as it is: they are dropped only where nothing could be asked or
compared. A certificate from requests the teacher liked would promise nothing about the others.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.prompt import SYSTEM_ROLES, content_text
from gateway.storage.tables import Exchange
from retrain.splits import split_of
from router.decision import Answer
from router.output import OutputSpec, check, disagreement, parse_object

Reason = Literal[
    "no_consent",  # the application does not let it be learnt from
    "not_licensed",  # the teacher's terms do not
    "no_answer",  # the teacher answered nothing
    "malformed",  # the request is not a chat, or asks nothing
    "schema",  # the teacher's answer breaks the task's output rules
    "refusal",  # the teacher would not answer
    "truncated",  # the teacher's JSON stops in the middle
    "too_long",  # longer than the student may answer
    "duplicate",  # the same prompt with the same answer is there already
    "near_duplicate_conflict",  # the same prompt but for numbers, answered otherwise more often
]

#: No tokenizer packs more characters of ordinary text into a token, on average.
CHARS_PER_TOKEN = 8
#: Spellings of an answer that may win a vote: one prompt with more is no question at all.
MOST_CANDIDATES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """``kept`` in the order given; ``rejected`` with the reason of each."""

    kept: tuple[Exchange, ...]
    rejected: tuple[tuple[Exchange, Reason], ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(reason for _, reason in self.rejected).most_common())


def curate(
    rows: Sequence[Exchange], spec: OutputSpec, known: Iterable[tuple[str, str]] = ()
) -> Curated:
    """Judge new rows. ``known``: (`conversation`, teacher's answer) of the training rows there
    already."""
    rejected: dict[str, Reason] = {}
    worthy: list[Exchange] = []
    for row in rows:
        reason = _useless(row)
        if reason is None and split_of(row.group_key) == "train":
            reason = _unworthy(row, spec)
            if reason is None:
                worthy.append(row)
        if reason is not None:
            rejected[row.id] = reason
    rejected.update(_repeats(worthy, spec, known))
    return Curated(
        kept=tuple(row for row in rows if row.id not in rejected),
        rejected=tuple((row, rejected[row.id]) for row in rows if row.id in rejected),
    )


def right_answer(row: Exchange) -> str | None:
    """What the student shall learn to say: the correction, else what the teacher said."""
    return row.teacher_text if row.correction is None else row.correction


def conversation(row: Exchange) -> str:
    """All that was said before the answer, without system prompts: the earlier turns, and of the
    last user message what the student sees."""
    turns = [m for m in row.body["messages"] if m["role"] not in SYSTEM_ROLES]
    return "\n".join([*(content_text(turn.get("content")) for turn in turns[:-1]), row.prompt])


def _useless(row: Exchange) -> Reason | None:
    """Why the row may not be used, or can neither be asked nor compared."""
    if not row.consent:
        return "no_consent"
    if not row.licensed and row.correction is None:
        return "not_licensed"
    if not (right_answer(row) or "").strip():
        return "no_answer"
    messages = row.body.get("messages")
    if not isinstance(messages, list) or not messages:
        return "malformed"
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        return "malformed"
    return None if row.prompt.strip() else "malformed"


def _unworthy(row: Exchange, spec: OutputSpec) -> Reason | None:
    """Why a student should not imitate the teacher's answer."""
    text = (right_answer(row) or "").strip()
    if len(text) > CHARS_PER_TOKEN * spec.max_tokens:
        return "too_long"
    if spec.kind == "json" and text.startswith("{") and _unfinished(text):
        return "truncated"
    problem = check(spec, Answer(text=text))
    if problem == "not_json" and parse_object(text, fences=True) is not None:
        return None  # in a Markdown fence: the router learns whether the teacher does that
    if problem is None:
        return None
    return "refusal" if problem == "refusal" else "schema"


def _unfinished(text: str) -> bool:
    """Whether a JSON object is still open at the end of the text."""
    depth, quoted, escaped = 0, False, False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
    return quoted or depth > 0


def _repeats(
    rows: Sequence[Exchange], spec: OutputSpec, known: Iterable[tuple[str, str]]
) -> dict[str, Reason]:
    """Rows that add nothing, and rows outvoted on how to answer a prompt (but for its numbers).
    Free texts always differ and are never in conflict."""
    votes: dict[str, list[str]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for prompt, answer in known:
        votes[_template(prompt)].append(answer)
        seen.add((_plain(prompt), answer.strip()))
    for row in rows:
        votes[_template(conversation(row))].append(right_answer(row) or "")
    winners: dict[str, str] = {}
    if spec.kind != "text":
        winners = {template: _winner(spec, ballot) for template, ballot in votes.items()}
    rejected: dict[str, Reason] = {}
    for row in rows:
        said, answer = conversation(row), right_answer(row) or ""
        winner = winners.get(_template(said), answer)
        if row.correction is not None:
            winner = answer  # a person looked at this one: no vote overrules them
        if spec.kind != "text" and disagreement(spec, answer, winner) > 0.0:
            rejected[row.id] = "near_duplicate_conflict"
        elif (_plain(said), answer.strip()) in seen:
            rejected[row.id] = "duplicate"
        seen.add((_plain(said), answer.strip()))
    return rejected


def _winner(spec: OutputSpec, answers: Sequence[str]) -> str:
    """The answer most others equal; of several, the first."""
    if len(answers) == 1:
        return answers[0]
    spellings = Counter(answer.strip() for answer in answers)
    candidates = [text for text, _ in spellings.most_common(MOST_CANDIDATES)]
    supporters = {
        text: sum(n for other, n in spellings.items() if disagreement(spec, text, other) == 0.0)
        for text in candidates
    }
    return max(supporters, key=lambda text: supporters[text])  # max keeps the first of equals


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _template(text: str) -> str:
    return "".join("0" if c.isdigit() else c for c in _plain(text))
