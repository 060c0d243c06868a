"""Learned scores against the plain one, on drafts they did not see.

The candidates are an L2 logistic regression and, once there are rows for it, monotone
gradient-boosted trees. For a task of labels both are also given what a *reader* says: a regression
from what the student gave each label at its first token to the teacher's label. It undoes a lean
of the student to some labels, which the probability of the answer alone cannot show.

Every candidate scores each draft from a fit on the folds that do not hold it. The logistic
regression replaces the plain score, and the trees whatever is then in place, only if they rank
better in CONVINCED of the paired bootstrap resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.ranking import Doubles, apgr, auroc, resampled

if TYPE_CHECKING:
    from router.head import LogisticHead, MonotoneTrees

Bools = NDArray[np.bool_]
Places = NDArray[np.intp]

PLAIN, LOGISTIC, TREES = "plain", "logistic", "trees"

#: Share of bootstrap resamples in which a head must rank better than what it replaces.
CONVINCED = 0.95
FOLDS = 5
#: A head needs this many right and wrong drafts to learn from.
EACH_KIND = 20
#: With fewer rows no trees are tried, and no curve after the head.
TREE_ROWS = 2000
CURVE_ROWS = 1000
#: A reader needs this many rows per label, and takes at most so many labels.
READER_ROWS = 10
READER_LABELS = 64
READER_FOLDS = 3
#: The inverse strength of the reader's penalty: it has a weight for every pair of labels.
READER_C = 0.1
#: The reader's probability is kept this far from 0 and 1.
EDGE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """How much better than the plain score, with 95 % intervals (paired bootstrap)."""

    auroc: float
    auroc_low: float
    auroc_high: float
    apgr: float
    apgr_low: float
    apgr_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """``rows``: drafts that took part (0: too few right or wrong ones to try); ``won``: plain,
    logistic or trees; ``leads``: of each candidate tried over the plain score; ``reader``: whether
    the labels' log-probabilities were read by name; ``calibrated``: whether the winner's score goes
    through a curve (where there were rows for it and it is no nearer to the truth, it does not)."""

    rows: int = 0
    won: str = PLAIN
    leads: Mapping[str, Lead] = field(default_factory=dict)
    reader: bool = False
    calibrated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drafts:
    """n drafts as numbers. ``inputs`` (n, d); ``directions`` (d,) of MonotoneTrees; ``losses``
    (n,); for labels, else empty: ``options`` (n, labels + 1), ``said`` and ``wanted`` (n,), the
    student's and the teacher's label by number."""

    inputs: Doubles
    directions: Sequence[int]
    losses: Doubles
    options: Doubles
    said: Places
    wanted: Places

    @property
    def right(self) -> Bools:
        return self.losses <= 0.5

    @property
    def readable(self) -> bool:
        """Whether there is enough for a reader."""
        labels = self.options.shape[1] - 1
        return (
            2 <= labels <= READER_LABELS
            and len(self.losses) >= READER_ROWS * labels
            and len(np.unique(self.wanted)) > 1
        )

    def only(self, rows: Places) -> "Drafts":
        return Drafts(
            inputs=self.inputs[rows],
            directions=self.directions,
            losses=self.losses[rows],
            options=self.options[rows],
            said=self.said[rows],
            wanted=self.wanted[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """A fitted candidate. ``head``: LogisticHead or MonotoneTrees; ``reader``: a LogisticHead, or
    None."""

    head: "LogisticHead | MonotoneTrees"
    reader: "LogisticHead | None"

    def scores(self, drafts: Drafts) -> Doubles:
        """The chance that each is right."""
        inputs = drafts.inputs
        if self.reader is not None:
            inputs = np.column_stack([inputs, reading(self.reader, drafts)])
        shares: Doubles = self.head.predict_proba(inputs)[:, 1]
        return shares


def hold(drafts: Drafts, plain: Doubles, *, seed: int) -> tuple[Contest, Doubles]:
    """Who wins, and the winner's scores of the drafts, each from a fit that did not see it.
    ``plain``: the plain score of each."""
    right = drafts.right
    if min(right.sum(), (~right).sum()) < EACH_KIND:
        return Contest(), plain
    kinds = [LOGISTIC, *([TREES] if len(right) >= TREE_ROWS else [])]
    base = resampled(plain, drafts.losses, seed=seed)
    best, best_aurocs, best_scores, leads = PLAIN, base[0], plain, {}
    for kind in kinds:
        scores = _unseen(kind, drafts, seed=seed)
        aurocs, apgrs = resampled(scores, drafts.losses, seed=seed)
        leads[kind] = Lead(
            auroc=auroc(scores, right) - auroc(plain, right),
            **_interval("auroc", aurocs - base[0]),
            apgr=apgr(scores, drafts.losses) - apgr(plain, drafts.losses),
            **_interval("apgr", apgrs - base[1]),
        )
        if np.mean(aurocs > best_aurocs) >= CONVINCED:
            best, best_aurocs, best_scores = kind, aurocs, scores
    return Contest(rows=len(right), won=best, leads=leads, reader=drafts.readable), best_scores


def learn(kind: str, drafts: Drafts) -> Learned:
    """The candidate, fitted on all the drafts."""
    from router.head import LogisticHead, MonotoneTrees

    inputs, directions = drafts.inputs, list(drafts.directions)
    reader = None
    if drafts.readable:
        # the head must learn from readings as good as those it will get, not from better ones
        readings = np.zeros(len(inputs))
        for fold in _folds(len(inputs), READER_FOLDS, seed=0):
            rest = np.setdiff1d(np.arange(len(inputs)), fold)
            some = drafts.only(rest)
            if len(np.unique(some.wanted)) > 1:
                trained = LogisticHead(C=READER_C).fit(some.options, some.wanted)
                readings[fold] = reading(trained, drafts.only(fold))
        reader = LogisticHead(C=READER_C).fit(drafts.options, drafts.wanted)
        inputs = np.column_stack([inputs, readings])
        directions.append(1)
    head = LogisticHead() if kind == LOGISTIC else MonotoneTrees(directions=directions)
    return Learned(head=head.fit(inputs, drafts.right), reader=reader)


def reading(reader: "LogisticHead", drafts: Drafts) -> Doubles:
    """The log-odds that the teacher says what the student said."""
    shares = np.zeros((len(drafts.said), drafts.options.shape[1]))
    shares[:, reader.classes_] = reader.predict_proba(drafts.options)
    said = np.where(drafts.said < 0, drafts.options.shape[1] - 1, drafts.said)
    p = np.clip(shares[np.arange(len(said)), said], EDGE, 1.0 - EDGE)
    odds: Doubles = np.log(p / (1.0 - p))
    return odds


def _unseen(kind: str, drafts: Drafts, *, seed: int) -> Doubles:
    scores = np.zeros(len(drafts.losses))
    for fold in _folds(len(scores), FOLDS, seed=seed):
        rest = drafts.only(np.setdiff1d(np.arange(len(scores)), fold))
        if rest.right.all() or not rest.right.any():
            return scores  # nothing to learn from: every draft alike, which wins nothing
        scores[fold] = learn(kind, rest).scores(drafts.only(fold))
    return scores


def _folds(n: int, folds: int, *, seed: int) -> list[Places]:
    return np.array_split(np.random.default_rng(seed).permutation(n), folds)


def _interval(name: str, differences: Doubles) -> dict[str, float]:
    low, high = np.percentile(differences, [2.5, 97.5])
    return {f"{name}_low": float(low), f"{name}_high": float(high)}
