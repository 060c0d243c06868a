"""Drift: tests that are exact where nothing moved, and see the small changes they are for."""

import numpy as np
import pytest
from numpy.typing import NDArray

from router.drift import (
    LEVEL,
    MORE_AUDITS,
    agreement,
    deferral_test,
    factor,
    ks_test,
    tail_test,
)


def window(rng: np.random.Generator, foreign: float, reference: int = 1000) -> NDArray[np.float64]:
    """Conformal p-values of 500 requests, some of them from far away."""
    known = np.sort(rng.normal(size=reference))
    strange = rng.normal(np.where(rng.random(500) < foreign, 3.0, 0.0), 1.0)
    above = reference - np.searchsorted(known, strange)
    return np.asarray((1 + above) / (reference + 1), np.float64)


def test_five_per_cent_foreign_requests_in_500_are_seen() -> None:
    rng = np.random.default_rng(1)
    assert sum(tail_test(window(rng, 0.05), 1000).fires for _ in range(40)) >= 36


@pytest.mark.parametrize("reference", [100, 1000])
def test_ordinary_traffic_fires_as_seldom_as_promised_for_any_reference(reference: int) -> None:
    rng = np.random.default_rng(2)
    fired = sum(tail_test(window(rng, 0.0, reference), reference).fires for _ in range(300))
    assert fired <= 300 * LEVEL + 5


def test_a_tail_test_says_what_it_counted() -> None:
    found = tail_test([0.001] * 50 + [0.5] * 450, 999, (0.01,))
    assert found.fires
    assert (found.observed, found.expected, found.n) == (0.1, 0.01, 500)
    assert not tail_test([], 999).fires
    assert tail_test([0.5] * 100, 10).p_value == 1.0  # no mark can be told apart by ten prompts
    with pytest.raises(ValueError):
        tail_test([1.5], 999)


def test_scores_that_sank_are_seen_and_the_same_ones_are_not() -> None:
    rng = np.random.default_rng(3)
    before = rng.beta(8, 1, 1000)
    assert ks_test(before, rng.beta(5, 1, 500)).fires
    assert sum(ks_test(rng.beta(8, 1, 1000), rng.beta(8, 1, 500)).fires for _ in range(50)) <= 4
    assert not ks_test([], before).fires


def test_more_deferrals_than_before_are_seen() -> None:
    assert deferral_test(90, 500, 500, 5000).fires
    assert not deferral_test(52, 500, 500, 5000).fires
    assert not deferral_test(0, 0, 500, 5000).fires


def test_drift_only_ever_raises_the_audit_rate() -> None:
    quiet, loud = deferral_test(50, 500, 500, 5000), deferral_test(250, 500, 500, 5000)
    assert factor([]) == factor([quiet]) == 1.0
    assert factor([quiet, loud]) == MORE_AUDITS > 1.0


def test_agreement_of_slices_is_weighted_back_to_traffic() -> None:
    # In "a", what errs is audited four times as often as what does not.
    slices = ["a"] * 500 + ["b"] * 50
    losses = [1.0] * 100 + [0.0] * 400 + [0.0] * 50
    propensities = [0.4] * 100 + [0.1] * 400 + [0.1] * 50
    first, second = agreement(slices, losses, propensities)
    assert (first.name, first.n) == ("a", 500)
    assert first.value == pytest.approx(1 - 100 / 0.4 / (100 / 0.4 + 400 / 0.1))
    assert first.low < first.value < first.high
    assert (second.name, second.value, second.high) == ("b", 1.0, 1.0)
    assert 0.9 < second.low < 1.0


def test_intervals_of_agreement_hold_for_all_slices_at_once() -> None:
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(100):
        losses = (rng.random(300) < 0.1).astype(float)
        found = agreement(["a", "b", "c"] * 100, losses, np.ones(300), delta=0.1)
        missed += any(not one.low <= 0.9 <= one.high for one in found)
    assert missed <= 18
