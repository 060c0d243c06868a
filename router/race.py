"""Two students on live traffic at once: is the new one worse? Answered after every request.

Requests go to one of the two by a hash, so both see the same traffic. Each observation of the
challenger (0 fine, 1 bad, or a loss between) is set against the mean of what the champion did since
the one before: the difference d lies in [-1, 1] and its expectation is by how much the challenger
is worse. Two claims about that expectation are bet against,

    worse:      "it is at most `margin`"       refuted ⇒ roll back
    not worse:  "it is at least `tolerance`"   refuted ⇒ go on

each with the average capital of a few fixed bets, a non-negative martingale under its claim. By
Ville's inequality a true claim is ever refuted with probability at most `delta`, however often one
looks (Waudby-Smith and Ramdas, 2020). A check after thirty requests with a five-point margin, as
is usual, alarms on every fifth equal challenger and misses nearly half of those that are five
points worse (benchmarks/canary_simulation.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

#: Shares of the largest admissible bet; their mean capital is the test.
BETS = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Race:
    """The state; replaced, never changed. ``worse`` and ``fine``: log-capital of each bet against
    the two claims, ``worst`` and ``finest`` the largest log of their means so far."""

    margin: float
    tolerance: float
    delta: float
    worse: Doubles
    fine: Doubles
    worst: float = 0.0
    finest: float = 0.0
    n: int = 0
    total: float = 0.0

    @property
    def rolled_back(self) -> bool:
        """The challenger is shown to be worse by more than ``margin``."""
        return self.worst >= -math.log(self.delta)

    @property
    def passed(self) -> bool:
        """It is shown to be worse by less than ``tolerance``."""
        return self.finest >= -math.log(self.delta) and not self.rolled_back

    @property
    def difference(self) -> float:
        """By how much the challenger was worse, on average."""
        return self.total / self.n if self.n else 0.0


def start(*, margin: float = 0.0, tolerance: float = 0.02, delta: float = 0.01) -> Race:
    """Raises ValueError where the numbers make no test."""
    if not 0.0 <= margin < tolerance < 1.0 or not 0.0 < delta < 1.0:
        raise ValueError(f"0 <= margin={margin} < tolerance={tolerance} < 1, 0 < delta={delta} < 1")
    nothing = np.zeros(len(BETS))
    return Race(margin=margin, tolerance=tolerance, delta=delta, worse=nothing, fine=nothing)


def observe(race: Race, challenger: Sequence[float], champion: Sequence[float]) -> Race:
    """The race after further observations: one of the challenger, and beside it the champion's
    mean since the one before (as many as the challenger's; both in [0, 1])."""
    x, y = np.asarray(challenger, np.float64), np.asarray(champion, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"one champion's mean per observation, not {x.shape} and {y.shape}")
    if len(x) == 0:
        return race
    if min(x.min(), y.min()) < 0.0 or max(x.max(), y.max()) > 1.0 or not np.isfinite(x - y).all():
        raise ValueError("observations lie in [0, 1]")
    d = x - y
    # the largest bets under which no single observation can lose everything
    worse = _grown(race.worse, BETS / (1.0 + race.margin), d - race.margin)
    fine = _grown(race.fine, BETS / (1.0 - race.tolerance), race.tolerance - d)
    return replace(
        race,
        worse=worse[:, -1],
        fine=fine[:, -1],
        worst=max(race.worst, _peak(worse)),
        finest=max(race.finest, _peak(fine)),
        n=race.n + len(d),
        total=race.total + float(d.sum()),
    )


def _grown(logs: Doubles, bets: Doubles, gains: Doubles) -> Doubles:
    """(bets, observations) log-capital after each."""
    return np.asarray(logs[:, None] + np.cumsum(np.log1p(np.outer(bets, gains)), axis=1))


def _peak(logs: Doubles) -> float:
    """The largest log of the mean capital."""
    top = logs.max(axis=0)
    return float((top + np.log(np.exp(logs - top).mean(axis=0))).max())
