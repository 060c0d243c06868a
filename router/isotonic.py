"""Scores as probabilities: a rising curve through (score, share that was right)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Straight lines between the points (``x``, ``y``), both from 0 to 1 and strictly rising: no
    two scores become equal, so ranks and thresholds lose nothing. Raises ValueError otherwise."""

    x: Doubles
    y: Doubles

    def __post_init__(self) -> None:
        for array in (self.x, self.y):
            if array.ndim != 1 or len(array) < 2 or array.dtype != np.float64:
                raise ValueError("a curve needs points")
            if not (array[0] == 0.0 and array[-1] == 1.0 and (np.diff(array) > 0.0).all()):
                raise ValueError("a curve does not rise from 0 to 1")
        if len(self.x) != len(self.y):
            raise ValueError("the points of a curve do not fit together")

    def at(self, score: float) -> float:
        return float(np.interp(score, self.x, self.y))


def fit_curve(scores: Doubles, right: NDArray[np.bool_]) -> Curve:
    """Centred isotonic regression (Oron and Flournoy, 2017): the blocks of the isotonic fit, each
    as one point in its middle, joined by lines. ``scores`` (n,) lie in [0, 1] and must come from a
    head that did not see the row. What is left of a block that was all right or all wrong is half
    a draft, so that no score becomes certainty."""
    from sklearn.isotonic import IsotonicRegression

    level = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(scores, right)
    _, block, counts = np.unique(level, return_inverse=True, return_counts=True)
    x = np.bincount(block, scores) / counts
    y = np.bincount(block, right) / counts
    y = np.maximum.accumulate(np.clip(y, 0.5 / counts, 1.0 - 0.5 / counts))
    # the smallest of slopes where clipping made two blocks equal
    y = (1.0 - 1e-6) * y + 1e-6 * x
    inside = (x > 1e-12) & (x < 1.0 - 1e-12)
    return Curve(
        x=np.concatenate([[0.0], x[inside], [1.0]]), y=np.concatenate([[0.0], y[inside], [1.0]])
    )
