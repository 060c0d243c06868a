"""What every number the router computes must obey: the OOD p-value, the plain and the learned
score."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import load, save
from router.confidence import Confidence
from router.decision import Answer, Token
from router.router import Router
from router.signals import FEATURES

Scorer = Callable[[Router, str, Answer], float]

HUGE = "word " * 200_000
ODD_PROMPTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "👩‍👩‍👧",
    "ß" * 50,
    "�" * 9,
    "\n" * 99,
    HUGE,
    "1" * 10_000,
)
ODD_ANSWERS = (
    Answer(text=""),
    Answer(text="{" * 5000, tokens=(Token(text="{", logprob=float("-inf")),) * 50),
    Answer(text="\ud800", tokens=(Token(text="\ufffd", logprob=float("nan")),)),
    Answer(text="x", tokens=(Token(text="x", logprob=0.0, top=(0.0,) * 20),)),
)


def p_ood(router: Router, prompt: str, answer: Answer) -> float:
    return router.ood.p_value(prompt)


def plain(router: Router, prompt: str, answer: Answer) -> float:
    return router.score(prompt, answer)


def learned(router: Router, prompt: str, answer: Answer) -> float:
    return with_head(router).score(prompt, answer)


def with_head(router: Router) -> Router:
    width = len(FEATURES) + len(router.ood.uses)
    head = Confidence(
        kind="json",
        weights=np.linspace(-1.0, 1.0, width),
        means=np.zeros(width),
        scales=np.full(width, 2.0),
        bias=0.1,
    )
    return replace(router, confidence=head)


@pytest.fixture(params=[p_ood, plain, learned], ids=lambda scorer: str(scorer.__name__))
def scorer(request: pytest.FixtureRequest) -> Scorer:
    found: Scorer = request.param
    return found


@pytest.fixture
def requests(traffic: Any) -> list[tuple[str, Answer]]:
    return [(row.prompt, row.student) for row in traffic(11).judged(20, quality=0.7)]


def test_lies_in_0_1_for_any_prompt_and_any_answer(
    scorer: Scorer, router: Router, requests: list[tuple[str, Answer]]
) -> None:
    odd = [(prompt, answer) for prompt in ODD_PROMPTS for answer in ODD_ANSWERS]
    for prompt, answer in (*requests, *odd):
        value = scorer(router, prompt, answer)
        assert type(value) is float and 0.0 <= value <= 1.0


def test_is_pure_and_independent_of_what_came_before(
    scorer: Scorer, router: Router, requests: list[tuple[str, Answer]]
) -> None:
    forwards = [scorer(router, *request) for request in requests]
    backwards = [scorer(router, *request) for request in reversed(requests)]
    assert forwards == backwards[::-1]


def test_survives_saving_to_the_last_bit(
    scorer: Scorer, router: Router, requests: list[tuple[str, Answer]], tmp_path: Path
) -> None:
    save(router, tmp_path)
    again = load(tmp_path)
    assert [scorer(again, *r) for r in requests] == [scorer(router, *r) for r in requests]


def test_a_learned_head_survives_saving(
    router: Router, requests: list[tuple[str, Answer]], tmp_path: Path
) -> None:
    headed = with_head(router)
    save(headed, tmp_path)
    again = load(tmp_path)
    assert again.confidence.learned
    assert [again.score(*r) for r in requests] == [headed.score(*r) for r in requests]
