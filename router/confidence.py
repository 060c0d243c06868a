"""How far a draft may be trusted, as one number in [0, 1].

The default is the student's own probability of the answer's values: exp of their summed
log-probability for labels and JSON (the chance that all of them are right, which is what the loss
asks), exp of their mean for free text (the sum would mostly measure length). It needs no fitting,
so every calibration row can go into the certificate.

A learned head (L2 logistic regression over the transformed signals and the prompt's strangeness)
is tried only where there are rows to spare, and kept only where it beats the default on rows it
did not see, by a paired bootstrap. See ``router.router`` for why the certificate stays valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.output import Kind
from router.signals import Signals, features

Doubles = NDArray[np.float64]

#: Share of bootstrap resamples in which the head must rank better than the default.
CONVINCED = 0.95
RESAMPLES = 1000
FOLDS = 5
#: A head needs this many right and wrong drafts to learn from.
EACH_KIND = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confidence:
    """``weights``: empty for the default score; else those of the head over ``inputs``, which
    are centred by ``means`` and divided by ``scales`` first."""

    kind: Kind
    weights: Doubles
    means: Doubles
    scales: Doubles
    bias: float = 0.0

    @property
    def learned(self) -> bool:
        return len(self.weights) > 0

    def score(self, signal: Signals, views: Doubles) -> float:
        """The trust in a draft with these signals whose prompt has these views of strangeness
        (``Ood.views``; only a learned head reads them)."""
        if not self.learned:
            return plain(self.kind, signal)
        z = (inputs(signal, views) - self.means) / self.scales
        return float(1.0 / (1.0 + np.exp(-np.clip(z @ self.weights + self.bias, -60.0, 60.0))))


def plain(kind: Kind, signal: Signals) -> float:
    """The default score."""
    return float(np.exp(signal.mean if kind == "text" else signal.seq))


def default(kind: Kind) -> Confidence:
    nothing = np.zeros(0)
    return Confidence(kind=kind, weights=nothing, means=nothing, scales=nothing)


def inputs(signal: Signals, views: Doubles) -> Doubles:
    """What the head sees of one draft."""
    return np.concatenate([features(signal), np.clip(views, -50.0, 50.0)])


def fit_confidence(
    kind: Kind, rows: Sequence[tuple[Signals, Doubles]], losses: Sequence[float], *, seed: int
) -> Confidence | None:
    """A head learned from drafts and their losses if it convincingly beats the default on the
    folds it did not see, else None."""
    right = np.array([loss <= 0.5 for loss in losses])
    if min(right.sum(), (~right).sum()) < EACH_KIND:
        return None
    x = np.stack([inputs(*row) for row in rows])
    held_out = np.zeros(len(x))
    order = np.random.default_rng(seed).permutation(len(x))
    for fold in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, fold)
        if right[rest].all() or not right[rest].any():
            return None
        head = _fit(kind, x[rest], right[rest])
        held_out[fold] = ((x[fold] - head.means) / head.scales) @ head.weights + head.bias
    baseline = np.array([plain(kind, signal) for signal, _ in rows])
    if not better(held_out, baseline, right, seed=seed):
        return None
    return _fit(kind, x, right)


def better(challenger: Doubles, baseline: Doubles, right: NDArray[np.bool_], *, seed: int) -> bool:
    """Whether ``challenger`` ranks right drafts over wrong ones better than ``baseline`` in at
    least CONVINCED of the paired bootstrap resamples."""
    rng = np.random.default_rng(seed)
    wins = 0
    for _ in range(RESAMPLES):
        picked = rng.integers(0, len(right), len(right))
        truth = right[picked]
        wins += auroc(challenger[picked], truth) > auroc(baseline[picked], truth)
    return wins >= CONVINCED * RESAMPLES


def auroc(scores: Doubles, right: NDArray[np.bool_]) -> float:
    """The chance that a right draft scores over a wrong one; 0.5 where one kind is missing."""
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return 0.5
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    lead = float(ranks[right].sum()) - positives * (positives + 1) / 2
    return lead / (positives * negatives)


def _fit(kind: Kind, x: Doubles, right: NDArray[np.bool_]) -> Confidence:
    from sklearn.linear_model import LogisticRegression

    means, scales = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    model = LogisticRegression(C=0.3, max_iter=500).fit((x - means) / scales, right)
    return Confidence(
        kind=kind,
        weights=np.asarray(model.coef_[0], np.float64),
        means=means,
        scales=scales,
        bias=float(model.intercept_[0]),
    )
