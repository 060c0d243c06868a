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
MARKS = (0.005, 0.01, 0.02, 0.05)
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
    number under a mark is beta-binomial, which knows that the reference is finite itself; the
    smallest p-value of the marks is paid for by their number (Bonferroni).
    """
    from scipy.stats import betabinom

    p = _shares(p_values)
    best = Test(name="tail", p_value=1.0, observed=0.0, expected=0.0, n=len(p))
    for mark in marks:
        # p <= mark means at most ``places`` - 1 of the reference are as strange.
        places = int(mark * (reference + 1) + 1e-9)
        if not places or not len(p):
            continue
        hits = int((p <= places / (reference + 1) + 1e-12).sum())
        chance = betabinom.sf(hits - 1, len(p), places, reference + 1 - places)
        paid = min(1.0, float(chance) * len(marks))
        if paid < best.p_value:
            best = Test(
                name="tail",
                p_value=paid,
                observed=hits / len(p),
                expected=places / (reference + 1),
                n=len(p),
            )
    return best


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
