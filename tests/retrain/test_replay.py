"""The curve of a replay: every number worked out by hand beside it, or simulated with the truth."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from retrain.replay import THRESHOLDS, Curve, Rows
from retrain.replay_tally import Tally
from router.threshold import NEVER, REJECTED, interval


def rows(score: Any, loss: Any, **more: Any) -> Rows:
    """All of equal weight and every label free, where nothing else is said."""
    score = np.asarray(score, float)
    ones = np.ones(len(score))
    columns = {
        "weight": ones,
        "label_weight": ones,
        "audited": np.zeros(len(score), dtype=bool),
        "student_usd": ones,
        "teacher_usd": 10 * ones,
        "student_ms": 50 * ones,
        "teacher_ms": 500 * ones,
    }
    return Rows(score=score, loss=np.asarray(loss, float), **(columns | more))


def curve(*chunks: Rows, **options: float) -> Curve:
    tally = Tally()
    for chunk in chunks:
        tally.add(chunk)
    return tally.curve(**options)


def part(whole: Rows, which: Any) -> Rows:
    return replace(whole, **{f.name: getattr(whole, f.name)[which] for f in fields(Rows)})


FIVE = rows([0.9, 0.8, 0.7, 0.6, REJECTED], [0, 1, 0, 1, 1])


def test_coverage_and_disagreement_are_shares_of_all_requests() -> None:
    found = curve(FIVE)
    point = found.at(0.75)
    assert point.threshold == pytest.approx(0.75, abs=0.01)
    assert point.coverage.value == pytest.approx(2 / 5)
    assert point.disagreement.value == pytest.approx(1 / 5)
    # a draft that may not be served is served by no threshold
    assert found.at(0.0).coverage.value == pytest.approx(4 / 5)
    assert found.at(0.0).disagreement.value == pytest.approx(2 / 5)
    assert (found.rows, found.labels, found.audits) == (5, 4, 0)


def test_with_equal_weights_the_intervals_are_clopper_and_pearsons() -> None:
    point = curve(FIVE).at(0.75)
    assert (point.coverage.low, point.coverage.high) == pytest.approx(interval(2, 5, 0.05))
    # no more can disagree than may be served
    low, high = interval(1, 5, 0.05)
    assert (point.disagreement.low, point.disagreement.high) == pytest.approx((low, min(high, 0.4)))
    many = curve(rows([0.9] * 900 + [0.5] * 100, [1.0] * 9 + [0.0] * 991))
    point = many.at(0.8)
    assert (point.disagreement.low, point.disagreement.high) == pytest.approx(
        interval(9, 1000, 0.05), rel=1e-6
    )


def test_without_an_error_the_interval_is_that_of_none() -> None:
    found = curve(rows([0.9] * 100, [0.0] * 100))
    assert found.at(0.5).disagreement.value == 0.0
    assert found.at(0.5).disagreement.high == pytest.approx(interval(0, 100, 0.05)[1])
    assert found.mean_loss == 0.0 and found.apgr == 0.5


def test_dollars_charge_drafts_thrown_away_and_audits() -> None:
    """At 0.75: 5 drafts at 1, 3 deferred at 10, and a tenth of 2 served at 10: 37 for 5."""
    found = curve(FIVE, audit_rate=0.1, fixed_usd=0.5)
    point = found.at(0.75)
    assert point.usd == pytest.approx(1000 * (37 / 5 + 0.5))
    assert found.teacher_usd == pytest.approx(10_000)
    assert point.saved == pytest.approx(10_000 - 7_900)


def test_an_unknown_price_is_null_and_never_zero() -> None:
    unknown = np.full(5, np.nan)
    point = curve(replace(FIVE, teacher_usd=unknown)).at(0.75)
    assert point.usd is None and point.saved is None
    some = replace(FIVE, teacher_usd=np.array([10.0, 10.0, 10.0, 10.0, np.nan]))
    found = curve(some)
    assert found.unpriced == 1
    # 4 drafts at 1 and 2 deferred at 10, of the 4 whose cost is known
    assert found.at(0.75).usd == pytest.approx(1000 * 24 / 4)


def test_latency_is_the_students_or_both() -> None:
    """Served 50, 50; deferred 550, 550; never asked 500: the middle of five is 500."""
    found = curve(replace(FIVE, student_ms=np.array([50.0, 50.0, 50.0, 50.0, 0.0])))
    point = found.at(0.75)
    assert point.p50_ms == pytest.approx(500, rel=0.08)
    assert point.p95_ms == pytest.approx(550, rel=0.08)
    assert found.at(0.0).p50_ms == pytest.approx(50, rel=0.08)
    assert found.teacher_p50_ms == pytest.approx(500, rel=0.08)
    assert found.at(NEVER).p50_ms == found.teacher_p50_ms
    none = np.full(5, np.nan)
    assert curve(replace(FIVE, student_ms=none)).at(0.75).p50_ms is None


def test_an_audit_stands_for_those_that_were_not_drawn() -> None:
    """Served: 10 at 0.9, of which 2 were audited with probability 0.2 and one disagrees. Deferred:
    10 at 0.4, of which 4 disagree. So half of the 10 served disagree: 5 of 20, and 9 of 20."""
    served = rows(
        [0.9] * 10,
        [1.0, 0.0] + [np.nan] * 8,
        label_weight=np.array([5.0, 5.0] + [0.0] * 8),
        audited=np.ones(10, dtype=bool),
    )
    deferred = rows([0.4] * 10, [1.0] * 4 + [0.0] * 6)
    found = curve(served, deferred)
    assert found.at(0.8).coverage.value == pytest.approx(0.5)
    assert found.at(0.8).disagreement.value == pytest.approx(5 / 20)
    assert found.at(0.3).disagreement.value == pytest.approx(9 / 20)
    assert (found.labels, found.audits) == (12, 2)


def test_many_free_labels_do_not_speak_for_few_audits() -> None:
    """No audit of three disagrees, so all that is known of the 500 served is very little."""
    served = rows(
        [0.9] * 500,
        [0.0] * 3 + [np.nan] * 497,
        label_weight=np.array([500 / 3] * 3 + [0.0] * 497),
        audited=np.ones(500, dtype=bool),
    )
    deferred = rows([0.4] * 500, [1.0] * 5 + [0.0] * 495)
    found = curve(served, deferred)
    assert found.at(0.8).disagreement.high == pytest.approx(0.5 * interval(0, 3, 0.05)[1], abs=0.15)
    assert found.at(0.3).disagreement.high > 0.25


def test_a_lost_audit_counts_neither_for_nor_against_the_student() -> None:
    served = rows(
        [0.9] * 8,
        [1.0, 0.0, np.nan, np.nan] + [np.nan] * 4,
        label_weight=np.array([2.0] * 4 + [0.0] * 4),
        audited=np.ones(8, dtype=bool),
    )
    found = curve(served)
    assert found.at(0.5).disagreement.value == pytest.approx(0.5)
    assert found.answered == pytest.approx(0.5)


def test_propensities_leave_no_bias_and_the_intervals_hold() -> None:
    """600 logged requests a time, a threshold at 0.5 and audits with probabilities that depend on
    the score, many times over: the mean is the truth, and 95 % of the intervals hold it."""
    rng = np.random.default_rng(5)
    wanted = (0.7, 0.4)
    truth = [(1 - t) * 0.3 * (1 - (1 + t) / 2) for t in wanted]  # loss has probability 0.3 (1 - s)
    repeats, n = 30, 600
    values, held = np.zeros((repeats, 2)), np.zeros((repeats, 2))
    for at in range(repeats):
        score = rng.random(n)
        loss = (rng.random(n) < 0.3 * (1 - score)).astype(float)
        served = score >= 0.5
        propensity = np.where(served, 0.5 - 0.3 * score, 1.0)
        drawn = rng.random(n) < propensity
        found = curve(
            rows(
                score,
                np.where(drawn, loss, np.nan),
                label_weight=np.where(drawn, 1 / propensity, 0.0),
                audited=served,
            )
        )
        for place, t in enumerate(wanted):
            point = found.at(t).disagreement
            values[at, place] = point.value
            held[at, place] = point.low <= truth[place] <= point.high
    error = values.std(axis=0) / np.sqrt(repeats)
    # the grid's point is up to a hundredth stricter than the threshold asked for
    assert np.abs(values.mean(axis=0) - truth) == pytest.approx(0.0, abs=4 * error.max() + 0.001)
    assert held.mean() >= 0.93


def test_chunks_of_any_size_give_the_same_curve() -> None:
    rng = np.random.default_rng(3)
    score = rng.random(300)
    whole = rows(score, rng.random(300) > score)
    together = curve(whole)
    chunked = curve(*(part(whole, slice(at, at + 70)) for at in range(0, 300, 70)))
    assert chunked.disagreement == pytest.approx(together.disagreement)
    assert chunked.p95_ms == pytest.approx(together.p95_ms, nan_ok=True)
    assert [group.labels for group in chunked.groups] == [group.labels for group in together.groups]
    assert [group.score for group in chunked.groups] == pytest.approx(
        [group.score for group in together.groups]
    )


def test_no_score_is_better_than_the_oracle() -> None:
    rng = np.random.default_rng(4)
    score = rng.random(500)
    found = curve(rows(score, (rng.random(500) > score).astype(float)))
    xs, ys = zip(*found.oracle, strict=True)
    assert (np.interp(found.coverage, xs, ys) <= found.disagreement + 1e-9).all()
    assert ys[-1] == pytest.approx(found.disagreement[-1])
    assert found.apgr > 0.6


def test_the_reliability_groups_hold_all_labels() -> None:
    score = np.repeat([0.2, 0.5, 0.9], 100)
    found = curve(rows(score, np.tile([0.0] * 8 + [1.0] * 2, 30)))
    assert sum(group.labels for group in found.groups) == 300
    assert [group.score for group in found.groups] == pytest.approx([0.2, 0.5, 0.9])
    assert found.groups[0].agreement.value == pytest.approx(0.8)


def test_the_laxest_threshold_stops_at_the_first_that_does_not_fit() -> None:
    found = curve(rows([0.9] * 200 + [0.6] * 50 + [0.3] * 500, [0] * 200 + [1] * 50 + [0] * 500))
    best = found.laxest(0.05)
    assert best is not None
    assert best.coverage.value == pytest.approx(200 / 750)
    assert curve(rows([0.9] * 5, [1.0] * 5)).laxest(0.05) is None


def test_points_are_spread_over_the_coverage_and_those_asked_for_are_kept() -> None:
    rng = np.random.default_rng(2)
    found = curve(rows(rng.random(2000), np.zeros(2000)))
    points = found.spread(10, keep=[0.123, NEVER])
    covered = [point.coverage.value for point in points]
    assert 10 <= len(points) <= 11
    assert covered == sorted(covered)
    assert found.at(0.123) in points
    assert covered[-1] == 1.0


def test_a_threshold_serves_what_the_next_stricter_of_the_grid_serves() -> None:
    found = curve(FIVE)
    for place in (0, 1, 400, len(THRESHOLDS) - 2, len(THRESHOLDS) - 1):
        assert found.at(float(THRESHOLDS[place])).threshold == THRESHOLDS[place]
    assert found.at(NEVER).coverage.value == 0.0


def test_what_cannot_be_a_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="no row with a draft"):
        curve(rows([0.9, 0.8], [np.nan, np.nan]))
    with pytest.raises(ValueError, match="no row with a draft"):
        curve(rows([REJECTED], [1.0]))
    with pytest.raises(ValueError, match="finite"):
        curve(rows([np.nan], [0.0]))
