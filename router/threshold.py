"""The quality contract as a threshold with a certificate.

The promise is about R(t) = E[1{score >= t} · loss] over *all* requests of a task: at most
``alpha`` of them are answered by the student in disagreement with the teacher. R falls as t
rises, so the thresholds of a grid fixed beforehand are tested from the strictest to the laxest
and testing stops at the first that fails: fixed-sequence testing, which needs no correction for
the number of thresholds (Angelopoulos et al., Learn then Test, 2021). Each test is exact for 0/1
losses (Clopper and Pearson, 1934) and a betting test otherwise (Waudby-Smith and Ramdas, 2020).
Picking the laxest threshold whose *observed* loss is under alpha breaks the promise about every
second time: see tests/router/test_threshold.py.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: The threshold of a router without certificate: no score reaches it.
NEVER = 1.01
#: A score for what may never be served (an invalid draft): under every threshold.
REJECTED = -1.0

#: Fixed before any data, strictest first: 1, then evenly spaced in log-odds (dense near 1, where
#: a distilled student's scores are, and near 0, where those of long texts are), then 0.
GRID: tuple[float, ...] = (
    1.0,
    *(1.0 / (1.0 + math.exp(-z / 20.0)) for z in range(360, -561, -1)),
    0.0,
)
#: Shares of the largest admissible bet; their mean wealth is the betting test.
BETS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)

#: The part of the allowed error that the offline certificate gets; the rest is for the live one.
#: Fixed before any data, so that both hold at once and the laxer of them may be used.
OFFLINE_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The evidence that a threshold keeps the contract.

    With probability at least ``confidence`` over the ``n`` requests it was computed from, at most
    ``upper_bound`` (<= ``max_disagreement``) of all requests are answered by the student in
    disagreement. ``errors_served`` is the loss observed among the served (a count for 0/1
    losses). ``coverage`` is the share of the same requests the student serves, with its
    two-sided Clopper–Pearson interval at the same confidence; the interval does not know that
    the threshold was chosen on these rows, which biases it by well under its width.
    """

    threshold: float
    max_disagreement: float
    confidence: float
    n: int
    errors_served: float
    upper_bound: float
    coverage: float
    coverage_low: float
    coverage_high: float
    method: str


def certify(
    scores: ArrayLike,
    losses: ArrayLike,
    alpha: float,
    delta: float,
    *,
    binary: bool | None = None,
) -> Certificate | None:
    """The laxest threshold of GRID that keeps R(t) <= ``alpha`` with probability 1 - ``delta``, or
    None where the evidence suffices for none that serves anything.

    One score and one loss in [0, 1] per request of the task, in the order they came in; requests
    that are never served (invalid drafts) have the score REJECTED. ``binary`` says whether losses
    are 0 or 1 by their nature; default: whether these ones are. Raises ValueError on numbers
    outside these ranges.
    """
    s, x = _checked(scores, losses, alpha, delta)
    if len(s) == 0 or alpha <= 0.0:
        return None
    if binary is None:
        binary = bool(np.all((x == 0.0) | (x == 1.0)))
    # A laxer threshold serves a superset, which only adds loss, and more loss never helps either
    # test: the sequence passes up to one point and fails from there on. Find it by halving.
    passed, failed = -1, len(GRID)
    while failed - passed > 1:
        middle = (passed + failed) // 2
        if _holds(x * (s >= GRID[middle]), alpha, delta, binary):
            passed = middle
        else:
            failed = middle
    if passed < 0 or not (served := s >= GRID[passed]).any():
        return None
    low, high = interval(int(served.sum()), len(s), delta)
    return Certificate(
        threshold=GRID[passed],
        max_disagreement=alpha,
        confidence=1.0 - delta,
        n=len(s),
        errors_served=float((x * served).sum()),
        upper_bound=_bound(x * served, alpha, delta, binary),
        coverage=float(served.mean()),
        coverage_low=low,
        coverage_high=high,
        method="clopper-pearson" if binary else "betting",
    )


def shares(delta: float) -> tuple[float, float]:
    """How ``delta`` is split: for the offline certificate, and for that of live traffic."""
    offline = OFFLINE_SHARE * delta
    return offline, delta - offline


def evidence_needed(n: int, errors: float, alpha: float, delta: float) -> int:
    """How many more requests, all without a served error, would make a certificate out of ``n``
    with ``errors``; 0 if they suffice already. The optimistic answer: no further error."""
    if alpha <= 0.0:
        raise ValueError("no number of requests certifies max_disagreement 0")
    wanted = math.ceil(errors)
    low, high = n, max(2 * n, 64)
    if n > 0 and upper_bound(wanted, n, delta) <= alpha:
        return 0
    while upper_bound(wanted, high, delta) > alpha:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if upper_bound(wanted, middle, delta) > alpha else (low, middle)
    return high - n


def evidence_expected(n: int, errors: float, alpha: float, delta: float) -> int | None:
    """The same if errors go on at the observed rate; None where that rate is over ``alpha`` or
    so near it that ten million requests would not do."""
    rate = errors / n if n else 0.0
    if rate >= alpha:
        return None
    total = max(n, 1)
    while upper_bound(math.ceil(rate * total), total, delta) > alpha:
        total = math.ceil(total * 1.02) + 1  # to 2 %: the answer is a plan, not a bound
        if total > 10_000_000:
            return None
    return total - n


def upper_bound(errors: int, n: int, delta: float) -> float:
    """The one-sided Clopper–Pearson bound: true rate above it with probability at most delta."""
    if errors >= n:
        return 1.0
    return _quantile(1.0 - delta, errors + 1, n - errors)


def interval(hits: int, n: int, delta: float) -> tuple[float, float]:
    """The two-sided Clopper–Pearson interval at confidence 1 - delta."""
    if n == 0:
        return 0.0, 1.0
    low = _quantile(delta / 2, hits, n - hits + 1) if hits > 0 else 0.0
    return low, upper_bound(hits, n, delta / 2)


def _holds(x: Floats, alpha: float, delta: float, binary: bool) -> bool:
    """Whether the mean of ``x`` is shown to be at most ``alpha``."""
    if binary:
        return upper_bound(int(x.sum()), len(x), delta) <= alpha
    return _rejects(x, alpha, delta)


def _bound(x: Floats, alpha: float, delta: float, binary: bool) -> float:
    """The upper confidence bound on the mean of ``x``, which is known to be at most ``alpha``."""
    if binary:
        return upper_bound(int(x.sum()), len(x), delta)
    low, high = float(x.mean()), alpha
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if _rejects(x, middle, delta) else (middle, high)
    return high


def _rejects(x: Floats, mean: float, delta: float) -> bool:
    """Whether "the mean of ``x`` is at least ``mean``" is refuted at level delta.

    Under it every product is a non-negative supermartingale started at 1, so is their average, and
    by Ville's inequality it ever reaches 1/delta with probability at most delta. Valid for any
    order fixed without looking at the losses.
    """
    if not 0.0 < mean < 1.0:
        return False
    bets = np.asarray(BETS) / (1.0 - mean)
    logs = np.cumsum(np.log1p(np.outer(bets, mean - x)), axis=1)
    peak = logs.max(axis=0)
    wealth = peak + np.log(np.exp(logs - peak).mean(axis=0))
    return bool(wealth.max() >= -math.log(delta))


def _checked(
    scores: ArrayLike, losses: ArrayLike, alpha: float, delta: float
) -> tuple[Floats, Floats]:
    s, x = np.asarray(scores, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if s.shape != x.shape or s.ndim != 1:
        raise ValueError(f"one score and one loss per request, not {s.shape} and {x.shape}")
    if not (np.isfinite(s).all() and np.isfinite(x).all()):
        raise ValueError("scores and losses must be finite")
    if len(x) and (x.min() < 0.0 or x.max() > 1.0):
        raise ValueError("losses lie in [0, 1]")
    if not 0.0 <= alpha <= 1.0 or not 0.0 < delta < 1.0:
        raise ValueError(f"alpha={alpha} and delta={delta} must be shares")
    return s, x


def _quantile(share: float, a: float, b: float) -> float:
    """Of the beta distribution."""
    # a third of what scipy.stats takes to load, which a gateway would wait for at its start
    from scipy.special import betaincinv

    return float(betaincinv(a, b, share))
