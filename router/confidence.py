"""How far a draft may be trusted, as one number in [0, 1].

The default is the student's own probability of the answer's values: exp of their summed
log-probability for labels and JSON (the chance that all of them are right, which is what the loss
asks), exp of their mean for free text (the sum would mostly measure length). It needs no fitting,
so every calibration row can go into the certificate.

A learned head (``router/contest.py``) is tried only where there are rows to spare, and kept only
where it beats the default on rows it did not see. It sees the transformed signals, the answer's
form, the prompt's strangeness and, for labels, the probability of every label by name. Its score
is the estimated chance that the draft is right; with enough rows it is put right by an isotonic
curve where that helps. See ``router.router`` for why the certificate stays valid.

What learns is in ``router/head.py``; what is kept and serves are the plain arrays here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.contest import (
    CONVINCED,
    CURVE_ROWS,
    EDGE,
    LOGISTIC,
    PLAIN,
    Contest,
    Drafts,
    hold,
    learn,
)
from router.isotonic import Curve, fit_curve, improves
from router.linear import Linear
from router.output import Kind
from router.ranking import auroc, resampled
from router.signals import EXTRAS, FEATURES, Signals, extras, features, size
from router.trees import Trees

__all__ = ["Confidence", "auroc", "better", "default", "fit_confidence", "inputs", "learn_head"]

if TYPE_CHECKING:
    from router.head import LogisticHead

Doubles = NDArray[np.float64]


def _nothing() -> Doubles:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confidence:
    """The default score where there are neither ``weights`` nor ``trees``; else a head over
    ``inputs``: ``weights``, over inputs that are centred by ``means`` and divided by ``scales``
    first, or ``trees``, as they are.

    ``form``: whether it reads ``extras``; ``reader``: from what the student gave each label (the
    task's, in their order, and none of them) to the teacher's label, or None; ``curve``: from the
    head's number to a probability, or None; ``lengths``: mean and standard deviation of the
    training answers' sizes.
    """

    kind: Kind
    weights: Doubles = field(default_factory=_nothing)
    means: Doubles = field(default_factory=_nothing)
    scales: Doubles = field(default_factory=_nothing)
    bias: float = 0.0
    form: bool = False
    reader: Linear | None = None
    trees: Trees | None = None
    curve: Curve | None = None
    lengths: tuple[float, float] = (0.0, 1.0)

    @property
    def learned(self) -> bool:
        return len(self.weights) > 0 or self.trees is not None

    def score(self, signal: Signals, views: Doubles) -> float:
        """The trust in a draft with these signals whose prompt has these views of strangeness
        (``Ood.views``; only a learned head reads them)."""
        if not self.learned:
            return plain(self.kind, signal)
        x = inputs(signal, views, form=self.form)
        if self.reader is not None:
            x = np.append(x, self._reading(signal))
        if self.trees is not None:
            log_odds = self.trees.log_odds(x)
        else:
            log_odds = float(((x - self.means) / self.scales) @ self.weights) + self.bias
        share = 1.0 / (1.0 + math.exp(-min(60.0, max(-60.0, log_odds))))
        return share if self.curve is None else self.curve.at(share)

    def check(self, views: int) -> None:
        """Raises ValueError where the parts do not fit together, or not to as many ``views``."""
        wide = len(FEATURES) + views + len(EXTRAS) * self.form + (self.reader is not None)
        for array in (self.weights, self.means, self.scales):
            if array.shape not in {(0,), (wide,)} or len(array) != len(self.weights):
                raise ValueError(f"a head of {array.shape} weights for {wide} inputs")
            if array.dtype != np.float64 or not np.isfinite(array).all():
                raise ValueError("a head that is not of finite numbers")
        if not (self.scales > 0.0).all() or not math.isfinite(self.bias):
            raise ValueError("a head that divides by nothing")
        if self.trees is not None and (self.trees.width != wide or len(self.weights)):
            raise ValueError(f"trees for {self.trees.width} of {wide} inputs")
        if self.reader is not None and len(self.reader.means) != len(self.reader.biases):
            raise ValueError("a reader that does not read the labels")
        mean, spread = self.lengths
        if not (math.isfinite(mean) and math.isfinite(spread) and spread > 0.0):
            raise ValueError("lengths without a spread")

    def _reading(self, signal: Signals) -> float:
        """The log-odds that the teacher says what the student said."""
        assert self.reader is not None
        if len(signal.options) != len(self.reader.means):
            return math.log(EDGE)
        p = float(self.reader.shares(np.array(signal.options))[signal.said])
        p = min(1.0 - EDGE, max(EDGE, p))
        return math.log(p / (1.0 - p))


def plain(kind: Kind, signal: Signals) -> float:
    """The default score."""
    return math.exp(signal.mean if kind == "text" else signal.seq)


def default(kind: Kind, answers: Sequence[str] = ()) -> Confidence:
    """The default score, for a task with these training answers."""
    sizes = np.array([size(answer) for answer in answers] or [0.0])
    return Confidence(
        kind=kind, lengths=(float(sizes.mean()), float(sizes.std()) if sizes.std() > 0.05 else 1.0)
    )


def inputs(signal: Signals, views: Doubles, *, form: bool = False) -> Doubles:
    """What the head sees of one draft, but for its reading."""
    parts = [features(signal), np.clip(views, -50.0, 50.0)]
    return np.concatenate([*parts, extras(signal)] if form else parts)


def fit_confidence(
    kind: Kind,
    rows: Sequence[tuple[Signals, Doubles]],
    losses: Sequence[float],
    *,
    seed: int,
    wanted: Sequence[int] = (),
) -> Confidence | None:
    """A head learned from drafts and their losses if it convincingly beats the default on the
    folds it did not see, else None."""
    return learn_head(default(kind), rows, losses, seed=seed, wanted=wanted)[0]


def learn_head(
    base: Confidence,
    rows: Sequence[tuple[Signals, Doubles]],
    losses: Sequence[float],
    *,
    seed: int,
    wanted: Sequence[int] = (),
) -> tuple[Confidence | None, Contest]:
    """The head that replaces ``base``, or None, and how the candidates did. ``rows``: of each
    draft, its signals and its prompt's views; ``wanted``: for labels, the teacher's by number (the
    number of labels where it said none of them)."""
    if not rows:
        return None, Contest()
    drafts = _drafts(rows, losses, wanted)
    scores = np.array([plain(base.kind, signal) for signal, _ in rows])
    contest, unseen = hold(drafts, scores, seed=seed)
    if contest.won == PLAIN:
        return None, contest
    found = learn(contest.won, drafts)
    reader = None if found.reader is None else _of_all_labels(found.reader, drafts.options)
    head = replace(base, form=True, reader=reader)
    if contest.won == LOGISTIC:
        linear = found.head.compiled()
        assert isinstance(linear, Linear)
        head = replace(
            head,
            weights=linear.weights[:, 1] - linear.weights[:, 0],
            bias=float(linear.biases[1] - linear.biases[0]),
            means=linear.means,
            scales=linear.scales,
        )
    else:
        trees = found.head.compiled()
        assert isinstance(trees, Trees)
        head = replace(head, trees=trees)
    if len(rows) < CURVE_ROWS or not improves(unseen, drafts.right, seed=seed):
        return head, contest
    return replace(head, curve=fit_curve(unseen, drafts.right)), replace(contest, calibrated=True)


def better(challenger: Doubles, baseline: Doubles, right: NDArray[np.bool_], *, seed: int) -> bool:
    """Whether ``challenger`` ranks right drafts over wrong ones better than ``baseline`` in at
    least CONVINCED of the paired bootstrap resamples."""
    losses = np.where(right, 0.0, 1.0)
    ours = resampled(challenger, losses, seed=seed)[0]
    return bool(np.mean(ours > resampled(baseline, losses, seed=seed)[0]) >= CONVINCED)


def _drafts(
    rows: Sequence[tuple[Signals, Doubles]], losses: Sequence[float], wanted: Sequence[int]
) -> Drafts:
    x = np.stack([inputs(*row, form=True) for row in rows])
    certain = len(features(rows[0][0]))
    views = len(rows[0][1])
    read = len(wanted) == len(rows)
    return Drafts(
        inputs=x,
        directions=[1] * certain + [-1] * views + [0] * (x.shape[1] - certain - views),
        losses=np.asarray(losses, np.float64),
        options=np.array([signal.options if read else () for signal, _ in rows], np.float64),
        said=np.array([signal.said if read else -1 for signal, _ in rows], np.intp),
        wanted=np.asarray(wanted if read else [0] * len(rows), np.intp),
    )


def _of_all_labels(reader: "LogisticHead", options: Doubles) -> Linear:
    """The reader with a column for every label: one that the teacher never gave is never read."""
    linear = reader.compiled()
    classes = options.shape[1]
    weights = np.zeros((len(linear.means), classes))
    biases = np.full(classes, -1000.0)
    weights[:, reader.classes_], biases[reader.classes_] = linear.weights, linear.biases
    return Linear(weights=weights, biases=biases, means=linear.means, scales=linear.scales)
