"""A challenger on live traffic is called worse when it is, and seldom when it is not."""

import numpy as np
import pytest

from router import race


def run(worse: float, n: int, rng: np.random.Generator, beside: int = 19) -> race.Race:
    x = (rng.random(n) < 0.08 + worse).astype(float)
    return race.observe(race.start(), x, rng.binomial(beside, 0.08, n) / beside)


def test_equal_challengers_are_rolled_back_no_more_often_than_delta() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(run(0.0, 3000, rng).rolled_back for _ in range(400))
    assert alarms <= 400 * 0.01 + 3 * (400 * 0.01) ** 0.5


def test_a_challenger_at_the_tolerance_passes_no_more_often_than_delta() -> None:
    rng = np.random.default_rng(1)
    passed = sum(run(0.02, 3000, rng).finest >= -np.log(0.01) for _ in range(400))
    assert passed <= 400 * 0.01 + 3 * (400 * 0.01) ** 0.5


def test_a_clearly_worse_one_is_found_and_an_equal_one_passes() -> None:
    rng = np.random.default_rng(2)
    assert all(run(0.1, 1000, rng).rolled_back for _ in range(50))
    assert sum(run(0.0, 4000, rng).passed for _ in range(50)) >= 35
    assert all(run(0.3, 100, rng).rolled_back for _ in range(50))


def test_one_by_one_is_the_same_as_all_at_once() -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.random(200) < 0.3).astype(float), rng.random(200)
    state = race.start(margin=0.01)
    for at in range(200):
        state = race.observe(state, x[at : at + 1], y[at : at + 1])
    whole = race.observe(race.start(margin=0.01), x, y)
    assert state.worst == pytest.approx(whole.worst) and state.finest == pytest.approx(whole.finest)
    assert (state.n, state.difference) == (200, pytest.approx(float((x - y).mean())))
    assert race.observe(whole, [], []) is whole


def test_no_observation_ruins_the_capital() -> None:
    state = race.observe(race.start(), [0.0] * 50, [1.0] * 50)
    assert np.isfinite(state.worse).all() and state.passed
    state = race.observe(race.start(), [1.0] * 50, [0.0] * 50)
    assert np.isfinite(state.fine).all() and state.rolled_back and not state.passed


@pytest.mark.parametrize("bad", [([0.5], [0.5, 0.1]), ([1.5], [0.0]), ([float("nan")], [0.0])])
def test_what_is_no_observation_is_refused(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError):
        race.observe(race.start(), *bad)
    with pytest.raises(ValueError):
        race.start(margin=0.03)
