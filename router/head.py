"""The estimators a score is learned with. They follow scikit-learn's contract (`fit`, attributes
that end in ``_``, `clone`) and are needed when fitting only: ``compiled()`` gives what serving
uses."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from router.linear import Linear
from router.trees import Trees, compiled

Doubles = NDArray[np.float64]


class LogisticHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression over centred and scaled inputs, with an L2 penalty.

    Parameters
    ----------
    C : inverse strength of the penalty on the weights of the scaled inputs.

    Attributes
    ----------
    classes_ : (k,) the classes, sorted. n_features_in_ : d.
    means_, scales_ : (d,) of the inputs. model_ : the regression over the scaled inputs.

    Source: Zellinger and Thomson, Rational tuning of LLM cascades (2024), for the transformed
    log-probabilities it is given here (``router.signals.features``).

    >>> head = LogisticHead().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    >>> head.predict([[0.2], [2.8]]).tolist()
    [0, 1]
    """

    def __init__(self, C: float = 0.3) -> None:
        self.C = C

    def fit(self, X: Any, y: Any) -> Self:
        """``X`` (n, d) inputs, finite; ``y`` (n,) classes, at least two of them."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.means_ = X.mean(axis=0)
        spread = X.std(axis=0)
        self.scales_ = np.where(spread > 1e-6, spread, 1.0)  # what never varied says nothing
        self.model_ = LogisticRegression(C=self.C, max_iter=500)
        self.model_.fit((X - self.means_) / self.scales_, y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba(self, X: Any) -> Doubles:
        """(n, k) probabilities, in the order of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.compiled().shares(X)

    def predict(self, X: Any) -> NDArray[Any]:
        """(n,) the likeliest classes."""
        shares = self.predict_proba(X)
        picked: NDArray[Any] = self.classes_[shares.argmax(axis=1)]
        return picked

    def compiled(self) -> Linear:
        """The same, as arrays: one column per class."""
        check_is_fitted(self)
        weights, biases = self.model_.coef_.T, self.model_.intercept_
        if len(self.classes_) == 2:
            weights = np.hstack([np.zeros_like(weights), weights])
            biases = np.array([0.0, biases[0]])
        return Linear(
            weights=np.ascontiguousarray(weights, np.float64),
            biases=np.asarray(biases, np.float64),
            means=self.means_,
            scales=self.scales_,
        )


class MonotoneTrees(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Gradient-boosted trees of two classes that may be told which inputs only ever raise (or
    lower) the chance of the second one.

    Parameters
    ----------
    directions : one of 1 (raises), -1 (lowers), 0 (either) per input; None: 0 for all.
    rounds : trees. learning_rate : the weight of each. leaves : at most, per tree.
    least : rows per leaf. penalty : L2, on the values of leaves.

    Attributes
    ----------
    classes_ : (2,) the classes, sorted. n_features_in_ : d. model_ : scikit-learn's.

    Source: Ke et al., LightGBM (2017), as scikit-learn's ``HistGradientBoostingClassifier``; the
    small trees and the slow rate are for some thousands of rows.
    """

    def __init__(
        self,
        directions: Any = None,
        rounds: int = 100,
        learning_rate: float = 0.06,
        leaves: int = 8,
        least: int = 20,
        penalty: float = 1.0,
    ) -> None:
        self.directions = directions
        self.rounds = rounds
        self.learning_rate = learning_rate
        self.leaves = leaves
        self.least = least
        self.penalty = penalty

    def fit(self, X: Any, y: Any) -> Self:
        """``X`` (n, d) inputs, finite; ``y`` (n,) two classes."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            raise ValueError(
                "Only binary classification is supported. Classes in y: "
                f"{len(self.classes_)} class(es)."
            )
        self.model_ = HistGradientBoostingClassifier(
            max_iter=self.rounds,
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=self.least,
            l2_regularization=self.penalty,
            monotonic_cst=self.directions,
            early_stopping=False,
            random_state=0,
        )
        self.model_.fit(X, y)
        return self

    def predict_proba(self, X: Any) -> Doubles:
        """(n, 2) probabilities, in the order of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(self.model_.predict_proba(X), np.float64)

    def predict(self, X: Any) -> NDArray[Any]:
        """(n,) the likelier classes."""
        shares = self.predict_proba(X)
        picked: NDArray[Any] = self.classes_[shares.argmax(axis=1)]
        return picked

    def compiled(self) -> Trees:
        """The same, as arrays."""
        check_is_fitted(self)
        return compiled(self.model_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
