"""What is learned obeys scikit-learn's contract; what serves gives the same numbers without it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from router.head import LogisticHead, MonotoneTrees
from router.isotonic import Curve, fit_curve, improves
from router.linear import Linear
from router.trees import Trees


@parametrize_with_checks([LogisticHead(), MonotoneTrees(rounds=3)])
def test_estimators_keep_the_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def sample(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, rng.random(n) < 1 / (1 + np.exp(-2 * x[:, 0] + x[:, 1] * x[:, 2]))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_compiled_regression_gives_the_same_numbers(classes: int) -> None:
    x, _ = sample()
    head = LogisticHead().fit(x, np.arange(len(x)) % classes)
    ours = head.model_.predict_proba((x - head.means_) / head.scales_)
    assert np.abs(head.compiled().shares(x) - ours).max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("directions", [None, [1, 0, -1, 0]])
def test_compiled_trees_give_the_same_numbers(directions: list[int] | None) -> None:
    model = MonotoneTrees(directions=directions).fit(*sample())
    trees, fresh = model.compiled(), sample(300, seed=1)[0]
    edges = np.tile(trees.threshold[:50, None], 4)  # a row on a threshold goes left
    rows = np.vstack([fresh, edges])
    ours = 1 / (1 + np.exp(-np.array([trees.log_odds(row) for row in rows])))
    assert np.abs(ours - model.predict_proba(rows)[:, 1]).max() < 1e-9


def test_trees_rise_where_they_are_told_to() -> None:
    x, y = sample()
    trees = clone(MonotoneTrees(directions=[1, 0, 0, -1])).fit(x, y).compiled()
    row = x[0].copy()
    for at, sign in ((0, 1), (3, -1)):
        values = [
            trees.log_odds(np.where(np.arange(4) == at, value, row))
            for value in np.linspace(-3, 3, 40)
        ]
        assert (sign * np.diff(values) >= 0).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda nodes: nodes * 0),  # a loop
        ("right", lambda nodes: nodes + 10_000),
        ("left", lambda nodes: nodes.astype(np.float64)),
        ("feature", lambda nodes: nodes + 4),
        ("feature", lambda nodes: nodes - 1),
        ("feature", lambda nodes: nodes[:-1]),
        ("threshold", lambda nodes: nodes * np.nan),
        ("value", lambda nodes: nodes + np.inf),
        ("value", lambda nodes: nodes.astype(object)),
        ("roots", lambda nodes: nodes - 1),
        ("roots", lambda nodes: nodes + 10_000),
        ("bias", lambda bias: bias * np.inf),
        ("depth", lambda depth: depth - 1),
        ("depth", lambda depth: 10**9),
    ],
)
def test_arrays_that_are_no_trees_are_refused(name: str, change: Any) -> None:
    trees = MonotoneTrees(rounds=5).fit(*sample()).compiled()
    with pytest.raises(ValueError, match="trees"):
        replace(trees, **{name: change(getattr(trees, name))})


def test_a_curve_makes_probabilities_of_scores_and_keeps_their_order() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(4000)
    right = rng.random(4000) < scores**3
    curve = fit_curve(scores, right)
    fresh = np.sort(rng.random(4000))
    found = np.array([curve.at(score) for score in fresh])
    assert np.abs(found - fresh**3).mean() < 0.02
    assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] <= 1


def test_a_curve_is_worth_it_where_scores_are_off_and_not_where_they_are_right() -> None:
    rng = np.random.default_rng(3)
    chances = rng.random(3000)
    right = rng.random(3000) < chances
    assert improves(chances**2, right, seed=1)
    assert improves(np.sqrt(chances), right, seed=1)
    assert not improves(chances, right, seed=1)


def test_one_odd_draft_at_an_end_does_not_move_the_others() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(2000)
    right = rng.random(2000) < scores
    for odd, kind in ((scores.argmin(), False), (scores.argmax(), True)):
        right[odd] = kind
    curve = fit_curve(scores, right)
    assert np.abs([curve.at(score) - score for score in np.linspace(0, 1, 50)]).max() < 0.1


@pytest.mark.parametrize("right", [True, False])
def test_a_curve_from_drafts_that_were_all_alike_still_rises(right: bool) -> None:
    curve = fit_curve(np.linspace(0.2, 0.4, 50), np.full(50, right))
    assert 0.0 < curve.at(0.3) < 1.0
    assert curve.at(0.2) < curve.at(0.3) < curve.at(0.9)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([0.0, 1.0], [0.0, 0.5, 1.0]),
        ([0.0, 0.5, 0.5, 1.0], [0.0, 0.2, 0.3, 1.0]),
        ([0.0, 0.5, 1.0], [0.0, 0.0, 1.0]),
        ([0.1, 1.0], [0.0, 1.0]),
        ([0.0, 1.0], [0.0, np.nan]),
        ([], []),
    ],
)
def test_points_that_are_no_rising_curve_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="curve"):
        Curve(x=np.array(x), y=np.array(y))


def test_arrays_that_are_no_regression_are_refused() -> None:
    linear = LogisticHead().fit(*sample()).compiled()
    for change in (
        {"weights": linear.weights[:-1]},
        {"biases": linear.biases * np.nan},
        {"scales": linear.scales * 0},
    ):
        with pytest.raises(ValueError, match="linear"):
            replace(linear, **change)
    assert isinstance(linear, Linear) and not isinstance(linear, Trees)
