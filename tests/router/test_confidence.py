"""The learned head is used only where it is convincingly better."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from router.confidence import (
    Confidence,
    auroc,
    better,
    default,
    fit_confidence,
    learn_head,
    plain,
)
from router.contest import CURVE_ROWS, LOGISTIC, PLAIN, TREE_ROWS, TREES
from router.decision import Answer, Token
from router.ranking import resampled
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


def leaning(n: int, *, seed: int) -> tuple[list[tuple[Signals, Doubles]], list[float], list[int]]:
    """A student that leans to its first label: its own probability says little, those of all
    labels by name say all."""
    rng = np.random.default_rng(seed)
    labels = ("alpha", "beta", "gamma")
    rows, losses, wanted = [], [], []
    for _ in range(n):
        truth = int(rng.integers(3))
        logs = rng.normal(size=3) + np.where(np.arange(3) == truth, 1.5, 0.0)
        logs += np.array([2.0, 0.0, -1.0])
        logs -= np.log(np.exp(logs).sum())
        order = np.argsort(-logs).tolist()
        top, names = tuple(logs[order].tolist()), tuple(labels[at][:3] for at in order)
        token = Token(text=names[0], logprob=top[0], top=top, names=names)
        answer = Answer(text=labels[order[0]], tokens=(token,))
        rows.append((signals("label", answer, labels=labels), np.zeros(0)))
        losses.append(float(order[0] != truth))
        wanted.append(truth)
    return rows, losses, wanted


@pytest.mark.slow
def test_a_lean_to_some_labels_is_read_off_their_names() -> None:
    rows, losses, wanted = leaning(600, seed=1)
    head, contest = learn_head(default("label"), rows, losses, seed=1, wanted=wanted)
    blind, _ = learn_head(default("label"), rows, losses, seed=1)
    assert head is not None and head.reader is not None and contest.reader
    fresh, truth, _ = leaning(2000, seed=9)
    right = np.array(truth) == 0
    read = auroc(np.array([head.score(*row) for row in fresh]), right)
    unread = blind or default("label")
    assert read > auroc(np.array([unread.score(*row) for row in fresh]), right) + 0.1


def test_a_reader_scores_what_it_has_no_names_for_low() -> None:
    rows, losses, wanted = leaning(600, seed=1)
    head = learn_head(default("label"), rows, losses, seed=1, wanted=wanted)[0]
    assert head is not None
    views = rows[0][1]
    nameless = signals("label", Answer(text="alpha", tokens=(Token(text="alp", logprob=-0.01),)))
    assert head.score(nameless, views) < max(head.score(*row) for row in rows)


def stepped(n: int, *, seed: int) -> tuple[list[tuple[Signals, Doubles]], list[float]]:
    """Drafts whose prompt's strangeness tells the wrong ones, but not along a line: those are the
    ones that are strange in either view."""
    rng = np.random.default_rng(seed)
    signal = signals("label", Answer(text="x", tokens=(Token(text="x", logprob=-0.5),)))
    views = rng.uniform(-1, 1, (n, 2))
    bad = (views > 0.5).any(axis=1)
    losses = (rng.random(n) < np.where(bad, 0.9, 0.05)).astype(float).tolist()
    return [(signal, view) for view in views], losses


@pytest.mark.slow
def test_with_more_rows_the_score_is_the_chance_to_be_right() -> None:
    rows, losses = drafts(CURVE_ROWS, telling=True)
    head, contest = learn_head(default("label"), rows, losses, seed=1)
    assert head is not None and contest.calibrated == (head.curve is not None)
    fresh, truth = drafts(4000, telling=True, seed=9)
    scores = np.array([head.score(*row) for row in fresh])
    for part in np.array_split(np.argsort(scores), 5):
        share = 1.0 - np.array(truth)[part].mean()
        assert scores[part].mean() == pytest.approx(share, abs=0.06)
    few = learn_head(default("label"), rows[:400], losses[:400], seed=1)
    assert few[0] is not None and few[0].curve is None and not few[1].calibrated


@pytest.mark.slow
def test_trees_are_tried_with_many_rows_and_must_beat_the_regression() -> None:
    rows, losses = stepped(TREE_ROWS, seed=5)
    head, contest = learn_head(default("label"), rows, losses, seed=1)
    assert contest.won == TREES and head is not None and head.trees is not None
    assert contest.leads[TREES].auroc > contest.leads[LOGISTIC].auroc
    assert contest.leads[TREES].auroc_low > 0
    few, contest = learn_head(default("label"), rows[:500], losses[:500], seed=1)
    assert TREES not in contest.leads and (few is None or few.trees is None)
    straight = learn_head(default("label"), *drafts(TREE_ROWS, telling=True), seed=1)[1]
    assert straight.won == LOGISTIC and TREES in straight.leads


def test_the_report_of_a_contest_also_says_by_how_much_nothing_was_won() -> None:
    rows, losses = drafts(400, telling=False)
    head, contest = learn_head(default("label"), rows, losses, seed=1)
    assert head is None and contest.won == PLAIN and contest.rows == 400
    lead = contest.leads[LOGISTIC]
    assert lead.auroc_low <= lead.auroc <= lead.auroc_high
    assert lead.apgr_low <= lead.apgr <= lead.apgr_high
    assert lead.auroc_low < 0.0
    assert learn_head(default("label"), rows[:9], losses[:9], seed=1)[1].rows == 0
    assert learn_head(default("label"), [], [], seed=1)[0] is None


def test_resamples_are_of_the_same_rows_for_every_score() -> None:
    rng = np.random.default_rng(2)
    scores, losses = rng.random(300), (rng.random(300) < 0.3).astype(float)
    aurocs, apgrs = resampled(scores, losses, seed=4)
    picked = np.random.default_rng(4).integers(0, 300, 300)
    assert aurocs[0] == pytest.approx(auroc(scores[picked], losses[picked] == 0))
    assert apgrs[0] == pytest.approx(apgr(scores[picked], losses[picked]))
    again = resampled(2 * scores, losses, seed=4)
    assert (again[0] == aurocs).all() and (again[1] == apgrs).all()


def test_lengths_are_measured_against_the_training_answers() -> None:
    base = default("text", ["x" * 9, "x" * 99, "x" * 999])
    assert base.lengths[0] == pytest.approx(math.log(100), abs=0.01)
    assert isinstance(base, Confidence) and not base.learned
    assert default("label", ["card", "card"]).lengths[1] == 1.0  # no spread: nothing is unusual
