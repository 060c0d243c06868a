"""Is a prompt like the task's traffic? Strangeness as a conformal p-value.

Three views of strangeness, all functions of the training rows alone: the *energy* of a logistic
regression over the teacher's labels (how little any class pulls), the cosine distance to the
nearest class *centroid*, and the mean distance to the nearest *neighbours* among the training
prompts (the only one where answers have no classes). None is safe alone: energy is by far the
best on balanced classes and blind where one class dominates or labels do not follow from the
prompt. So a trial hides some kinds of training prompts, lets every combination look for them,
and keeps the best (benchmarks/router_ood.py has the numbers).

Views are added in units of their spread. The p-value of a prompt is its place among held-out
prompts of the same task; the spread is taken over all of them together, so that the new prompt
and the held-out ones are treated alike: for traffic exchangeable with them, P(p <= ε) <= ε at any
sample size, whatever embedding and trial are worth (Vovk et al., 2005).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from router.confidence import auroc
from router.embedding import Embedding, fit_embedding

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = Sequence[tuple[str, str | None]]

ENERGY, CENTROID, NEIGHBOURS = "energy", "centroid", "neighbours"
VIEWS = (ENERGY, CENTROID, NEIGHBOURS)
#: The mean distance to this many neighbours counts (fewer where there are fewer rows).
NEAREST = 10
#: Training rows used at most, evenly spaced: to fit, as neighbours (they cost latency), in a trial.
FIT_ROWS = 20_000
NEIGHBOUR_ROWS = 5_000
TRIAL_ROWS = 2_000
#: Fewer rows tell nothing about views: all are used.
TRIAL_LEAST = 60
#: A trial sorts prompts into this many kinds and hides a third of them, three times.
KINDS = 9
FOLDS = 3
#: A class needs this many rows to take part.
CLASS_ROWS = 2
#: Inverse strength of the L2 penalty of the regression behind the energy.
PENALTY = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ood:
    """A fitted gate. ``rows``: training vectors of length 1; ``weights``/``biases``: the classes'
    logits; ``centroids``: their directions; ``uses``: the views taken; ``reference``: (held-out
    prompts, views), strange is high."""

    embedding: Embedding
    rows: Floats
    weights: Floats
    biases: Floats
    centroids: Floats
    uses: tuple[str, ...]
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

    def p_value(self, prompt: str) -> float:
        """In (0, 1], low is strange; 1.0 where there is nothing to compare with."""
        return self.place(self.views(prompt))

    def views(self, prompt: str) -> Doubles:
        """The strangeness of ``prompt`` in each view, independent of the reference."""
        vector = self.embedding(prompt)
        views = []
        if ENERGY in self.uses:
            logits = vector @ self.weights + self.biases
            peak = float(logits.max())
            views.append(-peak - float(np.log(np.exp(logits - peak).sum())))
        if CENTROID in self.uses:
            views.append(1.0 - float((self.centroids @ vector).max()))
        if NEIGHBOURS in self.uses:
            near = self.rows @ vector
            if len(near) > NEAREST:
                near = np.partition(near, len(near) - NEAREST)[-NEAREST:]
            views.append(1.0 - float(near.mean()))
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


def fit_ood(train: Rows, held_out: Sequence[str], *, seed: int) -> Ood:
    """The gate for (prompt, class or None) training rows, and prompts they do not hold."""
    kept = list(train)[:: _step(train, FIT_ROWS)]
    gate = _fit(kept, seed)
    if len(gate.uses) > 1 and len(kept) >= TRIAL_LEAST:
        gate = replace(gate, uses=_best(gate.embedding, kept[:: _step(kept, TRIAL_ROWS)], seed))
    if not gate.uses or not held_out:
        return gate
    return replace(gate, reference=np.stack([gate.views(prompt) for prompt in held_out]))


def _fit(rows: Rows, seed: int) -> Ood:
    """A gate with all the views the rows allow, and no reference."""
    prompts = [prompt for prompt, _ in rows]
    embedding = fit_embedding(prompts, seed=seed)
    vectors = embedding.many(prompts)
    weights, biases, centroids = _classes(vectors, [label for _, label in rows])
    possible = VIEWS if len(centroids) else (NEIGHBOURS,) if len(vectors) else ()
    return Ood(
        embedding=embedding,
        rows=_directions(vectors[:: _step(rows, NEIGHBOUR_ROWS)]),
        weights=weights,
        biases=biases,
        centroids=centroids,
        uses=possible,
        reference=np.zeros((0, 0)),
    )


def _best(embedding: Embedding, rows: Rows, seed: int) -> tuple[str, ...]:
    """The views that together best tell hidden kinds of prompts from unseen ones of known kinds.

    Kinds are clusters, not classes: a two-class task has nothing to hide but half of itself.
    """
    from sklearn.cluster import KMeans

    vectors = _directions(embedding.many([prompt for prompt, _ in rows]))
    if len(np.unique(vectors, axis=0)) < TRIAL_LEAST:
        return VIEWS
    kinds = KMeans(KINDS, n_init=2, random_state=seed).fit_predict(vectors)
    rng = np.random.default_rng(seed)
    order = rng.permutation(KINDS)
    options = [c for size in (3, 2, 1) for c in combinations(range(len(VIEWS)), size)]
    wins = dict.fromkeys(options, 0.0)
    for fold in range(FOLDS):
        hidden = np.isin(kinds, order[fold::FOLDS])
        aside = ~hidden & (rng.random(len(rows)) < 0.25)
        gate = _fit([rows[at] for at in np.flatnonzero(~hidden & ~aside).tolist()], seed)
        if gate.uses != VIEWS or not hidden.any() or not aside.any():
            return VIEWS
        looked = np.flatnonzero(aside | hidden).tolist()
        views = np.stack([gate.views(rows[at][0]) for at in looked])
        views /= np.maximum(views[~hidden[looked]].std(axis=0), 1e-12)
        for option in options:
            wins[option] += auroc(views[:, option].sum(axis=1), hidden[looked])
    return tuple(VIEWS[at] for at in max(options, key=wins.__getitem__))


def _classes(vectors: Floats, labels: Sequence[str | None]) -> tuple[Floats, Floats, Floats]:
    """Logit weights and biases of the classes, and their centroids; none for fewer than two."""
    counts = Counter(label for label in labels if label is not None)
    classes = sorted(label for label, count in counts.items() if count >= CLASS_ROWS)
    size = vectors.shape[1]
    if len(classes) < 2:
        nothing = np.zeros((0, size), np.float32)
        return np.zeros((size, 0), np.float32), np.zeros(0, np.float32), nothing
    from sklearn.linear_model import LogisticRegression

    names = np.array([label if label is not None else "" for label in labels])
    known = np.isin(names, classes)
    model = LogisticRegression(C=PENALTY, max_iter=1000).fit(vectors[known], names[known])
    weights, biases = model.coef_.T, model.intercept_
    if len(classes) == 2:  # one logit for two classes: give each its half
        weights, biases = np.hstack([-weights, weights]) / 2, np.array([-biases[0], biases[0]]) / 2
    centroids = np.stack([vectors[names == label].mean(axis=0) for label in classes])
    return (
        np.ascontiguousarray(weights, np.float32),
        np.asarray(biases, np.float32),
        _directions(centroids),
    )


def _directions(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)


def _step(rows: Rows, most: int) -> int:
    """Every how many-th row to take to have at most ``most``."""
    return max(1, -(-len(rows) // most))
