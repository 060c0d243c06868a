"""The lines of the router's benchmark: what was measured, between what bounds, against what bar.

Every section of the benchmark is a module of this folder with `measure(data, quick) -> list[Line]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``value`` with its 95 % interval (None: not a sampled quantity). ``bar``: what it has to
    reach; ``at_most`` says from which side; None for a baseline, which has nothing to reach."""

    section: str
    what: str
    who: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    at_most: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def percentiles(samples: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of bootstrap samples."""
    low, high = np.percentile(np.asarray(samples, np.float64), [2.5, 97.5])
    return float(low), float(high)


def resamples(n: int, times: int, seed: int) -> NDArray[np.int64]:
    """Rows picked with replacement, ``times`` × ``n``: the same for every method compared."""
    return np.random.default_rng(seed).integers(0, n, (times, n))
