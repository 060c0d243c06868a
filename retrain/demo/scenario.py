"""What a demo plays: messages with the teacher's answers, and the task that claims them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from gateway.config import Claim, Output, PromptContract
from retrain.demo.recorded_teacher import key_of

Kind = Literal["known", "unseen", "off_task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request and what is known about it.

    ``teacher`` is the recorded teacher's answer, None where a live teacher is asked; ``gold`` the
    right answer where somebody knows it; ``kind`` whether the first traffic had its like.
    """

    messages: tuple[dict[str, Any], ...]
    teacher: str | None
    gold: str | None
    kind: Kind

    @property
    def key(self) -> str:
        return key_of(self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The traffic of a demo in the order it comes, and how Retort is told about it.

    ``collect`` comes while the teacher answers everything; ``first`` and ``second`` after the
    first and the second student, drawn from the same mixture, which has more off-task messages
    and kinds ``collect`` had not.
    """

    task: str
    about: str
    model: str
    claim: Claim
    prompt: PromptContract
    output: Output
    collect: tuple[Case, ...]
    first: tuple[Case, ...]
    second: tuple[Case, ...]

    @property
    def cases(self) -> Iterator[Case]:
        yield from self.collect
        yield from self.first
        yield from self.second

    def answers(self) -> dict[str, str]:
        """The recorded teacher's table."""
        return {case.key: case.teacher for case in self.cases if case.teacher is not None}

    def live(self) -> "Scenario":
        """The same traffic without recorded answers, for a teacher that is really asked."""
        collect, first, second = (
            tuple(replace(case, teacher=None) for case in part)
            for part in (self.collect, self.first, self.second)
        )
        return replace(self, collect=collect, first=first, second=second)
