"""The certificate keeps its promise; the obvious shortcut does not."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from router.threshold import (
    GRID,
    REJECTED,
    Certificate,
    _holds,
    certify,
    evidence_expected,
    evidence_needed,
    interval,
    upper_bound,
)

Doubles = NDArray[np.float64]
TRIALS = 300


def population(seed: int, *, fractional: bool = False) -> tuple[Doubles, Doubles]:
    """20,000 scores of a distilled student, most of them near 1, and its losses: 11 % wrong."""
    rng = np.random.default_rng(seed)
    doubt = 10.0 ** -rng.gamma(2.0, 1.0, 20_000)
    wrong = rng.random(20_000) < 0.9 * doubt**0.7
    size = rng.beta(2, 2, 20_000) if fractional else np.ones(20_000)
    scores = np.where(rng.random(20_000) < 0.02, REJECTED, 1.0 - doubt)
    return scores, wrong * size


def risk(scores: Doubles, losses: Doubles, threshold: float) -> float:
    return float((losses * (scores >= threshold)).mean())


def plug_in(scores: Doubles, losses: Doubles, alpha: float) -> float:
    """What most routers do: the laxest threshold with an observed loss within alpha."""
    order = np.argsort(-scores)
    within = np.cumsum(losses[order]) <= alpha * len(scores)
    return float(scores[order][within & (scores[order] >= 0.0)].min())


def violations(n: int, alpha: float, delta: float, *, fractional: bool) -> tuple[float, float]:
    """Shares of TRIALS calibrations of n rows whose threshold breaks the promise on the whole
    population: with a certificate, and plugged in."""
    scores, losses = population(3, fractional=fractional)
    rng = np.random.default_rng(4)
    certified = plugged = 0
    for _ in range(TRIALS):
        picked = rng.integers(0, len(scores), n)
        s, x = scores[picked], losses[picked]
        found = certify(s, x, alpha, delta)
        certified += found is not None and risk(scores, losses, found.threshold) > alpha
        plugged += risk(scores, losses, plug_in(s, x, alpha)) > alpha
    return certified / TRIALS, plugged / TRIALS


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize(("n", "alpha"), [(150, 0.05), (400, 0.02)])
def test_the_promise_is_kept_and_the_plug_in_threshold_breaks_it(
    n: int, alpha: float, fractional: bool
) -> None:
    delta = 0.1
    certified, plugged = violations(n, alpha, delta, fractional=fractional)
    noise = 3 * (delta * (1 - delta) / TRIALS) ** 0.5
    assert certified <= delta + noise
    assert plugged > 2 * delta


def test_a_certificate_says_what_it_saw() -> None:
    scores, losses = (column[:500] for column in population(5))
    found = certify(scores, losses, 0.05, 0.05)
    assert isinstance(found, Certificate)
    served = scores >= found.threshold
    assert found.n == 500
    assert found.errors_served == losses[served].sum()
    assert found.coverage == served.mean()
    assert found.coverage_low < found.coverage < found.coverage_high
    assert found.errors_served / 500 <= found.upper_bound <= 0.05
    assert found.upper_bound == pytest.approx(upper_bound(int(found.errors_served), 500, 0.05))
    # The next laxer threshold is not covered by the evidence.
    laxer = GRID[GRID.index(found.threshold) + 1]
    assert upper_bound(int(losses[scores >= laxer].sum()), 500, 0.05) > 0.05


def test_the_grid_is_fixed_and_runs_from_strict_to_lax() -> None:
    assert GRID[0] == 1.0 and GRID[-1] == 0.0
    assert all(one > other for one, other in itertools.pairwise(GRID))
    assert sum(t > 0.999 for t in GRID) > 40


@pytest.mark.parametrize("fractional", [False, True])
def test_halving_finds_what_testing_one_by_one_would(fractional: bool) -> None:
    for seed in range(6, 12):
        scores, losses = (c[:300] for c in population(seed, fractional=fractional))
        best = None
        for threshold in GRID:
            binary = not fractional
            if not _holds(losses * (scores >= threshold), 0.05, 0.05, binary):
                break
            best = threshold
        found = certify(scores, losses, 0.05, 0.05, binary=binary)
        assert (found.threshold if found else None) == best


def test_clopper_pearson_agrees_with_scipys_own() -> None:
    for hits, n in ((0, 10), (3, 57), (10, 10), (7, 400)):
        exact = binomtest(hits, n).proportion_ci(0.9, method="exact")
        assert interval(hits, n, 0.1) == pytest.approx((exact.low, exact.high), abs=1e-9)
        assert upper_bound(hits, n, 0.05) == pytest.approx(exact.high, abs=1e-9)


def test_too_little_evidence_certifies_nothing() -> None:
    perfect = np.ones(58), np.zeros(58)
    assert certify(*perfect, 0.05, 0.05) is None
    assert certify(np.ones(59), np.zeros(59), 0.05, 0.05) is not None
    assert certify([], [], 0.05, 0.05) is None
    assert certify(np.ones(1000), np.zeros(1000), 0.0, 0.05) is None


def test_a_student_that_is_surely_wrong_is_never_certified() -> None:
    assert certify(np.ones(500), np.ones(500), 0.05, 0.05) is None


def test_drafts_that_may_not_be_served_give_no_certificate_to_serve_nothing() -> None:
    assert certify(np.full(500, REJECTED), np.zeros(500), 0.05, 0.05) is None


def test_fractional_losses_cost_evidence_but_not_validity() -> None:
    scores, losses = np.full(400, 0.9), np.zeros(400)
    exact = certify(scores, losses, 0.05, 0.05, binary=True)
    betting = certify(scores, losses, 0.05, 0.05, binary=False)
    assert exact is not None and betting is not None
    assert exact.method == "clopper-pearson" and betting.method == "betting"
    assert exact.upper_bound < betting.upper_bound <= 0.05


@pytest.mark.parametrize(
    ("scores", "losses"),
    [([1.0], [1.5]), ([1.0], [-0.1]), ([1.0, 1.0], [0.0]), ([float("nan")], [0.0])],
)
def test_impossible_numbers_are_refused(scores: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError):
        certify(scores, losses, 0.05, 0.05)


def test_evidence_needed_is_exactly_what_certifies() -> None:
    assert [evidence_needed(0, 0, alpha, 0.05) for alpha in (0.01, 0.02, 0.05)] == [299, 149, 59]
    more = evidence_needed(100, 3, 0.05, 0.05)
    assert upper_bound(3, 100 + more, 0.05) <= 0.05 < upper_bound(3, 100 + more - 1, 0.05)
    assert evidence_needed(1000, 3, 0.05, 0.05) == 0
    with pytest.raises(ValueError):
        evidence_needed(10, 0, 0.0, 0.05)


def test_expected_evidence_counts_the_errors_to_come() -> None:
    assert evidence_expected(100, 5, 0.05, 0.05) is None
    more = evidence_expected(100, 2, 0.05, 0.05)
    assert more is not None and more >= evidence_needed(100, 2, 0.05, 0.05)
    assert evidence_expected(1000, 3, 0.05, 0.05) == 0
