"""The learned head is used only where it is convincingly better."""

import math

import numpy as np
from numpy.typing import NDArray

from router.confidence import auroc, better, default, fit_confidence, plain
from router.decision import Answer, Token
from router.report import apgr
from router.signals import NOTHING, Signals, signals

Doubles = NDArray[np.float64]


def drafts(n: int, *, telling: bool, seed: int = 0) -> tuple[list[tuple[Signals, Doubles]], list]:
    """Drafts whose probability says a little about being right; ``telling``: the prompt's
    strangeness says the rest."""
    rng = np.random.default_rng(seed)
    rows, losses = [], []
    for _ in range(n):
        doubt = rng.random()
        wrong = rng.random() < doubt**2
        p = float(np.clip(1 - doubt * rng.random(), 1e-6, 1 - 1e-6))
        token = Token(text="x", logprob=math.log(p))
        views = np.array([doubt if telling else rng.random()])
        rows.append((signals("label", Answer(text="x", tokens=(token,))), views))
        losses.append(float(wrong))
    return rows, losses


def test_the_default_is_the_probability_of_the_answer() -> None:
    halves = (Token(text="a", logprob=math.log(0.5)),) * 2
    signal = signals("label", Answer(text="aa", tokens=halves))
    assert math.isclose(plain("label", signal), 0.25)
    assert math.isclose(plain("text", signal), 0.5)
    assert plain("label", NOTHING) == 0.0
    assert default("label").score(signal, np.zeros(0)) == plain("label", signal)


def test_a_head_that_knows_more_is_learned() -> None:
    rows, losses = drafts(400, telling=True)
    head = fit_confidence("label", rows, losses, seed=1)
    assert head is not None and head.learned
    fresh, truth = drafts(2000, telling=True, seed=9)
    right = np.array(truth) == 0
    learned = np.array([head.score(*row) for row in fresh])
    assert auroc(learned, right) > auroc(np.array([plain("label", s) for s, _ in fresh]), right)
    assert ((learned >= 0) & (learned <= 1)).all()


def test_a_head_that_knows_no_more_is_dropped() -> None:
    rows, losses = drafts(400, telling=False)
    assert fit_confidence("label", rows, losses, seed=1) is None


def test_a_head_needs_right_and_wrong_drafts() -> None:
    rows, _ = drafts(400, telling=True)
    assert fit_confidence("label", rows, [0.0] * 400, seed=1) is None
    assert fit_confidence("label", rows, [0.0] * 395 + [1.0] * 5, seed=1) is None


def test_the_same_score_is_not_better_than_itself() -> None:
    scores = np.random.default_rng(1).random(200)
    assert not better(scores, scores, scores > 0.3, seed=1)


def test_auroc_and_apgr_of_known_orders() -> None:
    right = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), right) == 1.0
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), right) == 0.0
    assert auroc(np.ones(4), right) == 0.5
    assert auroc(np.ones(4), np.ones(4, bool)) == 0.5
    losses = np.array([0.0, 0.0, 1.0, 1.0])
    assert apgr(np.array([4.0, 3.0, 2.0, 1.0]), losses) == 0.75  # the best possible here
    assert apgr(np.ones(4), losses) == 0.5
    assert apgr(np.ones(4), np.zeros(4)) == 0.5
