"""What the router is compared with, and by which numbers: one implementation each, used by all
sections of the benchmark.

Three kinds of thing:

* **scores** say how far to trust the student on each request, higher is surer (as the product's
  own score does). Those of a prompt alone: ``random_scores``, ``length``, ``task_mean``, ``knn``,
  ``lr``. Those of a draft: ``plain_logprob``, ``margin_isotonic``. What needs fitting takes
  training rows first and scores other rows.
* **thresholds** turn scores into a promise: ``empirical``, ``crc``, ``clopper_pearson`` at one
  look, ``repeeked`` at many, ``oracle`` with the whole population in sight.
* **metrics** of a score: ``apgr`` and ``cpt`` (RouteLLM's ten points, or exact), ``auroc``,
  ``ece``, ``deferral_auc``.

``losses`` are in [0, 1], one per request: that of the student's answer against the teacher's.
``weak`` and ``strong`` are the qualities of the student's and of the teacher's answer.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.threshold import GRID, NEVER

Doubles = NDArray[np.float64]

# --- scores -------------------------------------------------------------------------------------


def random_scores(n: int, seed: int) -> Doubles:
    return np.random.default_rng(seed).random(n)


def always(n: int, student: bool) -> Doubles:
    """Always the student (1 everywhere), or always the teacher (0 everywhere)."""
    return np.full(n, float(student))


def length(prompts: Sequence[str]) -> Doubles:
    """Short prompts are trusted: no training at all."""
    return -np.array([len(prompt) for prompt in prompts], np.float64)


def task_mean(
    train_tasks: Sequence[str], train_losses: ArrayLike, tasks: Sequence[str], *, prior: float = 5.0
) -> Doubles:
    """Minus the mean loss of a request's kind (a subject, an intent, a key field), drawn towards
    the overall mean by ``prior`` rows; an unknown kind has the overall mean."""
    losses = np.asarray(train_losses, np.float64)
    overall = float(losses.mean())
    sums: dict[str, list[float]] = {}
    for task, loss in zip(train_tasks, losses.tolist(), strict=True):
        row = sums.setdefault(task, [prior * overall, prior])
        row[0] += loss
        row[1] += 1.0
    means = {task: total / count for task, (total, count) in sums.items()}
    return -np.array([means.get(task, overall) for task in tasks])


def knn(train_x: ArrayLike, train_losses: ArrayLike, x: ArrayLike, *, k: int = 100) -> Doubles:
    """Minus the mean loss of the ``k`` nearest training rows by cosine."""
    known, rows = _directions(train_x), _directions(x)
    losses = np.asarray(train_losses, np.float64)
    k = min(k, len(known))
    found = np.empty(len(rows))
    for start in range(0, len(rows), 1000):
        near = rows[start : start + 1000] @ known.T
        picked = np.argpartition(-near, k - 1, axis=1)[:, :k]
        found[start : start + 1000] = -losses[picked].mean(axis=1)
    return found


def lr(train_x: ArrayLike, train_losses: ArrayLike, x: ArrayLike, *, c: float = 1.0) -> Doubles:
    """P(loss <= 0.5) by an L2 logistic regression on standardised inputs."""
    from sklearn.linear_model import LogisticRegression

    known, rows = np.asarray(train_x, np.float64), np.asarray(x, np.float64)
    right = np.asarray(train_losses, np.float64) <= 0.5
    if right.all() or not right.any():
        return np.full(len(rows), float(right[0]))
    mean, scale = known.mean(axis=0), np.maximum(known.std(axis=0), 1e-9)
    model = LogisticRegression(C=c, max_iter=1000).fit((known - mean) / scale, right)
    return np.asarray(model.predict_proba((rows - mean) / scale)[:, 1], np.float64)


def lr_gain(
    train_x: ArrayLike, train_weak: ArrayLike, train_strong: ArrayLike, x: ArrayLike
) -> Doubles:
    """For two fallible models: p(weak right) − p(strong right), a regression each."""
    weak, strong = np.asarray(train_weak, np.float64), np.asarray(train_strong, np.float64)
    return lr(train_x, 1.0 - weak, x) - lr(train_x, 1.0 - strong, x)


def plain_logprob(logprobs: Sequence[ArrayLike], *, mean: bool = False) -> Doubles:
    """The summed (or mean) log-probability of each answer's tokens."""
    reduce = np.mean if mean else np.sum
    return np.array([float(reduce(np.asarray(row, np.float64))) for row in logprobs])


def margin_isotonic(
    train_margins: ArrayLike, train_losses: ArrayLike, margins: ArrayLike
) -> Doubles:
    """1 − the loss that an isotonic regression expects at an answer's margin (the lead of its
    tokens over their runners-up): UCCI's calibrated cascade (arXiv 2605.18796)."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(increasing=True, out_of_bounds="clip")
    model.fit(np.asarray(train_margins, np.float64), 1.0 - np.asarray(train_losses, np.float64))
    return np.asarray(model.predict(np.asarray(margins, np.float64)), np.float64)


def oracle_scores(weak: ArrayLike, strong: ArrayLike) -> Doubles:
    """How much better the student's answer is than the teacher's: no router ranks better."""
    return np.asarray(weak, np.float64) - np.asarray(strong, np.float64)


# --- thresholds ---------------------------------------------------------------------------------


def served_losses(scores: ArrayLike, losses: ArrayLike, grid: ArrayLike = GRID) -> Doubles:
    """The summed loss of the requests at or over each threshold."""
    s, x = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    order = np.argsort(s)
    above = np.concatenate([[0.0], np.cumsum(x[order][::-1])])[::-1]
    return np.asarray(above[np.searchsorted(s[order], np.asarray(grid, np.float64))], np.float64)


def risks(scores: ArrayLike, losses: ArrayLike, grid: ArrayLike = GRID) -> Doubles:
    """R(t) on these rows: the mean of 1{score >= t} · loss, for each threshold."""
    return served_losses(scores, losses, grid) / max(len(np.asarray(scores)), 1)


def empirical(
    scores: ArrayLike, losses: ArrayLike, alpha: float, grid: Sequence[float] = GRID
) -> float:
    """The laxest threshold whose observed risk is at most alpha; what most routers do."""
    return _laxest(risks(scores, losses, grid) <= alpha, grid)


def crc(scores: ArrayLike, losses: ArrayLike, alpha: float, grid: Sequence[float] = GRID) -> float:
    """Conformal risk control (Angelopoulos et al., 2022): keeps the *mean* over calibrations."""
    n = len(np.asarray(scores))
    return _laxest((served_losses(scores, losses, grid) + 1.0) / (n + 1) <= alpha, grid)


def clopper_pearson(
    scores: ArrayLike,
    losses: ArrayLike,
    alpha: float,
    delta: float,
    grid: Sequence[float] = GRID,
) -> float:
    """Exact bounds in a fixed sequence, for losses of 0 and 1: valid at one look."""
    from scipy.stats import beta

    n = len(np.asarray(scores))
    if n == 0:
        return NEVER
    errors = served_losses(scores, losses, grid)
    bounds = np.ones(len(errors))
    some = errors < n
    bounds[some] = beta.ppf(1.0 - delta, errors[some] + 1.0, n - errors[some])
    return _laxest(bounds <= alpha, grid)


def repeeked(
    scores: ArrayLike,
    losses: ArrayLike,
    alpha: float,
    delta: float,
    *,
    every: int = 100,
    grid: Sequence[float] = GRID,
) -> list[tuple[int, float]]:
    """Clopper–Pearson computed anew after every so many rows of the stream, as if each time were
    the only one: (rows seen, threshold)."""
    s, x = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    return [
        (n, clopper_pearson(s[:n], x[:n], alpha, delta, grid))
        for n in range(every, len(s) + 1, every)
    ]


def oracle(
    scores: ArrayLike, losses: ArrayLike, alpha: float, grid: Sequence[float] = GRID
) -> float:
    """The laxest threshold that keeps the promise on the whole population, all losses in sight."""
    return empirical(scores, losses, alpha, grid)


def violates(threshold: float, scores: ArrayLike, losses: ArrayLike, alpha: float) -> bool:
    """Whether the population's risk at this threshold is over alpha."""
    s, x = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    return bool(float((x * (s >= threshold)).mean()) > alpha + 1e-12)


def _laxest(holds: NDArray[np.bool_], grid: Sequence[float]) -> float:
    """The last threshold before the first that fails; NEVER where the first does."""
    failed = np.flatnonzero(~holds)
    at = (int(failed[0]) if len(failed) else len(holds)) - 1
    return NEVER if at < 0 else float(grid[at])


# --- metrics ------------------------------------------------------------------------------------


def deferral_curve(
    scores: ArrayLike, weak: ArrayLike, strong: ArrayLike | float = 1.0
) -> tuple[Doubles, Doubles]:
    """(share sent to the teacher, mean quality of the system), lowest scores sent first; rows with
    equal scores go together."""
    s, ours = np.asarray(scores, np.float64), np.asarray(weak, np.float64)
    theirs = np.broadcast_to(np.asarray(strong, np.float64), ours.shape)
    _, place, counts = np.unique(s, return_inverse=True, return_counts=True)
    gained = np.concatenate([[0.0], np.cumsum(np.bincount(place, weights=theirs - ours))])
    sent = np.concatenate([[0.0], np.cumsum(counts)])
    return sent / len(s), float(ours.mean()) + gained / len(s)


def ten_points(
    scores: ArrayLike, weak: ArrayLike, strong: ArrayLike | float = 1.0
) -> tuple[Doubles, Doubles]:
    """The same curve as RouteLLM's evaluation draws it: only at the deciles of the score."""
    need = -np.asarray(scores, np.float64)
    ours = np.asarray(weak, np.float64)
    theirs = np.broadcast_to(np.asarray(strong, np.float64), ours.shape)
    edges = np.unique(np.quantile(need, np.linspace(0.0, 1.0, 11)))
    picks = [need >= edge for edge in edges[:-1]] + [need > edges[-1]]
    points = sorted((float(p.mean()), float(np.where(p, theirs, ours).mean())) for p in picks)
    share, quality = np.array(points).T
    return share, quality


def apgr(
    scores: ArrayLike,
    weak: ArrayLike,
    strong: ArrayLike | float = 1.0,
    *,
    exact: bool = True,
) -> float:
    """Average share of the gap between student and teacher that is recovered, over all shares of
    teacher calls; random is 0.5. NaN where there is no gap. ``exact=False``: RouteLLM's formula."""
    share, quality = (deferral_curve if exact else ten_points)(scores, weak, strong)
    low, high = float(np.mean(np.asarray(weak))), float(np.mean(np.asarray(strong)))
    if high == low:
        return float("nan")
    width = float(share[-1] - share[0])
    return (float(np.trapezoid(quality, share)) - low * width) / ((high - low) * width)


def cpt(
    scores: ArrayLike,
    weak: ArrayLike,
    strong: ArrayLike | float = 1.0,
    *,
    part: float,
    exact: bool = True,
) -> float:
    """The share of teacher calls that recovers ``part`` (0.5: CPT50) of the gap."""
    share, quality = (deferral_curve if exact else ten_points)(scores, weak, strong)
    low, high = float(np.mean(np.asarray(weak))), float(np.mean(np.asarray(strong)))
    wanted = low + part * (high - low)
    if not exact:  # as RouteLLM does, although the curve need not rise everywhere
        return float(np.interp(wanted, quality, share))
    reached = np.flatnonzero(quality >= wanted - 1e-12)
    return float(share[reached[0]]) if len(reached) else 1.0


def deferral_auc(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike | float = 1.0) -> float:
    """Mean quality of the system over all shares of teacher calls."""
    share, quality = deferral_curve(scores, weak, strong)
    return float(np.trapezoid(quality, share))


def auroc(scores: ArrayLike, right: ArrayLike) -> float:
    """The chance that a right draft scores over a wrong one; 0.5 where one kind is missing."""
    s, truth = np.asarray(scores, np.float64), np.asarray(right, bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return 0.5
    _, place, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    lead = float(ranks[truth].sum()) - positives * (positives + 1) / 2
    return lead / (positives * negatives)


def ece(probabilities: ArrayLike, right: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error of P(right), over bins of equally many rows."""
    p, truth = np.asarray(probabilities, np.float64), np.asarray(right, np.float64)
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return float(sum(len(b) * abs(p[b].mean() - truth[b].mean()) for b in parts) / len(p))


def _directions(x: ArrayLike) -> NDArray[np.float32]:
    rows = np.asarray(x, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
