"""Exact paired tests: equal to scipy's, and honest in simulation."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from retrain.paired import (
    compare,
    rows_to_show_not_worse,
    sign_test,
    tail,
    worse_by_at_most,
)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (9, 2), (40, 18), (0, 7)])
def test_the_sign_test_is_scipys_exact_binomial_test(wins: int, losses: int) -> None:
    expected = 1.0
    if wins + losses:
        expected = binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue
    assert sign_test(wins, losses) == pytest.approx(expected)


def test_the_tail_is_a_plain_sum_of_probabilities() -> None:
    assert tail(3, 5, 0.3) == pytest.approx(sum(binom.pmf(k, 5, 0.3) for k in (3, 4, 5)))


def test_wins_and_losses_are_counted_row_by_row() -> None:
    paired = compare([1, 1, 0, 0, 1], [0, 0, 1, 0, 1], level=0.05)
    assert (paired.n, paired.wins, paired.losses) == (5, 2, 1)
    assert paired.difference == pytest.approx(-0.2)
    assert paired.p_better == pytest.approx(sign_test(2, 1))
    assert paired.p_worse == pytest.approx(sign_test(1, 2))


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one loss per row"):
        compare([0.0], [0.0, 1.0], level=0.05)


def test_the_bound_on_being_worse_is_too_low_no_more_often_than_promised() -> None:
    random = np.random.default_rng(5)
    level, n = 0.1, 300
    for win, lose in ((0.04, 0.08), (0.10, 0.12), (0.0, 0.02), (0.2, 0.3)):
        counts = random.multinomial(n, [win, lose, 1 - win - lose], size=2000)
        low = [worse_by_at_most(int(w), int(x), n, level) < lose - win for w, x, _ in counts]
        assert np.mean(low) <= level


def test_the_bound_on_being_worse_is_tight_enough_to_be_useful() -> None:
    assert worse_by_at_most(50, 50, 1000, 0.05) < 0.03
    assert worse_by_at_most(60, 20, 1000, 0.05) == 0.0
    assert worse_by_at_most(0, 0, 200, 0.05) < 0.02
    assert worse_by_at_most(0, 0, 0, 0.05) == 1.0


def test_no_difference_between_fractional_losses_is_seldom_called_one() -> None:
    random = np.random.default_rng(6)
    called = 0
    for _ in range(400):
        old, new = random.beta(1, 4, size=(2, 150))
        paired = compare(list(old), list(new), level=0.05)
        called += paired.p_better <= 0.05
    assert called / 400 <= 0.05


def test_a_real_difference_between_fractional_losses_is_found() -> None:
    random = np.random.default_rng(7)
    old = random.beta(2, 4, size=600)
    new = np.clip(old - 0.1 + random.normal(0, 0.1, size=600), 0, 1)
    paired = compare(list(old), list(new), level=0.01)
    assert paired.p_better <= 0.01 < paired.p_worse
    assert paired.worse_by_at_most == 0.0
    back = compare(list(new), list(old), level=0.01)
    assert back.p_worse <= 0.01
    assert back.worse_by_at_most >= back.difference > 0.05


def test_the_number_of_rows_needed_settles_the_question() -> None:
    paired = compare([0.0] * 95 + [1.0] * 5, [1.0] * 5 + [0.0] * 95, level=0.05)
    needed = rows_to_show_not_worse(paired, 0.02)
    assert needed is not None and needed > 100
    times = needed / 100
    assert worse_by_at_most(round(5 * times), round(5 * times), needed, 0.05) <= 0.02


def test_what_looks_worse_than_the_margin_never_becomes_good_enough() -> None:
    paired = compare([0.0] * 100, [1.0] * 10 + [0.0] * 90, level=0.05)
    assert rows_to_show_not_worse(paired, 0.02) is None
