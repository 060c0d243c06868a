"""Will the student's draft be of no use? A probability from the prompt alone, before any draft.

Five plain estimates, each right about something: what became of the most similar prompts
(*neighbours*), of the cluster the prompt belongs to (*prior*), a logistic regression over where it
lies (*place*), one over its n-grams (*words*), and one over how long and how it is written
(*surface*). On one narrow task the prompt says little and length is most of it; on mixtures the
neighbours say what kind of question it is. So they are mixed by what each was worth on rows that
it had not seen, inside the labelled rows; no estimate may count against the others. Published
routers that see only the prompt, of whatever size, are not better (benchmarks/router/pregate.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.embedder import Space
from router.embedding import Embedding, ngrams

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

#: Fewer labelled rows than this, or of one outcome, teach nothing.
LEAST_ROWS = 100
LEAST_EACH = 15
#: Labelled rows used at most: the latest.
MOST_ROWS = 5_000
#: Neighbours that are asked; of few rows a fifth.
NEAREST = 100
#: Clusters behind the prior, at most, and rows that each should have.
CLUSTERS = 40
CLUSTER_SIZE = 25
#: So many imagined rows of the overall mean keep a small cluster's prior from extremes.
SHRINK = 10.0
#: How much the surface weighs beside the place.
SURFACE = 0.1
PENALTY, SURFACE_PENALTY = 1.0, 0.1
FOLDS = 5
#: How strongly the mix is held to equal weights: as if so many rows had asked for them.
EQUAL = 20.0

NUMBER = re.compile(r"\d+")
SENTENCE = re.compile(r"[.?!]")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difficulty:
    """A fitted estimate. ``rows``/``losses``: labelled prompts' directions, and what became of
    them; ``centres``/``priors``: the clusters'; ``line``: over place and surface; ``words``: one
    axis over the n-grams; ``surface``: a line over the surface, which is centred by ``means`` and
    ``scales``; ``units``: mean and spread of each of the five; ``mix``: their weights, and last
    the bias."""

    rows: Floats
    losses: Floats
    centres: Floats
    priors: Doubles
    line: Doubles
    words: Embedding
    surface: Doubles
    means: Doubles
    scales: Doubles
    units: Doubles
    mix: Doubles

    def __call__(self, prompt: str, at: Floats) -> float:
        """P(the draft is of no use), in (0, 1), for a prompt that lies ``at`` this point."""
        estimates = (self.estimates(prompt, at) - self.units[0]) / self.units[1]
        logit = float(np.clip(estimates, -5.0, 5.0) @ self.mix[:-1] + self.mix[-1])
        return float(1.0 / (1.0 + np.exp(-np.clip(logit, -30.0, 30.0))))

    def estimates(self, prompt: str, at: Floats) -> Doubles:
        """The five, each in its own unit: neighbours, prior, place, words, surface."""
        seen = (written(prompt) - self.means) / self.scales
        pull = self.centres @ at
        return np.array(
            [
                _near(self.rows @ at, self.losses),
                self.priors[int(pull.argmax())],
                np.concatenate([at, SURFACE * seen]) @ self.line,
                float(self.words(prompt)[0]),
                seen @ self.surface,
            ]
        )


def written(prompt: str) -> Doubles:
    """How long a prompt is and how it is written, as nine numbers."""
    n = max(len(prompt), 1)
    words = prompt.split()
    digits = sum(map(str.isdigit, prompt))
    letters = sum(map(str.isalpha, prompt))
    spaces = sum(map(str.isspace, prompt))
    counts = [
        n,
        len(words),
        digits,
        len(NUMBER.findall(prompt)),
        max(len(prompt) - digits - letters - spaces, 0),
        prompt.count("\n"),
        len(SENTENCE.findall(prompt)),
    ]
    capitals = sum(map(str.isupper, prompt)) / n
    return np.array([*np.log1p(counts), capitals, n / max(len(words), 1) / 10])


def fit_difficulty(
    space: Space, prompts: Sequence[str], points: Floats, losses: Sequence[float], *, seed: int
) -> Difficulty | None:
    """The estimate from prompts, where they lie in ``space``, and what became of their drafts: 1
    of no use, 0 fine, or between. None where they are too few, or all the same."""
    prompts, points = list(prompts)[-MOST_ROWS:], points[-MOST_ROWS:]
    outcome = np.asarray(losses, np.float64)[-MOST_ROWS:]
    n = len(outcome)
    if n < LEAST_ROWS or min(outcome.sum(), (1.0 - outcome).sum()) < LEAST_EACH:
        return None
    from sklearn.cluster import KMeans

    rows = _directions(points)
    clusters = max(1, min(CLUSTERS, n // CLUSTER_SIZE, len(np.unique(rows, axis=0))))
    model = KMeans(clusters, n_init=1, random_state=seed).fit(rows)
    seen = np.stack([written(prompt) for prompt in prompts])
    means, scales = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-9)
    seen = (seen - means) / scales
    bags = _bags(space.words, prompts)
    data = _Data(
        rows=rows,
        kinds=model.labels_,
        clusters=clusters,
        joint=np.hstack([points, SURFACE * seen]),
        bags=bags,
        seen=seen,
        outcome=outcome,
    )
    unseen = np.zeros((n, 5))
    folds = np.random.default_rng(seed).permutation(n) % FOLDS
    for fold in range(FOLDS):
        unseen[folds == fold] = data.fit(folds != fold).of(data, folds == fold)
    units = np.stack([unseen.mean(axis=0), np.maximum(unseen.std(axis=0), 1e-9)])
    fitted = data.fit(np.ones(n, dtype=bool))
    return Difficulty(
        rows=rows,
        losses=outcome.astype(np.float32),
        centres=_directions(model.cluster_centers_),
        priors=fitted.priors,
        line=fitted.line,
        words=_with_axis(space.words, fitted.words),
        surface=fitted.surface,
        means=means,
        scales=scales,
        units=units,
        mix=_mix(np.clip((unseen - units[0]) / units[1], -5.0, 5.0), outcome),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """The labelled rows, as numbers."""

    rows: Floats
    kinds: NDArray[np.int32]
    clusters: int
    joint: Doubles
    bags: Any
    seen: Doubles
    outcome: Doubles

    def fit(self, mask: NDArray[np.bool_]) -> "_Fitted":
        """The lines and priors of these rows. Biases are left out: the mix has one."""
        y = self.outcome[mask]
        sums = np.bincount(self.kinds[mask], y, self.clusters)
        counts = np.bincount(self.kinds[mask], minlength=self.clusters)
        return _Fitted(
            rows=self.rows[mask],
            losses=y.astype(np.float32),
            priors=(sums + SHRINK * y.mean()) / (counts + SHRINK),
            line=_line(self.joint[mask], y, PENALTY),
            words=_line(self.bags[mask], y, PENALTY),
            surface=_line(self.seen[mask], y, SURFACE_PENALTY),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    rows: Floats
    losses: Floats
    priors: Doubles
    line: Doubles
    words: Doubles
    surface: Doubles

    def of(self, data: _Data, mask: NDArray[np.bool_]) -> Doubles:
        """The five estimates of other rows."""
        near = [_near(self.rows @ row, self.losses) for row in data.rows[mask]]
        return np.stack(
            [
                np.array(near),
                self.priors[data.kinds[mask]],
                data.joint[mask] @ self.line,
                data.bags[mask] @ self.words,
                data.seen[mask] @ self.surface,
            ],
            axis=1,
        )


def _near(likeness: Floats, losses: Floats) -> float:
    """What became of the most alike."""
    k = min(NEAREST, max(1, len(likeness) // 5))
    if k < len(likeness):
        losses = losses[np.argpartition(likeness, len(likeness) - k)[-k:]]
    return float(losses.mean())


def _line(features: Any, outcome: Doubles, penalty: float) -> Doubles:
    """The weights of a logistic regression whose outcomes may lie between 0 and 1: such a row
    counts in part as either."""
    from scipy.sparse import issparse, vstack
    from sklearn.linear_model import LogisticRegression

    weight = np.concatenate([outcome, 1.0 - outcome])
    taken = weight > 0.0
    truth = np.arange(len(weight)) < len(outcome)
    if issparse(features):
        twice = vstack([features, features]).tocsr()
    else:
        twice = np.concatenate([features, features])
    model = LogisticRegression(C=penalty, max_iter=500)
    model.fit(twice[taken], truth[taken], sample_weight=weight[taken])
    return np.asarray(model.coef_[0], np.float64)


def _bags(words: Embedding, prompts: Sequence[str]) -> Any:
    """TF-IDF of the known n-grams."""
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for row, prompt in enumerate(prompts):
        places, weights = words.weigh(*ngrams(prompt))
        rows.append(np.full(len(places), row))
        columns.append(places)
        values.append(weights * words.idf[places])
    where = (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix(
        (np.concatenate(values), where), shape=(len(prompts), max(len(words.keys), 1))
    )


def _with_axis(words: Embedding, line: Doubles) -> Embedding:
    """An embedding into one number: what the line makes of the n-grams."""
    axis = line[: len(words.keys)] * words.idf
    return replace(words, axes=np.asarray(axis, np.float32)[:, None])


def _mix(estimates: Doubles, outcome: Doubles) -> Doubles:
    """Weights of the estimates, none below 0 and all held to their mean, and the bias, so that
    the logistic function of their sum is the probability."""
    from scipy.optimize import minimize

    n, count = estimates.shape

    def loss(at: Doubles) -> tuple[float, Doubles]:
        weights = at[:-1]
        logits = estimates @ weights + at[-1]
        apart = weights - weights.mean()
        value = (np.logaddexp(0.0, logits) - outcome * logits).sum() + EQUAL * (apart**2).sum()
        slope = 1.0 / (1.0 + np.exp(-logits)) - outcome
        down = np.append(estimates.T @ slope + 2.0 * EQUAL * apart, slope.sum())
        return float(value) / n, down / n

    start = np.append(np.full(count, 0.1), 0.0)
    bounds = [(0.0, None)] * count + [(None, None)]
    return np.asarray(minimize(loss, start, jac=True, bounds=bounds).x, np.float64)


def _directions(vectors: Any) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)
