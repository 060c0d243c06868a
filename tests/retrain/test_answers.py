"""No adapter is asked the same row twice, and a sick student is noticed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retrain.answers import answers_to, read_answers
from retrain.errors import NightError
from router.decision import Answer, Token

ROWS = [(f"req-{i}", [{"role": "user", "content": str(i)}]) for i in range(500)]


class Student:
    def __init__(self, fails: int = 0) -> None:
        self.asked: list[str] = []
        self.fails = fails

    def __call__(self, rows: Sequence[Sequence[dict[str, Any]]]) -> list[Answer | None]:
        texts = [messages[-1]["content"] for messages in rows]
        self.asked += texts
        return [None if int(text) < self.fails else answer(text) for text in texts]


def answer(text: str) -> Answer:
    token = Token(text=text, logprob=-0.25, top=(-0.25, -2.0), names=(text, "~"))
    return Answer(text=text, tokens=(token,))


def test_answers_come_back_in_order_and_are_kept(tmp_path: Path) -> None:
    student = Student()
    path = tmp_path / "answers.jsonl"
    assert answers_to(path, ROWS, student) == [answer(str(i)) for i in range(500)]
    assert answers_to(path, ROWS[::-1], student)[0] == answer("499")
    assert len(student.asked) == 500
    assert read_answers(path)["req-7"].tokens[0].names == ("7", "~")


def test_asking_goes_on_where_a_crash_stopped_it(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answers_to(path, ROWS[:300], Student())
    path.write_bytes(path.read_bytes()[:-20])  # the last line is cut off
    student = Student()
    assert answers_to(path, ROWS, student)[299] == answer("299")
    assert len(student.asked) == 201
    assert len(read_answers(path)) == 500


def test_a_few_failures_are_none_and_many_stop_the_night(tmp_path: Path) -> None:
    assert answers_to(tmp_path / "few.jsonl", ROWS, Student(fails=10))[:11] == [
        *[None] * 10,
        answer("10"),
    ]
    with pytest.raises(NightError, match="failed on 51 of 500 rows"):
        answers_to(tmp_path / "many.jsonl", ROWS, Student(fails=51))
