"""Exact tests for two students asked the same requests.

Losses of 0 and 1 are compared by McNemar's exact test: of the requests on which exactly one of the
two is right, each is equally likely to win under "no difference" (a binomial sign test).
Fractional losses are compared by a betting test on their mean difference (Waudby-Smith and Ramdas,
2020), valid for any distribution on [-1, 1] and any number of rows. Nothing here is asymptotic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Shares of the largest admissible bet; their mean wealth is the betting test.
BETS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
#: Beyond this many rows "more evidence" is no plan.
MOST_ROWS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Challenger against champion on ``n`` common rows.

    ``wins`` and ``losses``: rows where the challenger is closer to, farther from the teacher.
    ``difference``: its mean loss minus the champion's (negative is better). ``p_better`` and
    ``p_worse``: one-sided p-values of "it is not better" and "it is not worse".
    ``worse_by_at_most``: upper confidence bound of the true difference, never under 0, at the
    level the comparison was made with.
    """

    n: int
    wins: int
    losses: int
    difference: float
    p_better: float
    p_worse: float
    worse_by_at_most: float
    level: float


def compare(champion: Sequence[float], challenger: Sequence[float], *, level: float) -> Paired:
    """Compare two lists of losses in [0, 1], row by row. Raises ValueError on unequal lengths."""
    old, new = np.asarray(champion, np.float64), np.asarray(challenger, np.float64)
    if old.shape != new.shape or old.ndim != 1:
        raise ValueError(f"one loss per row and student, not {old.shape} and {new.shape}")
    difference = new - old
    wins, losses = int((difference < 0.0).sum()), int((difference > 0.0).sum())
    if bool(np.all(np.isin(old, (0.0, 1.0)) & np.isin(new, (0.0, 1.0)))):
        p_better, p_worse = sign_test(wins, losses), sign_test(losses, wins)
        bound = worse_by_at_most(wins, losses, len(old), level)
    else:
        p_better, p_worse = _betting(difference), _betting(-difference)
        bound = _betting_bound(difference, level)
    return Paired(
        n=len(old),
        wins=wins,
        losses=losses,
        difference=float(difference.mean()) if len(difference) else 0.0,
        p_better=p_better,
        p_worse=p_worse,
        worse_by_at_most=bound,
        level=level,
    )


def sign_test(for_it: int, against: int) -> float:
    """P(at least ``for_it`` of ``for_it + against`` fair coins): McNemar's exact one-sided p."""
    return tail(for_it, for_it + against, 0.5)


def tail(hits: int, n: int, p: float) -> float:
    """P(Binomial(n, p) >= hits)."""
    from scipy.special import bdtrc  # imported late: the command line should not wait for scipy

    return 1.0 if hits <= 0 else float(bdtrc(hits - 1, n, p))


def worse_by_at_most(wins: int, losses: int, n: int, level: float) -> float:
    """Upper bound of P(challenger errs) - P(champion errs), too low with probability <= level.

    The difference is q(2p - 1), with q the share of rows where the two differ and p the share of
    those the challenger loses. Given their number the losses are binomial, so two one-sided
    Clopper–Pearson bounds at half the level each hold together.
    """
    from router.threshold import upper_bound

    differ = wins + losses
    if n == 0:
        return 1.0
    q = upper_bound(differ, n, level / 2)
    p = upper_bound(losses, differ, level / 2) if differ else 1.0
    return q * max(0.0, 2.0 * p - 1.0)


def rows_to_show_not_worse(paired: Paired, margin: float) -> int | None:
    """How many rows in all would show the challenger not worse by ``margin``, or better, if it
    goes on as it did; None where no number will."""
    if paired.n == 0:
        return None

    def shown(n: int) -> bool:
        wins, losses = (round(k * n / paired.n) for k in (paired.wins, paired.losses))
        better = sign_test(wins, losses) <= paired.level
        return better or worse_by_at_most(wins, losses, n, paired.level) <= margin

    low = high = paired.n
    while not shown(high):
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return None
    while high - low > max(1, high // 50):  # to 2 %: a plan, not a bound
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _betting(x: Floats, mean: float = 0.0) -> float:
    """p-value of "the mean of ``x`` in [-1, 1] is at least ``mean``".

    Under it each product is a non-negative supermartingale started at 1, and so is their average;
    by Ville's inequality one over its largest value is a p-value.
    """
    if len(x) == 0:
        return 1.0
    largest = 1.0 / (1.0 - mean) if mean < 1.0 else math.inf
    bets = np.asarray(BETS) * min(largest, 1e6)
    logs = np.cumsum(np.log1p(np.outer(bets, mean - x)), axis=1)
    peak = np.maximum(logs.max(axis=0), 0.0)
    wealth = peak + np.log(np.exp(logs - peak).mean(axis=0))
    return float(min(1.0, math.exp(-max(0.0, float(wealth.max())))))


def _betting_bound(x: Floats, level: float) -> float:
    """The smallest ``mean`` in [0, 1] that the betting test refutes at ``level``, to 1e-4."""
    if _betting(x, 0.0) <= level:
        return 0.0
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if _betting(x, middle) <= level else (middle, high)
    return high
