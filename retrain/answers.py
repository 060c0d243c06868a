"""The answers of one adapter to stored exchanges, kept as JSON lines so that none is asked twice.

An adapter never changes under its name and is asked at temperature 0, so an answer stays true: the
champion's answers to old test rows are read, not asked again, and a night that died half-way
through asking goes on where it stopped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrain.errors import NightError
from router.decision import Answer, Token

#: Rows asked before the next are: what a crash can cost.
BATCH = 1000
#: With a larger share of unanswered rows the student is ill, and its numbers mean nothing.
MOST_FAILURES = 0.1

#: Asks the student: one answer per list of messages, None where it failed.
Ask = Callable[[Sequence[Sequence[Mapping[str, Any]]]], Sequence[Answer | None]]


def read_answers(path: Path) -> dict[str, Answer]:
    """By exchange id. A last line cut off by a crash is left out."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            continue
        tokens = tuple(
            Token(text=text, logprob=logprob, top=tuple(top), names=tuple(names))
            for text, logprob, top, names in data["tokens"]
        )
        found[data["id"]] = Answer(
            text=data["text"], tokens=tokens, finish_reason=data["finish_reason"]
        )
    return found


def answers_to(
    path: Path, rows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], ask: Ask
) -> list[Answer | None]:
    """The answers to (exchange id, messages) rows, in their order; only unknown ones are asked.

    None where the student failed on a row. Raises NightError where it failed on too many.
    """
    known = read_answers(path)
    missing = [(id, messages) for id, messages in rows if id not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        fresh = ask([messages for _, messages in batch])
        with path.open("a", encoding="utf-8") as file:
            if file.tell() > 0:
                file.write("\n")  # ends a line that a crash cut off; empty lines are skipped
            for (id, _), answer in zip(batch, fresh, strict=True):
                if answer is None:
                    failures += 1
                    continue
                known[id] = answer
                file.write(_line(id, answer) + "\n")
    if failures > MOST_FAILURES * len(rows):
        raise NightError(f"the student failed on {failures} of {len(rows)} rows")
    return [known.get(id) for id, _ in rows]


def _line(id: str, answer: Answer) -> str:
    tokens = [(token.text, token.logprob, token.top, token.names) for token in answer.tokens]
    return json.dumps({**asdict(answer), "id": id, "tokens": tokens}, ensure_ascii=False)
