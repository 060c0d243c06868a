"""Is a prompt like the task's traffic? Strangeness as a conformal p-value.

Four views of strangeness, all functions of the training rows alone: the *energy* of a logistic
regression over kinds of prompts (how little any kind pulls), its *doubt* (how little the best kind
pulls more than the others), the cosine distance to the nearest *centroid* of a kind, and that to
the nearest *neighbour* among the training prompts. None is safe alone: energy and doubt are the
best for prompts near the task and blind where kinds are few; distances are the best for prompts
far from it. Their sum is never far from the best of them (benchmarks/router/ood.py), so it is what
is used, always: weights that were learned on hidden kinds of prompts did no better, and at times
much worse.

Kinds are the teacher's labels. Where these are too few to tell prompts apart (yes and no), or
there are none (free text), they are split into clusters.

Views are added in units of their spread. The p-value of a prompt is its place among held-out
prompts of the same task; the spread is taken over all of them together, so that the new prompt
and the held-out ones are treated alike: for traffic exchangeable with them, P(p <= ε) <= ε at any
sample size, whatever embedding and views are worth (Vovk et al., 2005).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from router.embedder import Embedder, Space
from router.embedding import fit_embedding

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = Sequence[tuple[str, str | None]]

ENERGY, DOUBT, CENTROID, NEIGHBOUR = "energy", "doubt", "centroid", "neighbour"
VIEWS = (ENERGY, DOUBT, CENTROID, NEIGHBOUR)
#: Training rows used at most, evenly spaced: to fit, to cluster, as neighbours (they cost latency).
FIT_ROWS = 20_000
CLUSTER_ROWS = 5_000
NEIGHBOUR_ROWS = 2_000
#: Labels that tell prompts apart less well than this many equally frequent ones are split, ...
KINDS = 9
#: ... into at most this many clusters of about so many rows, where there are at least so many.
CLUSTERS = 60
CLUSTER_SIZE = 20
CLUSTER_LEAST = 60
#: A kind needs this many rows to take part, and a part of one that was split so many.
KIND_ROWS = 2
PART_ROWS = 5
#: Inverse strength of the L2 penalty of the regression behind the energy.
PENALTY = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ood:
    """A fitted gate. ``rows``: training vectors of length 1; ``weights``/``biases``: the kinds'
    logits; ``centroids``: their directions; ``reference``: (held-out prompts, views), strange is
    high."""

    space: Space
    rows: Floats
    weights: Floats
    biases: Floats
    centroids: Floats
    reference: Doubles
    #: Derived: the reference's mean, itself around it, and the sum of squares, of each view.
    mean: Doubles = field(init=False)
    centred: Doubles = field(init=False)
    squares: Doubles = field(init=False)

    def __post_init__(self) -> None:
        mean = self.reference.mean(axis=0) if len(self.reference) else np.zeros(0)
        centred = self.reference - mean
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "centred", np.asfortranarray(centred))
        object.__setattr__(self, "squares", (centred**2).sum(axis=0))

    @property
    def uses(self) -> tuple[str, ...]:
        """The views it has: without kinds, only the neighbour."""
        if len(self.centroids):
            return VIEWS
        return (NEIGHBOUR,) if len(self.rows) else ()

    def p_value(self, prompt: str, vector: Floats | None = None) -> float:
        """In (0, 1], low is strange; 1.0 where there is nothing to compare with. ``vector``: the
        embedder's, where it is known already. Raises NoEmbedder."""
        return self.place(self.views(prompt, vector))

    def views(self, prompt: str, vector: Floats | None = None) -> Doubles:
        """The strangeness of ``prompt`` in each view, independent of the reference."""
        return self.seen_from(self.space(prompt, vector))

    def seen_from(self, at: Floats) -> Doubles:
        """The views of a prompt that lies ``at`` this point of the space."""
        views = []
        if len(self.centroids):
            logits = at @ self.weights + self.biases
            peak = float(logits.max())
            rest = float(np.log(np.exp(logits - peak).sum()))
            views = [-peak - rest, rest, 1.0 - float((self.centroids @ at).max())]
        if len(self.rows):
            views.append(1.0 - float((self.rows @ at).max()))
        return np.array(views, dtype=np.float64)

    def place(self, views: Doubles) -> float:
        """The conformal p-value of a prompt with these views."""
        n = len(self.reference)
        if not n:
            return 1.0
        away = views - self.mean
        spread = np.sqrt((self.squares + away**2) / (n + 1) - (away / (n + 1)) ** 2)
        theirs, ours = np.zeros(n), 0.0
        for at, unit in enumerate(np.maximum(spread, 1e-12).tolist()):
            # One operation after the other on both sides, so that equal prompts tie to the bit.
            theirs += self.centred[:, at] / unit
            ours += float(away[at]) / unit
        return (1 + int((theirs >= ours).sum())) / (n + 1)


def fit_ood(
    train: Rows, held_out: Sequence[str], *, seed: int, embedder: Embedder | None = None
) -> Ood:
    """The gate for (prompt, class or None) training rows, and prompts they do not hold.
    ``embedder``: what is asked beside the task's own n-grams."""
    kept = list(train)[:: _step(train, FIT_ROWS)]
    prompts = [prompt for prompt, _ in kept]
    space = Space(words=fit_embedding(prompts, seed=seed), meaning=embedder)
    points = space.many(prompts)
    kinds = _kinds(points, [label for _, label in kept], seed)
    weights, biases, centroids = _pulls(points, kinds)
    gate = Ood(
        space=space,
        rows=_directions(points[:: _step(kept, NEIGHBOUR_ROWS)]),
        weights=weights,
        biases=biases,
        centroids=centroids,
        reference=np.zeros((0, 0)),
    )
    if not gate.uses or not held_out:
        return gate
    return replace(gate, reference=np.stack([gate.seen_from(at) for at in space.many(held_out)]))


def _kinds(points: Floats, labels: Sequence[str | None], seed: int) -> NDArray[np.str_]:
    """What kind of prompt each row is; empty where it is of none."""
    names = np.array([label if label is not None else "" for label in labels], dtype=np.str_)
    counts = Counter(names.tolist())
    rare = [name for name, count in counts.items() if count < KIND_ROWS]
    names = np.where(np.isin(names, rare), "", names)
    shares = np.array([count for name, count in counts.items() if name]) / max(len(names), 1)
    alike = float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
    if alike >= KINDS or len(names) < CLUSTER_LEAST:
        return names
    some = _directions(points[:: _step(labels, CLUSTER_ROWS)])
    clusters = min(CLUSTERS, len(names) // CLUSTER_SIZE, len(np.unique(some, axis=0)))
    if clusters < 2:
        return names
    from sklearn.cluster import KMeans

    model = KMeans(clusters, n_init=1, random_state=seed).fit(some)
    found = np.asarray(model.predict(_directions(points))).astype(np.str_)
    parts = np.char.add(np.char.add(names, "|"), found)
    counts = Counter(parts.tolist())
    few = [part for part, count in counts.items() if count < PART_ROWS]
    return np.where(np.isin(parts, few), "", parts)


def _pulls(points: Floats, kinds: NDArray[np.str_]) -> tuple[Floats, Floats, Floats]:
    """Logit weights and biases of the kinds, and their centroids; none for fewer than two."""
    names = sorted(set(kinds.tolist()) - {""})
    size = points.shape[1]
    if len(names) < 2:
        nothing = np.zeros((0, size), np.float32)
        return np.zeros((size, 0), np.float32), np.zeros(0, np.float32), nothing
    from sklearn.linear_model import LogisticRegression

    known = kinds != ""
    model = LogisticRegression(C=PENALTY, max_iter=1000).fit(points[known], kinds[known])
    weights, biases = model.coef_.T, model.intercept_
    if len(names) == 2:  # one logit for two kinds: give each its half
        weights, biases = np.hstack([-weights, weights]) / 2, np.array([-biases[0], biases[0]]) / 2
    centroids = np.stack([points[kinds == name].mean(axis=0) for name in names])
    return (
        np.ascontiguousarray(weights, np.float32),
        np.asarray(biases, np.float32),
        _directions(centroids),
    )


def _directions(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)


def _step(rows: Sequence[object], most: int) -> int:
    """Every how many-th row to take to have at most ``most``."""
    return max(1, -(-len(rows) // most))
