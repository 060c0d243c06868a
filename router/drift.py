"""Has traffic moved? Three tests of the last requests, and what they are good for: more audits.

None of them knows about losses, so none may serve or stop anything; where one fires, the audit rate
is raised for a time (``factor``), so that the certificate and the alarms, which do know, hear soon.

- the *tail* of the OOD gate's p-values: how many are under a few small marks. A small share of
  foreign requests moves nothing but this tail (benchmarks/router/drift.py).
- the *scores* of drafts, by Kolmogorov and Smirnov: a student that is less sure everywhere.
- the *deferral rate*: how many went to the teacher, against what the certificate expected.

p-values of tests are exact for requests exchangeable with the reference, whatever its size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.threshold import interval

Doubles = NDArray[np.float64]

#: Marks under which p-values are counted: the best one depends on how foreign the foreign are.
MARKS = (0.01, 0.02, 0.05)
#: How often chance is drawn: a p-value has a resolution of 1 in so many.
DRAWS = 1999
#: Requests looked at: the last so many.
WINDOW = 500
#: A test fires at this p-value. Look once per window, not at each request: it is no e-process.
LEVEL = 0.01
#: How many times as many audits while traffic seems to have moved.
MORE_AUDITS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """``p_value`` of "nothing has moved"; ``observed`` against ``expected`` shares (for ``scores``
    the largest distance between the distributions, and 0), of ``n`` requests."""

    name: str
    p_value: float
    observed: float
    expected: float
    n: int

    @property
    def fires(self) -> bool:
        return self.p_value <= LEVEL


def tail_test(p_values: ArrayLike, reference: int, marks: Sequence[float] = MARKS) -> Test:
    """Whether too many of these conformal p-values are small.

    ``reference``: how many held-out prompts they are ranks among. For exchangeable traffic the
    number under a mark is beta-binomial, which knows that the reference is finite itself. The
    statistic is the smallest of the marks' own p-values; its distribution is drawn DRAWS times
    with a fixed seed, which keeps the test exact (Monte Carlo tests count themselves among the
    draws) and costs less power than a correction for the number of marks.
    """
    p = _shares(p_values)
    n, places = len(p), [int(mark * (reference + 1) + 1e-9) for mark in marks]
    places = sorted({place for place in places if place})
    if not n or not places:  # no mark can be told from nothing with so few
        return Test(name="tail", p_value=1.0, observed=0.0, expected=0.0, n=n)
    # p <= place / (reference + 1): fewer than ``place`` of the reference are as strange.
    hits = [int((p <= place / (reference + 1) + 1e-12).sum()) for place in places]
    tails = [_tail(n, place, reference + 1 - place) for place in places]
    smallest = [float(tail[hit]) for tail, hit in zip(tails, hits, strict=True)]
    rng = np.random.default_rng(n)
    gaps = np.diff([0, *places, reference + 1])
    drawn = rng.multinomial(n, rng.dirichlet(gaps, DRAWS))[:, :-1].cumsum(axis=1)
    by_chance = np.min([tail[drawn[:, at]] for at, tail in enumerate(tails)], axis=0)
    best = int(np.argmin(smallest))
    return Test(
        name="tail",
        p_value=(1 + int((by_chance <= smallest[best] * (1 + 1e-9)).sum())) / (DRAWS + 1),
        observed=hits[best] / n,
        expected=places[best] / (reference + 1),
        n=n,
    )


def _tail(n: int, a: int, b: int) -> Doubles:
    """P(X >= k) for k = 0 … n, X beta-binomial."""
    from scipy.special import betaln, gammaln

    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    chances = np.exp(ways + betaln(k + a, n - k + b) - betaln(a, b))
    return np.asarray(np.cumsum(chances[::-1])[::-1], np.float64)


def ks_test(reference: ArrayLike, scores: ArrayLike) -> Test:
    """Whether scores are distributed unlike the reference's; neither may hold NaN."""
    from scipy.stats import ks_2samp

    old, new = np.asarray(reference, np.float64), np.asarray(scores, np.float64)
    if not len(old) or not len(new):
        return Test(name="scores", p_value=1.0, observed=0.0, expected=0.0, n=len(new))
    found = ks_2samp(old, new, method="asymp")
    return Test(
        name="scores",
        p_value=float(found.pvalue),
        observed=float(found.statistic),
        expected=0.0,
        n=len(new),
    )


def deferral_test(deferred: int, n: int, before: int, of: int) -> Test:
    """Whether ``deferred`` of the last ``n`` requests is unlike ``before`` of ``of`` earlier ones;
    two-sided, exact (Fisher)."""
    from scipy.stats import fisher_exact

    if not n or not of:
        return Test(name="deferrals", p_value=1.0, observed=0.0, expected=0.0, n=n)
    found = fisher_exact([[deferred, n - deferred], [before, of - before]])
    return Test(
        name="deferrals",
        p_value=float(found.pvalue),
        observed=deferred / n,
        expected=before / of,
        n=n,
    )


def factor(tests: Iterable[Test]) -> float:
    """By how much to multiply the audit rate."""
    return MORE_AUDITS if any(test.fires for test in tests) else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The agreement of a slice of traffic, with its interval, from ``n`` observed losses."""

    name: str
    value: float
    low: float
    high: float
    n: int


def agreement(
    slices: Sequence[str], losses: ArrayLike, propensities: ArrayLike, *, delta: float = 0.05
) -> list[Agreement]:
    """1 minus the mean loss of each slice, weighted by 1/propensity, with an interval that holds
    for all of them together at confidence 1 - ``delta``; most observed first.

    For reports. The interval is Clopper–Pearson's, of the effective number of losses where they
    are weighted or fractions, and then approximate.
    """
    x, p = _shares(losses), _shares(propensities)
    if not len(slices) == len(x) == len(p) or not (p > 0.0).all():
        raise ValueError("one slice, loss and positive propensity per audit")
    names = np.asarray(slices, dtype=object)
    found = []
    kinds = sorted(set(slices))
    for name in kinds:
        mine = names == name
        weights = 1.0 / p[mine]
        value = 1.0 - float(np.average(x[mine], weights=weights))
        size = float(weights.sum() ** 2 / (weights**2).sum())
        low, high = _interval(value, size, delta / len(kinds))
        found.append(Agreement(name=name, value=value, low=low, high=high, n=int(mine.sum())))
    return sorted(found, key=lambda slice: -slice.n)


def _interval(value: float, size: float, delta: float) -> tuple[float, float]:
    """Clopper and Pearson's, rounded outwards to whole numbers of agreeing answers."""
    n = max(1, int(size + 1e-9))
    hits = value * n
    low, _ = interval(int(np.floor(hits + 1e-9)), n, delta)
    _, high = interval(int(np.ceil(hits - 1e-9)), n, delta)
    return low, high


def _shares(values: ArrayLike) -> Doubles:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not ((found >= 0.0) & (found <= 1.0)).all():
        raise ValueError("expected shares in [0, 1], one per request")
    return found
