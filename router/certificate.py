"""The certificate of live traffic: betting against the claim that a threshold breaks the contract.

For every threshold t of a grid fixed beforehand, capital is staked against the claim
"R(t) >= alpha" (R as in router/threshold.py). A request multiplies the capital of each bet by
``1 + bet · (alpha - x)``, where x is its loss if t serves it, weighted so that its mean is R(t)
however rarely losses are looked at:

    x = 1{score >= t} · (guess + observed / propensity · (loss - guess))

If the claim is true the capital is a non-negative supermartingale, so it ever reaches 1/delta with
probability at most delta, however often one looks (Ville, 1939; Waudby-Smith and Ramdas, 2020).
R falls as t rises, so thresholds are taken from the strictest on while each of them has reached
1/delta at some time: no correction for their number. Drafts that went to the teacher anyway are
looked at for free, with propensity 1.

What makes it valid, and callers must keep: the size of a bet may depend on the past but on nothing
about the request itself. So bets are sized for the least propensity that *any* request could have
had at that time (``Outcome.least``), not for the one it has. Guess and propensity are fixed before
the loss is seen, and rows are left out for reasons that do not depend on them.

Everything is a function of the order of requests and not of how they come in batches: the capital
is a product, kept in multiples of 2^-40 so that sums are exact in any order, and its running
maximum is taken after every BLOCK-th request. Within a block, order changes nothing at all.

Bets sized for each threshold from its own past were tried instead of a mean over six sizes: sooner
where R is far under alpha, but later where it is near, which is where coverage is won; and what
they win depends on order. Their numbers are in LOG.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.threshold import GRID, NEVER, REJECTED, interval

Doubles = NDArray[np.float64]

#: Thresholds of live certificates: every second of the offline ones, 0.1 apart in log-odds.
LIVE_GRID: tuple[float, ...] = (*GRID[:-1:2], 0.0)
#: The bets, as shares of the largest that cannot go bankrupt. The best one for a threshold is about
#: 1 - R(t)/alpha: the last is for thresholds that never err, the first for those so near alpha
#: that it takes tens of thousands of audits to tell. Few, because the mean is over all of them.
SHARES: Doubles = np.geomspace(0.06, 0.8, 6)
#: The running maximum of the capital is taken after every so many requests.
BLOCK = 16
#: A least propensity is another where it differs by this factor, not where an audit rate drifts.
ANOTHER = 2.0
#: Log-capital is kept in units of this, rounded down: exact sums, and never too much.
UNIT = 2.0**-40
#: Blocks worked on at once; bounds memory only.
CHUNK = 256 * BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request, as the certificate sees it.

    ``score``: REJECTED where it can never be served. ``propensity``: the probability with which
    its loss was to be observed; 1.0 for a free label; a row with 0.0 is skipped. ``loss``: in
    [0, 1], None where it was not observed; what was to be observed for sure and is missing
    counts as 1. ``guess``: the loss expected before it was seen. ``least``: the least propensity
    any request could have had then, 1.0 while nothing was served at all; None: the certificate's.
    """

    score: float
    propensity: float
    loss: float | None
    guess: float = 0.0
    least: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wealth:
    """What was staked and won so far; replaced, never changed. T thresholds, J bets."""

    grid: Doubles
    """T thresholds, strictest first."""
    alpha: float
    delta: float
    least: float
    """The least propensity of a request that does not say."""
    logs: Doubles
    """T × J: the log-capital of each bet."""
    peak: Doubles
    """T: the largest log of the mean capital so far, at the ends of blocks; log 1/delta ends it."""
    losses: Doubles
    """T: the sum of x; over ``n``, the estimate of R."""
    served: NDArray[np.int64]
    """T: requests with a score of at least t."""
    n: int = 0
    """Requests counted."""
    audits: int = 0
    """Losses observed by chance: of served requests, each an answer of the teacher to pay for."""
    labels: int = 0
    """Losses observed for free."""
    now: float = 1.0
    """The least propensity at the last request."""
    dealt: float = 1.0
    """The least propensity when the bets last had equal capital."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a certificate says, to be printed. ``risk``: the estimate of R at ``threshold``;
    ``next_threshold``: the next laxer one, None at the end of the grid."""

    threshold: float
    coverage: float
    coverage_low: float
    coverage_high: float
    risk: float
    n: int
    audits: int
    labels: int
    next_threshold: float | None
    audits_needed: int | None


def start(grid: ArrayLike, alpha: float, delta: float, *, least_propensity: float) -> Wealth:
    """Capital 1 on every threshold. ``grid`` must not depend on the requests to come.

    ``least_propensity``: the smallest one any request may have, which bounds the bets. Raises
    ValueError where a number is out of its range or the grid does not fall strictly.
    """
    points = np.array(grid, dtype=np.float64)
    if points.ndim != 1 or not len(points) or not (np.diff(points) < 0).all():
        raise ValueError("a grid is a list of thresholds, strictest first")
    if not points[-1] > REJECTED:
        raise ValueError(f"a threshold must be over {REJECTED}, the score of what is never served")
    if not 0.0 < alpha < 1.0 or not 0.0 < delta < 1.0 or not 0.0 < least_propensity <= 1.0:
        raise ValueError(
            f"alpha={alpha}, delta={delta} and least_propensity={least_propensity} must be shares"
        )
    zeros = np.zeros(len(points))
    return Wealth(
        grid=points,
        alpha=alpha,
        delta=delta,
        least=least_propensity,
        logs=np.zeros((len(points), len(SHARES))),
        peak=zeros,
        losses=zeros,
        served=np.zeros(len(points), np.int64),
    )


def spent(delta: float, epoch: int) -> float:
    """The part of ``delta`` for the ``epoch``-th certificate, from 1 on: together never more."""
    if epoch < 1:
        raise ValueError(f"epochs count from 1, not {epoch}")
    return delta / (epoch * (epoch + 1))


def update(wealth: Wealth, outcomes: Sequence[Outcome]) -> Wealth:
    """The capital after these requests, in their order; the same in one call or in many.

    Raises ValueError where a number is out of its range, or a propensity is under the least.
    """
    rows = [o for o in outcomes if o.propensity != 0.0]
    least = [wealth.least if o.least is None else o.least for o in rows]
    return update_arrays(
        wealth,
        scores=[o.score for o in rows],
        propensities=[o.propensity for o in rows],
        losses=[math.nan if o.loss is None else o.loss for o in rows],
        guesses=[o.guess for o in rows],
        least=least,
    )


def update_arrays(
    wealth: Wealth,
    *,
    scores: ArrayLike,
    propensities: ArrayLike,
    losses: ArrayLike,
    guesses: ArrayLike | float = 0.0,
    least: ArrayLike | float | None = None,
) -> Wealth:
    """The same for columns of numbers; a loss that was not observed is NaN."""
    s, p, x, u, low = _columns(wealth, scores, propensities, losses, guesses, least)
    if not len(s):
        return wealth
    seen, sure = ~np.isnan(x), p == 1.0
    values = u + np.where(seen | sure, (np.where(seen, x, 1.0) - u) / p, 0.0)
    # Where the least propensity becomes another, the capital is dealt out to all bets anew: what
    # was too bold a bet under the old one says nothing under the new one.
    cuts = (np.flatnonzero(np.diff(low)) + 1).tolist()
    for begin, end in pairwise([0, *cuts, len(s)]):
        if not wealth.n:
            wealth = replace(wealth, dealt=float(low[0]))
        elif not 1.0 / ANOTHER < low[begin] / wealth.dealt < ANOTHER:
            even = _units(_mean_capital(wealth.logs))
            even = np.repeat(even[:, None], len(SHARES), axis=1)
            wealth = replace(wealth, logs=even, dealt=float(low[begin]))
        for at in range(begin, end, CHUNK):
            part = slice(at, min(at + CHUNK, end))
            wealth = _bet(wealth, s[part], values[part], low[part])
    return replace(
        wealth,
        audits=wealth.audits + int((seen & ~sure).sum()),
        labels=wealth.labels + int((seen & sure & (s > REJECTED)).sum()),
    )


def threshold(wealth: Wealth) -> float:
    """The laxest certified threshold; NEVER where there is none."""
    reached = _certified(wealth)
    return float(wealth.grid[reached - 1]) if reached else NEVER


def coverage(wealth: Wealth, t: float) -> tuple[float, float, float]:
    """The share of requests that ``t`` serves, with its Clopper–Pearson interval at confidence
    1 - delta. A ``t`` between two points of the grid counts as the stricter of them."""
    at = int((wealth.grid >= t).sum())
    if not at or not wealth.n:
        return 0.0, 0.0, 0.0 if not at else 1.0
    served = int(wealth.served[at - 1])
    return (served / wealth.n, *interval(served, wealth.n, wealth.delta))


def audits_needed(wealth: Wealth) -> int | None:
    """Losses still to be observed until the next laxer threshold is certified, if everything goes
    on at the observed rates; None where it never would be, or there is none.

    Counts audits of what the certified threshold serves, or free labels while it serves nothing.
    """
    at = _certified(wealth)
    if at == len(wealth.grid) or not wealth.n:
        return None
    rate = wealth.losses[at] / wealth.n
    bets = SHARES / (1.0 / wealth.now - wealth.alpha)
    # Losses are taken to come as audits find them, few and heavy: a cautious forecast.
    gain = np.log1p(bets * wealth.alpha)
    fall = np.log1p(bets * (wealth.alpha - 1.0 / wealth.now)) - gain
    growth = gain + min(rate * wealth.now, 1.0) * fall
    goal = -math.log(wealth.delta)
    if growth.max() <= 0.0:
        return None
    rows = 1
    while _mean_capital(wealth.logs[at] + rows * growth) < goal:
        rows = math.ceil(rows * 1.02) + 1  # to 2 %: the answer is a plan, not a bound
        if rows > 1_000_000_000:
            return None
    if wealth.now == 1.0:
        return rows
    share, _, _ = coverage(wealth, threshold(wealth))
    return max(1, math.ceil(rows * wealth.now * (share or 1.0)))


def evidence(wealth: Wealth) -> Evidence:
    """The certificate in numbers a person can judge."""
    at, t = _certified(wealth), threshold(wealth)
    value, low, high = coverage(wealth, t)
    return Evidence(
        threshold=t,
        coverage=value,
        coverage_low=low,
        coverage_high=high,
        risk=float(wealth.losses[at - 1]) / wealth.n if at and wealth.n else 0.0,
        n=wealth.n,
        audits=wealth.audits,
        labels=wealth.labels,
        next_threshold=float(wealth.grid[at]) if at < len(wealth.grid) else None,
        audits_needed=audits_needed(wealth),
    )


def to_arrays(wealth: Wealth) -> dict[str, NDArray[Any]]:
    """Arrays that hold the state to the bit, for np.savez without pickles."""
    return {
        "grid": wealth.grid,
        "logs": wealth.logs,
        "peak": wealth.peak,
        "losses": wealth.losses,
        "served": wealth.served,
        "shares": np.array([wealth.alpha, wealth.delta, wealth.least, wealth.now, wealth.dealt]),
        "counts": np.array([wealth.n, wealth.audits, wealth.labels], np.int64),
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Wealth:
    """The state that ``to_arrays`` took apart. Raises KeyError or ValueError on anything else."""
    alpha, delta, least, now, dealt = (float(value) for value in arrays["shares"])
    n, audits, labels = (int(value) for value in arrays["counts"])
    fresh = start(arrays["grid"], alpha, delta, least_propensity=least)
    wealth = replace(
        fresh,
        logs=np.asarray(arrays["logs"], np.float64),
        peak=np.asarray(arrays["peak"], np.float64),
        losses=np.asarray(arrays["losses"], np.float64),
        served=np.asarray(arrays["served"], np.int64),
        n=n,
        audits=audits,
        labels=labels,
        now=now,
        dealt=dealt,
    )
    for name in ("logs", "peak", "losses", "served"):
        if getattr(wealth, name).shape != getattr(fresh, name).shape:
            raise ValueError(f"{name} has the shape {getattr(wealth, name).shape}")
    return wealth


def _certified(wealth: Wealth) -> int:
    """How many points of the grid, from the strictest on, are certified."""
    reached = wealth.peak >= -math.log(wealth.delta)
    return len(reached) if reached.all() else int(reached.argmin())


def _bet(wealth: Wealth, scores: Doubles, values: Doubles, least: Doubles) -> Wealth:
    """Stake the capital on these requests, one after the other."""
    points, alpha = len(wealth.grid), wealth.alpha
    bets = SHARES / (1.0 / least[:, None] - alpha)
    gain = _units(np.log1p(bets * alpha))
    # A request changes its gain for the thresholds it passes: from the first one it reaches on.
    first = np.searchsorted(-wealth.grid, -scores)
    hit = np.flatnonzero((first < points) & (values != 0.0))
    change = _units(np.log1p(bets[hit] * (alpha - values[hit, None]))) - gain[hit]
    blocks = (wealth.n % BLOCK + np.arange(len(scores))) // BLOCK
    count = int(blocks[-1]) + 1
    steps = np.zeros((count, points, len(SHARES)))
    np.add.at(steps, (blocks[hit], first[hit]), change)
    np.cumsum(steps, axis=1, out=steps)
    steps += np.add.reduceat(gain, np.searchsorted(blocks, np.arange(count)))[:, None, :]
    steps[0] += wealth.logs
    np.cumsum(steps, axis=0, out=steps)
    n = wealth.n + len(scores)
    whole = steps[: count if n % BLOCK == 0 else count - 1]
    peak = wealth.peak.copy()
    goal = -math.log(wealth.delta)
    rising = np.flatnonzero(peak < goal)
    if len(whole) and len(rising):
        # The mean is never over the largest, so most points need no exponentials.
        highest = whole.max(axis=(0, 2))[rising]
        rising = rising[highest > peak[rising]]
        reached = _mean_capital(whole[:, rising]).max(axis=0)
        peak[rising] = np.minimum(np.maximum(peak[rising], reached), goal)
    passed = np.bincount(first, minlength=points + 1)[:points]
    lost = np.bincount(first, weights=_units(values), minlength=points + 1)[:points]
    return replace(
        wealth,
        logs=steps[-1].copy(),
        peak=peak,
        losses=wealth.losses + np.cumsum(lost),
        served=wealth.served + np.cumsum(passed),
        n=n,
        now=float(least[-1]),
    )


def _mean_capital(logs: Doubles) -> Any:
    """The log of the mean capital over the bets, the last axis."""
    top = logs.max(axis=-1)
    return top + np.log(np.exp(logs - top[..., None]).mean(axis=-1))


def _units(logs: Doubles) -> Doubles:
    return np.asarray(np.floor(logs / UNIT) * UNIT)


def _columns(
    wealth: Wealth,
    scores: ArrayLike,
    propensities: ArrayLike,
    losses: ArrayLike,
    guesses: ArrayLike | float,
    least: ArrayLike | float | None,
) -> tuple[Doubles, Doubles, Doubles, Doubles, Doubles]:
    """The rows that count, checked."""
    low = wealth.least if least is None else least
    s, p, x, u, low = np.broadcast_arrays(
        *(np.asarray(c, np.float64) for c in (scores, propensities, losses, guesses, low))
    )
    if s.ndim != 1:
        raise ValueError(f"one value per request, not {s.shape}")
    keep = p != 0.0
    s, p, x, u, low = s[keep], p[keep], x[keep], u[keep], low[keep]
    if not np.isfinite(s).all() or not ((u >= 0.0) & (u <= 1.0)).all():
        raise ValueError("scores must be finite and guesses in [0, 1]")
    if ((x < 0.0) | (x > 1.0)).any():
        raise ValueError("losses lie in [0, 1]")
    if not ((low > 0.0) & (low <= p) & (p <= 1.0)).all():
        raise ValueError("a propensity lies between the least possible one and 1")
    return s, p, x, u, low
