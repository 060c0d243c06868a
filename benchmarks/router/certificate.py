"""Does the contract hold while one looks all the time, and what does it cost?

    RETORT_DATA=<folder> python benchmarks/router/certificate.py

Each data set is a pool of (score, loss) of a real student beside a real teacher. A stream draws
requests from it with replacement, so that its true R(t) is known exactly and requests are
independent, as the promise assumes: permuting the pool itself would make every method look better
towards the end of it, when the rest is all that can still go wrong.

*Ours* is the closed loop as it is served: it starts with the offline certificate (or none: then
everything goes to the teacher, and labels are free), deploys the laxest certified threshold, audits
RATE of what it serves, takes what it sends to the teacher as free labels, and deploys again every
BATCH requests. A violation is ever *deploying* t with R(t) > α. Baselines get the label of every
request, and look again every LOOK of them.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles
from router.certificate import LIVE_GRID, SHARES, start, threshold, update_arrays
from router.threshold import NEVER, certify, upper_bound

Doubles = NDArray[np.float64]

ALPHAS = (0.01, 0.02, 0.03, 0.05, 0.10)
DELTA = 0.05
#: The part of δ for the offline Clopper–Pearson certificate; the rest is staked on live traffic.
OFFLINE_SHARE = 0.5
OFFLINE = 1000
RATE = 0.05
BATCH = 200
LOOK = 100
GRID = np.array(LIVE_GRID)
SECTION = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Requests with the score of the student's draft and its disagreement with the teacher."""

    name: str
    scores: Doubles
    losses: Doubles

    def curve(self) -> tuple[Doubles, Doubles]:
        """R(t) and coverage at the points of the grid."""
        served = self.scores[None, :] >= GRID[:, None]
        return (served * self.losses).mean(axis=1), served.mean(axis=1)


def synthetic(error: float, separation: float, n: int = 20_000, seed: int = 5) -> Pool:
    """A binormal student: scores are the true chance to be right."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < error
    z = rng.normal(np.where(wrong, 0.0, separation), 1.0)
    odds = np.log((1 - error) / error) + separation * z - separation**2 / 2
    return Pool(
        name=f"synthetic {100 * error:.0f} % wrong",
        scores=1.0 / (1.0 + np.exp(-odds)),
        losses=wrong.astype(np.float64),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    requests: int
    audits: int
    threshold: float


def closed_loop(
    pool: Pool,
    alpha: float,
    rng: np.random.Generator,
    *,
    requests: int,
    offline: int = OFFLINE,
    share: float = OFFLINE_SHARE,
    rate: float = RATE,
    floor: float = 1.0,
    guessed: bool = False,
) -> Iterator[Step]:
    """What is deployed before each batch, from the first on."""
    deployed, spared = NEVER, 0.0
    guesses = np.clip(1.0 - pool.scores, 0.0, 1.0)
    spread = np.sqrt(guesses * (1.0 - guesses))
    least = rate * floor
    picked = rng.integers(0, len(pool.scores), offline)
    if offline and share:
        spared = share * DELTA
        found = certify(pool.scores[picked], pool.losses[picked], alpha, spared, binary=True)
        deployed = NEVER if found is None else found.threshold
    wealth = start(GRID, alpha, DELTA - spared, least_propensity=least)
    if offline:
        wealth = update_arrays(
            wealth,
            scores=pool.scores[picked],
            propensities=np.ones(offline),
            losses=pool.losses[picked],
            least=1.0,
        )
    deployed = min(deployed, threshold(wealth))
    done = 0
    while True:
        yield Step(requests=done, audits=wealth.audits, threshold=deployed)
        if done >= requests:
            return
        picked = rng.integers(0, len(pool.scores), BATCH)
        served = pool.scores[picked] >= deployed
        if floor < 1.0 and deployed < NEVER:
            mean = max(float(spread[pool.scores >= deployed].mean()), 1e-9)
            chance = np.clip(rate * (floor + (1 - floor) * spread[picked] / mean), least, 1.0)
        else:
            chance = np.full(BATCH, rate)
        seen = ~served | (rng.random(BATCH) < chance)
        wealth = update_arrays(
            wealth,
            scores=pool.scores[picked],
            propensities=np.where(served, chance, 1.0),
            losses=np.where(seen, pool.losses[picked], np.nan),
            guesses=guesses[picked] if guessed else 0.0,
            least=1.0 if deployed == NEVER else least,
        )
        deployed = min(deployed, threshold(wealth))
        done += BATCH
