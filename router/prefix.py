"""What the first tokens of a draft say of the whole: hopeless drafts, and answers seen in part.

**Prefix heads.** After k = 1, 4, 16 and 64 value tokens a logistic regression on the transformed
signals of those tokens tells how likely it is that the draft will not be served. Where that is
over the head's limit, the student is stopped and the teacher asked. Everything is learned from
drafts and scores; no teacher answer is needed. Stopping only takes away what might have been
served, so a certificate holds with it as it does without.

The limits are conformal: one that j of n drafts that would be served reach or exceed, each judged
by a head that has not seen it, is exceeded by a further such draft with probability j / (n + 1).
The checkpoints share what j / (n + 1) they may have together; how they share it is chosen on the
same drafts, so the promise holds nearly and not exactly. It is one of speed, not of quality.

**Windows.** A task that releases its answers after W tokens has to be judged by those tokens.
``cut`` gives that part of an answer, the same from a finished draft as from a running one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log, log1p

import numpy as np
from numpy.typing import NDArray

from router.decision import Answer, Token
from router.output import Kind, OutputSpec, check, disagreement
from router.signals import Signals, signals

Doubles = NDArray[np.float64]

#: After how many value tokens a draft is looked at.
CHECKPOINTS = (1, 4, 16, 64)
#: A head needs this many drafts that will be served, and as many that will not.
EACH_KIND = 30
FOLDS = 5
#: What lowers a limit stops at least so many times the share of the hopeless drafts that it may
#: stop of the others, or it is not done: it would stop at random.
WORTH = 5.0
#: A draft that is likelier than not to be served is never stopped.
LEAST = 0.5
#: Probabilities are kept this far from 0 and 1 where their logarithms are taken.
EDGE = 1e-6
#: Leads over the runner-up beyond this many nats all mean "no doubt".
LEAD = 10.0


def cut(answer: Answer, tokens: int | None) -> Answer:
    """The first ``tokens`` tokens of an answer as an answer of its own; the answer itself where
    it has fewer, or None is given. Depends on nothing that comes after them."""
    if tokens is None or len(answer.tokens) < tokens:
        return answer
    return begun(answer.tokens[:tokens])


def begun(tokens: Sequence[Token]) -> Answer:
    """What has been generated so far, as an answer. Its end is not known yet."""
    return Answer(text="".join(token.text for token in tokens), tokens=tuple(tokens))


def loss_of(spec: OutputSpec, answer: Answer, teacher: str, window: int | None) -> float:
    """The loss of a draft if it is served, in [0, 1]. Of an answer that was released at its window
    nothing can be taken back: one that breaks the output rules further on is a full loss."""
    if window is not None and check(spec, answer) is not None:
        return 1.0
    return disagreement(spec, answer.text, teacher)


@dataclass(slots=True, kw_only=True)
class Walk:
    """Takes a draft token by token and stops at its checkpoints. ``fields``: the JSON fields that
    matter. For JSON only the tokens of values count, for other kinds all do."""

    kind: Kind
    fields: tuple[str, ...] = ()
    checkpoints: tuple[int, ...] = CHECKPOINTS
    tokens: list[Token] = field(default_factory=list)
    #: fewer tokens than this cannot hold the next checkpoint
    _soonest: int = 1

    def add(self, token: Token) -> tuple[int, Signals] | None:
        """The checkpoint that this token completes, with the signals up to it."""
        self.tokens.append(token)
        if not self.checkpoints or len(self.tokens) < self._soonest:
            return None
        seen = signals(self.kind, begun(self.tokens), self.fields)
        # without a value yet, the signals of a JSON text are those of all its tokens
        values = 0 if self.kind == "json" and not seen.fields else seen.values
        reached = [k for k in self.checkpoints if k <= values]
        self.checkpoints = self.checkpoints[len(reached) :]
        if self.checkpoints:
            self._soonest = len(self.tokens) + max(1, self.checkpoints[0] - values)
        return (reached[-1], seen) if reached else None


def walk(kind: Kind, answer: Answer, fields: Sequence[str] = ()) -> Iterator[tuple[int, Signals]]:
    """The checkpoints of a finished draft, just as they would have come in a stream."""
    steps = Walk(kind=kind, fields=tuple(fields))
    return (found for token in answer.tokens if (found := steps.add(token)) is not None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """Fitted heads. ``at``: their checkpoints. ``weights``: one row per head over ``inputs``.
    ``limits``: P(not served) above which the head stops the draft. ``lost`` and ``caught``: of the
    drafts that are served, and that are not, the share stopped; measured on held-out rows."""

    at: tuple[int, ...]
    weights: Doubles
    biases: Doubles
    limits: Doubles
    lost: float = 0.0
    caught: float = 0.0

    def p_defer(self, k: int, signal: Signals) -> float | None:
        """P(the draft is not served | its first k value tokens); None where there is no head."""
        if k not in self.at:
            return None
        head = self.at.index(k)
        return _sigmoid(float(inputs(signal) @ self.weights[head]) + float(self.biases[head]))

    def hopeless(self, k: int, signal: Signals) -> bool:
        """Whether to stop the draft."""
        p = self.p_defer(k, signal)
        return p is not None and p > self.limits[self.at.index(k)]


def inputs(signal: Signals) -> Doubles:
    """What a head sees: log(−log p) and −log(1−p) of the prefix's probability and of its least
    sure token's, the first of its mean, the first token's certainty, the smallest lead."""
    seq, least, mean = _clipped(signal.seq), _clipped(signal.min), _clipped(signal.mean)
    return np.array(
        [
            -log(-log(seq)),
            -log1p(-seq),
            -log(-log(least)),
            -log1p(-least),
            -log(-log(mean)),
            signal.first,
            min(LEAD, max(-LEAD, signal.margin)),
        ]
    )


def fit_prefix(
    kind: Kind,
    answers: Sequence[Answer],
    served: Sequence[bool],
    *,
    fields: Sequence[str] = (),
    before: int | None = None,
    share: float = 0.01,
    seed: int = 17,
) -> Prefix | None:
    """Heads that stop at most ``share`` of the drafts that would be served.

    ``answers``: drafts of held-out traffic, ``served``: whether each would be. ``before``: only
    checkpoints under this many tokens. None where there is too little data for any head, or where
    none would stop anything.
    """
    good = np.asarray(served, dtype=bool)
    n = len(good)
    # how many of the served drafts the limits may leave above them or on them, all in all
    tickets = int(share * (int(good.sum()) + 1))
    found = [dict(walk(kind, answer, fields)) for answer in answers]
    lengths = np.array([len(answer.tokens) for answer in answers])
    heads: list[tuple[int, Doubles, float]] = []
    seen_by, saved = np.zeros((0, n)), np.zeros((0, n))
    for k in CHECKPOINTS:
        rows = np.flatnonzero([k in seen for seen in found])
        if len(rows) == 0 or (before is not None and k >= before):
            break
        fitted = _fitted(np.stack([inputs(found[row][k]) for row in rows]), ~good[rows], seed)
        if fitted is not None:
            weights, bias, unseen = fitted
            p = np.full(n, -np.inf)
            p[rows] = unseen
            heads.append((k, weights, bias))
            seen_by = np.vstack([seen_by, p])
            # stopping the last token saves little, but the teacher is asked a little sooner
            saved = np.vstack([saved, np.maximum(lengths - k, 0) + 1.0])
    limits = _limits(seen_by, saved, good, tickets)
    kept = np.flatnonzero(np.isfinite(limits)).tolist()
    if not kept:
        return None
    stopped = np.asarray((seen_by > limits[:, None]).any(axis=0), dtype=bool)
    return Prefix(
        at=tuple(heads[head][0] for head in kept),
        weights=np.stack([heads[head][1] for head in kept]),
        biases=np.array([heads[head][2] for head in kept]),
        limits=limits[kept],
        lost=float(stopped[good].mean()),
        caught=float(stopped[~good].mean()),
    )


def _limits(p: Doubles, saved: Doubles, good: NDArray[np.bool_], tickets: int) -> Doubles:
    """The heads' limits; infinity for one that stops nothing. ``p``: what each head says of each
    draft, ``saved``: the tokens that its stopping saves. A ticket lowers one limit to the next
    draft that would be served; each goes where it saves most."""
    served = -np.sort(-p[:, good], axis=1)
    hopeless = int((~good).sum())
    taken = [0] * len(p)
    limits = np.full(len(p), np.inf)
    saves = np.zeros(p.shape[1])
    while True:
        best, step = 0.0, None
        for head in range(len(p)):
            for more in range(1, tickets - sum(taken) + 1):
                limit = max(LEAST, float(served[head, taken[head] + more - 1]))
                then = np.maximum(saves, np.where((p[head] > limit) & ~good, saved[head], 0.0))
                stopped = int((then > 0.0).sum() - (saves > 0.0).sum())
                if stopped <= WORTH * more * hopeless / (len(served[head]) + 1):
                    continue
                gain = float((then - saves).sum()) / more
                if gain > best:
                    best, step = gain, (head, more, limit, then)
        if step is None:
            return limits
        head, more, limits[step[0]], saves = step
        taken[head] += more


def _fitted(
    x: Doubles, deferred: NDArray[np.bool_], seed: int
) -> tuple[Doubles, float, Doubles] | None:
    """Weights and bias of a head, and what heads that did not see a row say of it. None where
    there is too little of either kind."""
    if min(deferred.sum(), (~deferred).sum()) < EACH_KIND:
        return None
    order = np.random.default_rng(seed).permutation(len(x))
    unseen = np.zeros(len(x))
    for fold in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, fold)
        if deferred[rest].all() or not deferred[rest].any():
            return None
        weights, bias = _logistic(x[rest], deferred[rest])
        unseen[fold] = [_sigmoid(z) for z in x[fold] @ weights + bias]
    return *_logistic(x, deferred), unseen


def _logistic(x: Doubles, deferred: NDArray[np.bool_]) -> tuple[Doubles, float]:
    """For inputs as they are: the scaling is folded into the weights."""
    from sklearn.linear_model import LogisticRegression

    means, scales = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    model = LogisticRegression(C=0.3, max_iter=500).fit((x - means) / scales, deferred)
    weights = np.asarray(model.coef_[0], np.float64) / scales
    return weights, float(model.intercept_[0] - means @ weights)


def _clipped(logprob: float) -> float:
    return min(1.0 - EDGE, max(EDGE, exp(logprob)))


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + exp(-min(60.0, max(-60.0, z))))
