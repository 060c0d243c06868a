"""A fitted logistic regression as plain arrays: what serving needs of it, without scikit-learn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear:
    """Class scores of d inputs, which are centred by ``means`` (d,) and divided by ``scales`` (d,)
    first: ``weights`` (d, classes), ``biases`` (classes,). Raises ValueError where these do not fit
    together or are not finite."""

    weights: Doubles
    biases: Doubles
    means: Doubles
    scales: Doubles

    def __post_init__(self) -> None:
        wide, classes = self.weights.shape
        if self.biases.shape != (classes,) or {self.means.shape, self.scales.shape} != {(wide,)}:
            raise ValueError("the arrays of a linear model do not fit together")
        for array in (self.weights, self.biases, self.means, self.scales):
            if array.dtype != np.float64 or not np.isfinite(array).all():
                raise ValueError("the arrays of a linear model are not finite numbers")
        if not (self.scales > 0.0).all():
            raise ValueError("the scales of a linear model are not positive")

    def shares(self, x: Doubles) -> Doubles:
        """The probability of each class, (..., classes), for inputs (..., d)."""
        z = ((x - self.means) / self.scales) @ self.weights + self.biases
        z -= z.max(axis=-1, keepdims=True)
        np.exp(z, out=z)
        total: Doubles = z / z.sum(axis=-1, keepdims=True)
        return total
