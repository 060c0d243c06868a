"""How well a score orders drafts, and whether one score does it better than another.

Two numbers: *AUROC*, the chance that a right draft scores over a wrong one, and *APGR*, the area
under (share sent to the teacher, lowest scores first → share of the disagreement removed). Both
are 0.5 for a score that says nothing.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

#: Paired bootstrap resamples behind every comparison.
RESAMPLES = 1000


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


def apgr(scores: Doubles, losses: Doubles) -> float:
    """Area under (share sent to the teacher, lowest scores first → share of the loss removed);
    rows with equal scores are sent together, at their mean loss."""
    total = float(losses.sum())
    if total == 0.0:
        return 0.5
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    removed = np.concatenate([[0.0], np.cumsum(np.bincount(place, weights=losses))]) / total
    sent = np.concatenate([[0], np.cumsum(counts)]) / len(losses)
    return float(np.trapezoid(removed, sent))


def resampled(scores: Doubles, losses: Doubles, *, seed: int) -> tuple[Doubles, Doubles]:
    """AUROC and APGR on each of RESAMPLES bootstrap samples of the rows; the same rows for every
    score of as many rows, so that differences are paired."""
    _, place = np.unique(scores, return_inverse=True)
    aurocs, apgrs = np.empty(RESAMPLES), np.empty(RESAMPLES)
    right = losses <= 0.5
    for at, weights in enumerate(_weights(len(losses), seed)):
        rows = np.bincount(place, weights)
        good = np.bincount(place, weights * right)
        lost = np.bincount(place, weights * losses)
        bad = rows - good
        pairs = good.sum() * bad.sum()
        aurocs[at] = good @ (np.cumsum(bad) - bad / 2) / pairs if pairs else 0.5
        total = lost.sum()
        # the trapezoids between one score and the next
        area = rows @ (np.cumsum(lost) - lost / 2) / (total * rows.sum()) if total else 0.5
        apgrs[at] = area
    return aurocs, apgrs


def _weights(n: int, seed: int) -> Iterator[Doubles]:
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
