"""The certificate of live traffic: what it promises at all times, and what must not change it."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from router.certificate import (
    BLOCK,
    LIVE_GRID,
    Outcome,
    Wealth,
    audits_needed,
    coverage,
    evidence,
    from_arrays,
    spent,
    start,
    threshold,
    to_arrays,
    update,
    update_arrays,
)
from router.threshold import NEVER, REJECTED

GRID = (0.9, 0.7, 0.5, 0.3)


def traffic(n: int, seed: int, *, rate: float = 0.2, deployed: float = 0.7) -> list[Outcome]:
    """Requests of a task that serves from ``deployed`` on: surer drafts are right more often."""
    rng = np.random.default_rng(seed)
    outcomes = []
    for score in rng.beta(4, 1, n).tolist():
        loss = float(rng.random() < 0.5 * (1.0 - score))
        served = score >= deployed
        outcomes.append(
            Outcome(
                score=REJECTED if rng.random() < 0.05 else score,
                propensity=rate if served else 1.0,
                loss=loss if not served or rng.random() < rate else None,
                guess=1.0 - score,
            )
        )
    return outcomes


def same(a: Wealth, b: Wealth) -> bool:
    theirs = to_arrays(b)
    return all(np.array_equal(array, theirs[name]) for name, array in to_arrays(a).items())


def fresh(alpha: float = 0.1, least: float = 0.2) -> Wealth:
    return start(GRID, alpha, 0.05, least_propensity=least)


def test_batches_of_any_size_give_the_same_state_to_the_bit() -> None:
    outcomes = traffic(500, 1)
    at_once = update(fresh(), outcomes)
    one_by_one, in_sevens = fresh(), fresh()
    for outcome in outcomes:
        one_by_one = update(one_by_one, [outcome])
    for at in range(0, len(outcomes), 7):
        in_sevens = update(in_sevens, outcomes[at : at + 7])
    assert same(at_once, one_by_one)
    assert same(at_once, in_sevens)
    assert at_once.n == 500 and at_once.audits > 0 and at_once.labels > 0


def test_order_inside_a_block_changes_nothing_to_the_bit() -> None:
    outcomes = traffic(20 * BLOCK, 2)
    rng = np.random.default_rng(3)
    shuffled = [
        outcomes[at + place]
        for at in range(0, len(outcomes), BLOCK)
        for place in rng.permutation(BLOCK).tolist()
    ]
    assert shuffled != outcomes
    assert same(update(fresh(), outcomes), update(fresh(), shuffled))


def test_order_inside_a_batch_changes_neither_counts_nor_final_capital() -> None:
    outcomes = traffic(1000, 4)
    order = np.random.default_rng(5).permutation(1000).tolist()
    one, other = update(fresh(), outcomes), update(fresh(), [outcomes[at] for at in order])
    assert np.array_equal(one.logs, other.logs)
    assert np.array_equal(one.served, other.served)
    assert np.array_equal(one.losses, other.losses)
    assert (one.n, one.audits, one.labels) == (other.n, other.audits, other.labels)


def test_the_state_survives_a_file_to_the_bit() -> None:
    wealth = update(fresh(), traffic(333, 6))
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **to_arrays(wealth))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = from_arrays(arrays)
    assert same(wealth, again)
    assert same(update(wealth, traffic(50, 7)), update(again, traffic(50, 7)))
    with pytest.raises(ValueError, match="peak has the shape"):
        from_arrays({**to_arrays(wealth), "peak": np.zeros(3)})


def test_updates_do_not_change_the_state_they_start_from() -> None:
    wealth = update(fresh(), traffic(100, 8))
    before = {name: array.copy() for name, array in to_arrays(wealth).items()}
    update(wealth, traffic(100, 9))
    assert all(np.array_equal(before[name], array) for name, array in to_arrays(wealth).items())


def test_rows_that_could_not_be_observed_count_for_nothing() -> None:
    blind = [Outcome(score=0.99, propensity=0.0, loss=None) for _ in range(5000)]
    assert same(update(fresh(), blind), fresh())
    assert threshold(update(fresh(), blind)) == NEVER
    mixed = [row for pair in zip(traffic(200, 10), blind, strict=False) for row in pair]
    assert same(update(fresh(), mixed), update(fresh(), traffic(200, 10)))


def test_a_free_label_that_is_missing_counts_as_a_disagreement() -> None:
    lost = [Outcome(score=0.95, propensity=1.0, loss=None) for _ in range(100)]
    wrong = [Outcome(score=0.95, propensity=1.0, loss=1.0) for _ in range(100)]
    assert np.array_equal(update(fresh(), lost).logs, update(fresh(), wrong).logs)
    assert update(fresh(), lost).labels == 0


def test_a_propensity_under_the_least_is_refused() -> None:
    rare = Outcome(score=0.95, propensity=0.1, loss=None)
    with pytest.raises(ValueError, match="propensity"):
        update(fresh(), [rare])
    assert update(fresh(), [replace(rare, least=0.1)]).n == 1
    with pytest.raises(ValueError, match="losses"):
        update(fresh(), [replace(rare, propensity=1.0, loss=1.5)])


def test_only_an_unbroken_run_of_certified_points_is_certified() -> None:
    goal = -math.log(0.05)
    wealth = fresh()
    assert threshold(wealth) == NEVER
    assert threshold(replace(wealth, peak=np.array([goal, goal, 1.0, goal]))) == 0.7
    assert threshold(replace(wealth, peak=np.array([1.0, goal, goal, goal]))) == NEVER
    assert threshold(replace(wealth, peak=np.full(4, goal))) == 0.3


def test_every_certified_point_has_reached_its_evidence_and_stays_certified() -> None:
    wealth, laxest = start(LIVE_GRID, 0.05, 0.05, least_propensity=0.2), NEVER
    outcomes = traffic(6000, 11)
    for at in range(0, len(outcomes), 200):
        wealth = update(wealth, outcomes[at : at + 200])
        t = threshold(wealth)
        assert t <= laxest
        assert (wealth.peak[wealth.grid >= t] >= -math.log(0.05)).all()
        laxest = t
    assert 0.3 < laxest < 1.0


def losing(
    rng: np.random.Generator, n: int, alpha: float, how: str
) -> dict[str, NDArray[np.float64]]:
    """Requests that lose exactly ``alpha`` of all at the threshold 0.5, half of them served."""
    scores = rng.choice([0.9, 0.6, 0.2], n, p=[0.25, 0.25, 0.5])
    losses = (rng.random(n) < np.where(scores == 0.9, 1.0, 3.0) * alpha).astype(np.float64)
    guesses = np.zeros(n)
    propensities = np.where(scores >= 0.5, 0.1, 1.0)
    if how == "uneven":
        propensities = np.where(scores == 0.6, 0.4, 0.1)
    if how == "guessed":
        guesses = np.where(scores == 0.9, 0.9, 0.01)  # and badly
    if how == "free":
        propensities = np.ones(n)
    if how == "half free":
        propensities = np.where(scores == 0.6, 1.0, 0.1)
    observed = rng.random(n) < propensities
    return {
        "scores": scores,
        "propensities": propensities,
        "losses": np.where(observed, losses, np.nan),
        "guesses": guesses,
    }


@pytest.mark.parametrize("how", ["even", "uneven", "guessed", "free", "half free"])
def test_a_broken_contract_is_certified_in_at_most_delta_of_the_runs(how: str) -> None:
    # Twice the allowed error, so that 200 runs can tell; loss exactly alpha is the worst case.
    runs, delta, alpha = 200, 0.2, 0.05
    rng = np.random.default_rng([12, len(how)])
    least = 1.0 if how == "free" else 0.1
    broken = 0
    for _ in range(runs):
        wealth = start((0.5,), alpha, delta, least_propensity=least)
        wealth = update_arrays(wealth, **losing(rng, 1500, alpha, how))
        broken += threshold(wealth) < NEVER
    assert broken <= runs * delta + 2.33 * math.sqrt(runs * delta * (1 - delta))


def test_a_propensity_that_is_not_the_true_one_voids_the_certificate() -> None:
    # So the test above can fail: what is looked at in 1 of 20 is said to be in 1 of 10.
    rng, certified = np.random.default_rng(12), 0
    for _ in range(20):
        rows = losing(rng, 1500, 0.05, "even")
        hidden = (rows["scores"] >= 0.5) & (rng.random(1500) < 0.5)
        rows["losses"][hidden] = np.nan
        wealth = start((0.5,), 0.05, 0.2, least_propensity=0.1)
        certified += threshold(update_arrays(wealth, **rows)) < NEVER
    assert certified >= 10


def test_an_even_slightly_kept_contract_is_certified_in_the_end() -> None:
    rng = np.random.default_rng(13)
    found = 0
    for _ in range(10):
        wealth = start((0.5,), 0.05, 0.2, least_propensity=0.1)
        wealth = update_arrays(wealth, **losing(rng, 20_000, 0.03, "half free"))
        found += threshold(wealth) == 0.5
    assert found >= 9


def test_the_loop_that_deploys_what_it_certifies_keeps_the_contract() -> None:
    rng = np.random.default_rng(14)
    alpha, rate, broken, served_share = 0.05, 0.2, 0, 0.0
    for _ in range(20):
        wealth, deployed = start(LIVE_GRID, alpha, 0.1, least_propensity=rate), NEVER
        for _ in range(12):
            scores = rng.random(250)
            losses = (rng.random(250) < 0.4 * (1.0 - scores)).astype(np.float64)
            served = scores >= deployed
            seen = ~served | (rng.random(250) < rate)
            wealth = update_arrays(
                wealth,
                scores=scores,
                propensities=np.where(served, rate, 1.0),
                losses=np.where(seen, losses, np.nan),
                least=1.0 if deployed == NEVER else rate,
            )
            deployed = threshold(wealth)
        broken += 0.2 * (1.0 - deployed) ** 2 > alpha  # R(t), as the scores are uniform
        served_share += (1.0 - deployed) / 20
    assert broken <= 5  # 20 · 0.1, and noise
    assert served_share > 0.3  # of at most 0.5


def test_a_threshold_no_longer_free_to_observe_keeps_what_it_has_won() -> None:
    free = [Outcome(score=0.95, propensity=1.0, loss=0.0, least=1.0) for _ in range(BLOCK)]
    rare = [Outcome(score=0.95, propensity=0.2, loss=None) for _ in range(BLOCK)]
    before, after = update(fresh(), free), update(fresh(), [*free, *rare])
    assert np.isclose(np.exp(before.logs).mean(axis=1), np.exp(before.peak)).all()
    assert (after.peak > before.peak).all()
    assert same(after, update(before, rare))


def test_capital_is_dealt_out_anew_only_when_the_audit_rate_is_another() -> None:
    free = [Outcome(score=0.95, propensity=1.0, loss=0.0, least=1.0)] * 50
    rate = [Outcome(score=0.95, propensity=0.2, loss=None, least=0.2)]
    drifted = [Outcome(score=0.95, propensity=0.25, loss=None, least=0.25)]
    before = update(fresh(), free)
    assert np.ptp(before.logs[0]) > 1.0
    dealt = update(before, rate)
    assert np.ptp(dealt.logs[0]) < 0.1
    even = np.exp(before.logs[0]).mean()
    assert np.exp(dealt.logs[0]).mean() == pytest.approx(even, rel=0.05)
    kept = update(update(dealt, rate * 200), drifted)
    assert np.ptp(kept.logs[0]) > 1.0


def test_an_archive_of_sampled_requests_certifies_a_new_student() -> None:
    """Uniformly sampled requests keep the teacher's answer, so each is a free label for any
    student that was not trained on it: the certificate is that of a calibration set."""
    rng = np.random.default_rng(15)
    prompts = rng.random(4000)
    sampled = prompts[rng.random(4000) < 0.5]
    scores = 1.0 - 0.5 * sampled  # the new student's
    losses = (rng.random(len(sampled)) < 0.2 * sampled).astype(np.float64)
    archive = [
        Outcome(score=s, propensity=1.0, loss=x, least=1.0)
        for s, x in zip(scores.tolist(), losses.tolist(), strict=True)
    ]
    replayed = update(start(LIVE_GRID, 0.05, 0.05, least_propensity=0.05), archive)
    assert (replayed.audits, replayed.labels) == (0, len(sampled))
    t = threshold(replayed)
    share = min(1.0, 2.0 * (1.0 - t))
    assert share > 0.4 and 0.1 * share**2 <= 0.05


def test_an_archive_of_served_and_escalated_requests_does_too() -> None:
    """Requests whose teacher's answer is not known count as well, whatever the new student would
    have scored: they stand for themselves with nothing observed."""
    rng = np.random.default_rng(16)
    wealth = start(LIVE_GRID, 0.05, 0.05, least_propensity=0.25)
    archive = []
    for x in rng.random(12_000).tolist():
        propensity = 1.0 if x > 0.6 else 0.25  # what the old student served was audited
        known = rng.random() < propensity
        loss = float(rng.random() < 0.2 * x)
        archive.append(
            Outcome(
                score=1.0 - 0.5 * x if known else REJECTED,
                propensity=propensity,
                loss=loss if known else None,
            )
        )
    wealth = update(wealth, archive)
    share = min(1.0, 2.0 * (1.0 - threshold(wealth)))
    assert share > 0.4 and 0.1 * share**2 <= 0.05
    at = int((wealth.grid >= 0.75).sum()) - 1
    assert abs(wealth.losses[at] / wealth.n - 0.1 * (2 * (1 - wealth.grid[at])) ** 2) < 0.006


def test_the_forecast_of_audits_is_of_the_right_size() -> None:
    def half(n: int, seed: int) -> list[Outcome]:
        rng = np.random.default_rng(seed)
        seen = rng.random(n) < 0.2
        wrong = rng.random(n) < 0.01
        return [
            Outcome(score=0.95, propensity=0.2, loss=float(w) if s else None)
            for s, w in zip(seen, wrong, strict=True)
        ]

    took, forecasts = [], []
    for seed in range(11):
        wealth = update(start((0.9,), 0.05, 0.05, least_propensity=0.2), half(150, seed))
        if threshold(wealth) == NEVER and (needed := audits_needed(wealth)) is not None:
            before = wealth.audits
            for more in range(200):
                wealth = update(wealth, half(20, 1000 * seed + more + 17))
                if threshold(wealth) < NEVER:
                    break
            took.append(wealth.audits - before)
            forecasts.append(needed)
    assert len(took) >= 6
    assert 0.5 < np.median(forecasts) / np.median(took) < 2.0


def test_no_number_of_audits_is_forecast_for_what_breaks_the_contract() -> None:
    wrong = [Outcome(score=0.95, propensity=1.0, loss=float(i % 2)) for i in range(200)]
    assert audits_needed(update(fresh(), wrong)) is None
    goal = -math.log(0.05)
    assert audits_needed(replace(update(fresh(), wrong), peak=np.full(4, goal))) is None
    assert audits_needed(fresh()) is None


def test_evidence_says_what_is_certified() -> None:
    found = evidence(update(start(LIVE_GRID, 0.05, 0.05, least_propensity=0.2), traffic(6000, 11)))
    assert found.coverage_low < found.coverage < found.coverage_high
    assert found.risk < 0.05
    assert found.next_threshold is not None and found.next_threshold < found.threshold
    assert found.audits_needed is None or found.audits_needed > 0
    nothing = evidence(fresh())
    assert (nothing.threshold, nothing.coverage) == (NEVER, 0.0)


def test_coverage_counts_all_requests_with_an_interval() -> None:
    rows = [Outcome(score=s, propensity=1.0, loss=0.0) for s in (0.95, 0.8, 0.4, REJECTED)]
    wealth = update(fresh(), rows)
    assert coverage(wealth, 0.7)[0] == 0.5
    assert coverage(wealth, 0.3)[0] == 0.75
    assert coverage(wealth, NEVER) == (0.0, 0.0, 0.0)
    low, high = coverage(wealth, 0.7)[1:]
    assert 0.0 < low < 0.5 < high < 1.0


def test_epochs_never_spend_more_than_there_is() -> None:
    assert spent(0.05, 1) == 0.025
    assert sum(spent(0.05, epoch) for epoch in range(1, 10_000)) < 0.05
    with pytest.raises(ValueError):
        spent(0.05, 0)


def test_a_grid_must_fall_strictly_and_stay_over_what_is_never_served() -> None:
    for grid in ((), (0.5, 0.7), (0.5, 0.5), (0.5, REJECTED)):
        with pytest.raises(ValueError, match="threshold"):
            start(grid, 0.05, 0.05, least_propensity=0.2)
