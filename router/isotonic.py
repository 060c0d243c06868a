"""Scores as probabilities: a rising curve through (score, share that was right)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

FOLDS = 5


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


def improves(scores: Doubles, right: NDArray[np.bool_], *, seed: int) -> bool:
    """Whether a curve brings scores nearer to what came out, in the mean square (Brier), on folds
    it was not fitted on. A logistic regression on enough of the right inputs needs none."""
    held_out = np.zeros(len(scores))
    order = np.random.default_rng(seed).permutation(len(scores))
    for fold in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, fold)
        curve = fit_curve(scores[rest], right[rest])
        held_out[fold] = np.interp(scores[fold], curve.x, curve.y)
    return bool(np.mean((held_out - right) ** 2) < np.mean((scores - right) ** 2))


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
    alone = len(y) == 1
    if y[0] == 0.0:
        y[0] = min(0.5 / counts[0], 0.5 if alone else y[1] / 2)
    if y[-1] == 1.0:
        y[-1] = max(1.0 - 0.5 / counts[-1], 0.5 if alone else (1.0 + y[-2]) / 2)
    inside = (x > 1e-12) & (x < 1.0 - 1e-12)
    return Curve(
        x=np.concatenate([[0.0], x[inside], [1.0]]), y=np.concatenate([[0.0], y[inside], [1.0]])
    )
