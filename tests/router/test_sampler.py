"""Which requests are audited: the probability is known before, and the coin can be thrown again."""

import numpy as np
import pytest

from router.sampler import (
    SPREAD,
    Counts,
    Plan,
    by_doubt,
    coin,
    expected_loss,
    least,
    rate,
    sampled,
    shape,
)

PLAN = Plan(rate=0.01, first_rate=0.05, first_requests=2000, per_day=50)
BUSY = Counts(requests=1_000_000, served=100_000, promised=50)


def test_the_first_requests_of_a_bundle_are_audited_more() -> None:
    assert rate(PLAN, Counts(requests=1999, served=100_000, promised=50)) == 0.05
    assert rate(PLAN, Counts(requests=2000, served=100_000, promised=50)) == 0.01
    assert rate(PLAN, BUSY) == 0.01


def test_a_rate_of_zero_switches_audits_off_with_all_floors() -> None:
    off = Plan(rate=0.0, first_rate=0.05, first_requests=2000, per_day=50)
    assert rate(off, Counts()) == 0.0


@pytest.mark.parametrize("served", [20, 200, 1000, 4000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_day_has_its_audits_however_little_is_served(served: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    moments = np.sort(dice.random(served))
    promised = 0
    for moment in moments:
        counts = Counts(
            requests=10_000, served=served, promised=promised, day_left=1.0 - float(moment)
        )
        promised += dice.random() < rate(PLAN, counts)
    assert promised >= min(50, served) - 1


def test_the_floor_spreads_the_audits_over_the_day() -> None:
    morning = rate(PLAN, Counts(requests=10_000, served=1000, promised=0, day_left=1.0))
    assert morning == pytest.approx(0.05)
    on_time = rate(PLAN, Counts(requests=10_000, served=1000, promised=25, day_left=0.5))
    assert on_time == pytest.approx(0.05)
    late = rate(PLAN, Counts(requests=10_000, served=1000, promised=10, day_left=0.1))
    assert late == pytest.approx(0.4)


def test_no_request_is_under_the_least_propensity() -> None:
    dice = np.random.default_rng(3)
    for _ in range(500):
        now = Counts(
            requests=int(dice.integers(0, 10_000)),
            served=int(10 ** dice.uniform(0, 6)),
            promised=int(dice.integers(0, 100)),
            day_left=float(dice.random()),
        )
        r = rate(PLAN, now)
        assert least(PLAN, by_doubt=False) <= r <= 1.0
        for guess in (0.0, 0.001, 0.5, 1.0):
            for k in (None, 0.1, 2.0, 50.0):
                assert least(PLAN, by_doubt=True) <= by_doubt(r, guess, k) <= 1.0


def test_sampling_by_doubt_keeps_the_rate_and_prefers_doubtful_drafts() -> None:
    guesses = np.random.default_rng(5).beta(0.3, 4.0, 500)
    k = shape(guesses)
    assert k is not None
    drawn = np.array([by_doubt(0.05, guess, k) for guess in guesses])
    assert drawn.mean() == pytest.approx(0.05, rel=1e-3)
    assert drawn.min() >= SPREAD * 0.05 - 1e-12
    assert by_doubt(0.05, 0.5, k) > by_doubt(0.05, 0.05, k) > by_doubt(0.05, 0.0, k)
    assert by_doubt(1.0, 0.0, k) == 1.0


def test_weighted_by_doubt_the_loss_is_estimated_without_bias() -> None:
    dice = np.random.default_rng(7)
    guesses = dice.beta(0.3, 4.0, 4000)
    losses = (dice.random(4000) < guesses).astype(float)
    k = shape(guesses[:500])
    weights = np.array([by_doubt(0.1, guess, k) for guess in guesses])
    drawn = np.array([coin(f"req-{number}") for number in range(4000)]) < weights
    estimate = (drawn / weights * losses).mean()
    spread = np.sqrt((losses * (1 / weights - 1)).sum()) / 4000
    assert abs(estimate - losses.mean()) < 4 * spread
    # the sure ones are drawn less, so the plain mean of those drawn would be far too high
    assert losses[drawn].mean() > 1.3 * losses.mean()


def test_too_few_guesses_are_sampled_uniformly() -> None:
    assert shape([0.1] * 10) is None
    assert shape([0.0] * 1000) is None
    assert by_doubt(0.05, 0.9, None) == 0.05


def test_the_coin_is_the_ids_and_fair() -> None:
    tosses = np.array([coin(f"req-{number}") for number in range(4000)])
    assert abs((tosses < 0.05).mean() - 0.05) < 0.015
    assert sampled("req-1", 1.0) and not sampled("req-1", 0.0)
    assert coin("req-1") == coin("req-1") != coin("req-1", "reask:")
    # a larger propensity only adds to those drawn
    assert all(sampled(f"req-{n}", 0.2) for n in range(500) if sampled(f"req-{n}", 0.1))


def test_what_is_expected_of_a_draft_is_its_score_only_where_that_is_a_probability() -> None:
    assert expected_loss("label", 0.9, learned=False, typical=0.3) == pytest.approx(0.1)
    assert expected_loss("json", 0.2, learned=False, typical=0.3) == pytest.approx(0.8)
    assert expected_loss("text", 0.9, learned=False, typical=0.3) == 0.3
    assert expected_loss("text", 0.9, learned=True, typical=0.3) == pytest.approx(0.1)
    assert expected_loss("label", -1.0, learned=False, typical=0.0) == 1.0
