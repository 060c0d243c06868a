"""The whole loop on a real recorded teacher: requests stream in, the student learns from every
answer the teacher gives, and serves what its certificate allows.

    RETORT_DATA=<folder> python benchmarks/router/closed_loop.py [--quick]

BANKING77 with GPT-4's own answers (by the data set's gold labels right 84 times in 100). The loop
starts with three prompts of each intent; everything else is one stream, in many random orders. The
student is linear: class means under a shared covariance on a sentence vector, each label's name
counting as one more example, refitted whenever the rows have grown by a quarter. A *teacher call*
is an escalated request or an audited one. The loops:

* **uncertified**: serves where the student's probability is at least ½. No audits, no promise.
* **per bundle**: a fifth of the requests, by lot, is always asked of the teacher and never trained
  on. Each refitted student is certified on those (``router.threshold.certify``): R(t) <= α.
* **whole stream**: the same evidence, but the promise is that at most α of *all requests so far*
  are served in disagreement. A bundle may use what earlier ones left over; each is charged the
  upper bound of its certificate. δ is each bundle's, as ``contract.spend: bundle`` has it.
* **oracle**: sees every answer, and serves all it can within α of each block: what perfect
  evidence, for nothing, would make of the same student.

Two things the certified loops take for granted: that traffic is one stream (it is shuffled), and
that the rows held back say little about *which* rows later students learn from. They do say
something, through the thresholds; ``promises broken`` shows whether it matters. No loop but the
oracle reads an answer that it did not pay for; the others only judge it at the end. The student's
settings were chosen on CLINC150 with a made-up teacher, not on this stream.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.baselines import empirical
from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles
from router.embedding import fit_embedding
from router.threshold import NEVER, certify

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ALPHA, DELTA = 0.05, 0.05
#: The student is refitted when the rows seen have grown by this part, and at least by so many.
GROWTH = 0.25
LEAST = 60
#: What each class starts with.
FEW = 3
#: The share of requests that is held back for certificates.
HELD_BACK = 0.2
#: No bundle may spend more than this at once of what earlier ones left over.
MOST = 0.2
QUARTERS = 4
ORDERS = 24
CACHE = Path(__file__).resolve().parents[2] / ".retort/bench-router"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The requests ``start`` to ``end`` of a stream, between two fits of the student, and the
    vectors by which it sees prompts (all rows) and the classes' names then."""

    start: int
    end: int
    vectors: Doubles
    names: Doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """``teacher`` and ``gold``: answers as class numbers, of all rows. ``few``: the rows that the
    loop starts with; ``order``: the others, as they come."""

    teacher: Ints
    gold: Ints
    few: Ints
    order: Ints
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What one loop did with each request of the stream. ``called``: the teacher was paid;
    ``wrong``: the student answered, and otherwise than the teacher; ``right``: what was answered is
    the gold label. ``bound``: the certified bound on the disagreement, over the whole stream;
    ``broken``: the share of its promises that were (None:
    it made none)."""

    called: Bools
    served: Bools
    wrong: Bools
    right: Bools
    bound: float | None
    broken: float | None


# --- the student --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    weights: Doubles
    biases: Doubles
    heat: float = 1.0

    def __call__(self, vectors: Doubles) -> tuple[Ints, Doubles]:
        """Class and its probability."""
        logits = (vectors @ self.weights + self.biases) / self.heat
        logits -= logits.max(axis=1, keepdims=True)
        return logits.argmax(axis=1), 1.0 / np.exp(logits).sum(axis=1)


def fit(x: Doubles, y: Ints, names: Doubles) -> Student:
    """Class means under one covariance; the heat of the probabilities by cross-validation. Rows
    are mostly escalated ones, so it errs towards caution; the certificate does not mind."""
    folds = np.random.default_rng(len(x)).integers(0, 3, len(x))
    students = [_fit(x[folds != f], y[folds != f], names) for f in range(3)]
    logits = np.zeros((len(x), len(names)))
    for f, student in enumerate(students):
        logits[folds == f] = x[folds == f] @ student.weights + student.biases

    def surprise(heat: float) -> float:
        z = logits / heat
        peak = z.max(axis=1)
        likely = z[np.arange(len(y)), y] - peak - np.log(np.exp(z - peak[:, None]).sum(axis=1))
        return -float(likely.sum())

    return replace(_fit(x, y, names), heat=min(np.geomspace(0.5, 100.0, 40).tolist(), key=surprise))


def _fit(x: Doubles, y: Ints, names: Doubles, shrink: float = 0.3) -> Student:
    """Linear discriminant analysis, every class name counting as one example."""
    classes, size = names.shape
    one = np.zeros((classes, len(x)))
    one[y, np.arange(len(x))] = 1.0
    counts = one.sum(axis=1) + 1.0
    means = (one @ x + names) / counts[:, None]
    apart = x - means[y]
    spread = apart.T @ apart / len(x)
    spread = (1 - shrink) * spread + shrink * np.trace(spread) / size * np.eye(size)
    weights = np.linalg.solve(spread, means.T)
    return Student(
        weights=weights, biases=np.log(counts) - 0.5 * np.einsum("cd,dc->c", means, weights)
    )


# --- the loops ----------------------------------------------------------------------------------


def uncertified(stream: Stream, seed: int) -> Course:
    return _loop(stream, seed, held_back=0.0, threshold=lambda state: (0.5, 0.0))


def per_bundle(stream: Stream, seed: int) -> Course:
    return _loop(stream, seed, held_back=HELD_BACK, threshold=lambda s: _certified(s, ALPHA))


def whole_stream(stream: Stream, seed: int) -> Course:
    def threshold(state: "_State") -> tuple[float, float]:
        block, few = state.block, len(stream.few)
        n, coming = few + block.start, block.end - block.start
        left = ALPHA * n - state.charged
        # Over as many rows as it took to save it; and in no case more than there will be.
        alpha = min(ALPHA + left / max(n, coming), (left + ALPHA * coming) / coming, MOST)
        return _certified(state, alpha)

    return _loop(stream, seed, held_back=HELD_BACK, threshold=threshold, whole=True)


def oracle(stream: Stream, seed: int) -> Course:
    def threshold(state: "_State") -> tuple[float, float]:
        rows = stream.order[state.block.start : state.block.end]
        said, p = state.student(state.block.vectors[rows])
        grid = tuple(np.unique(p)[::-1].tolist())
        return empirical(p, said != stream.teacher[rows], ALPHA, grid), ALPHA

    return _loop(stream, seed, held_back=0.0, threshold=threshold)


LOOPS: dict[str, Callable[[Stream, int], Course]] = {
    "uncertified": uncertified,
    "per bundle": per_bundle,
    "whole stream": whole_stream,
    "oracle": oracle,
}


@dataclass(slots=True, kw_only=True)
class _State:
    """What a loop knows before a block: its student, the losses of that student on the rows held
    back so far, and what it has promised up to now."""

    block: Block
    student: Student
    scores: Doubles
    losses: Doubles
    charged: float = 0.0


def _certified(state: _State, alpha: float) -> tuple[float, float]:
    """The threshold with a certificate, and what it bounds the disagreement to."""
    found = certify(state.scores, state.losses, alpha, DELTA, binary=True)
    return (NEVER, 0.0) if found is None else (found.threshold, found.upper_bound)


def _loop(
    stream: Stream,
    seed: int,
    *,
    held_back: float,
    threshold: Callable[[_State], tuple[float, float]],
    whole: bool = False,
) -> Course:
    order, teacher = stream.order, stream.teacher
    held = np.random.default_rng(seed).random(len(order)) < held_back
    called, served, wrong = (np.zeros(len(order), bool) for _ in range(3))
    answers = teacher[order].copy()
    charged, broken = 0.0, []
    for block in stream.blocks:
        past = order[: block.start]
        learned = np.concatenate([stream.few, past[called[: block.start] & ~held[: block.start]]])
        student = fit(block.vectors[learned], teacher[learned], block.names)
        kept = past[held[: block.start]]
        said, p = student(block.vectors[kept])
        losses = (said != teacher[kept]).astype(float)
        state = _State(block=block, student=student, scores=p, losses=losses, charged=charged)
        t, bound = threshold(state)
        charged += bound * (block.end - block.start)
        part = slice(block.start, block.end)
        said, p = student(block.vectors[order[part]])
        served[part] = p >= t
        called[part] = ~served[part] | held[part]
        wrong[part] = served[part] & (said != teacher[order[part]])
        answers[part] = np.where(served[part], said, answers[part])
        rest = order[block.start :]  # what is still to come judges this student
        if held_back and not whole and 4 * len(rest) >= len(order):
            said, p = student(block.vectors[rest])
            broken.append(bool(((p >= t) & (said != teacher[rest])).mean() > ALPHA))
    n = len(stream.few) + np.arange(1, len(order) + 1)
    if whole:
        broken = [bool((np.cumsum(wrong) > ALPHA * n).any())]
    return Course(
        called=called,
        served=served,
        wrong=wrong,
        right=answers == stream.gold[order],
        bound=charged / int(n[-1]) if held_back else None,
        broken=float(np.mean(broken)) if held_back else None,
    )


# --- streams ------------------------------------------------------------------------------------


def recorded(
    rows: Sequence[dict[str, Any]], embed: Callable[[Sequence[str]], Doubles] | None
) -> Callable[[int], Stream]:
    """Streams of the recorded teacher, by seed. ``embed`` None: the product's own static
    embedding, fitted on no more than the prompts that have come in."""
    labels = sorted({row["gold"] for row in rows} | {row["gpt4"] for row in rows})
    number = {label: at for at, label in enumerate(labels)}
    gold, teacher = (np.array([number[row[key]] for row in rows]) for key in ("gold", "gpt4"))
    dev = np.array([row["split"] == "dev" for row in rows])
    starts = [np.flatnonzero((gold == at) & dev)[:FEW] for at in range(len(labels))]
    few = np.concatenate(starts)
    texts = [row["text"] for row in rows]
    names = [label.replace("_", " ") for label in labels]
    fixed = None if embed is None else (embed(texts), embed(names))

    def stream(seed: int) -> Stream:
        order = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(rows)), few))
        blocks, vectors, own = [], fixed, -1
        for start, end in _blocks(len(few), len(order)):
            if fixed is None and (vectors is None or start >= 1.5 * own):
                own = len(few) + start
                seen = [texts[at] for at in np.concatenate([few, order[:start]])]
                fitted = fit_embedding(seen, seed=17)
                vectors = (fitted.many(texts).astype(float), fitted.many(names).astype(float))
            assert vectors is not None
            blocks.append(Block(start=start, end=end, vectors=vectors[0], names=vectors[1]))
        return Stream(teacher=teacher, gold=gold, few=few, order=order, blocks=tuple(blocks))

    return stream


def synthetic(n: int = 1500, classes: int = 20, size: int = 32) -> Callable[[int], Stream]:
    """A made-up task: classes are directions, and the teacher is wrong on a tenth."""

    def stream(seed: int) -> Stream:
        rng = np.random.default_rng(seed)
        names = rng.normal(size=(classes, size)) / np.sqrt(size)
        gold = rng.integers(0, classes, n)
        x = names[gold] + 0.9 * rng.normal(size=(n, size)) / np.sqrt(size)
        slips = rng.random(n) < 0.1
        teacher = np.where(slips, rng.integers(0, classes, n), gold)
        few = np.concatenate([np.flatnonzero(gold == at)[:FEW] for at in range(classes)])
        order = rng.permutation(np.setdiff1d(np.arange(n), few))
        spans = _blocks(len(few), len(order))
        blocks = tuple(Block(start=a, end=b, vectors=x, names=names) for a, b in spans)
        return Stream(teacher=teacher, gold=gold, few=few, order=order, blocks=blocks)

    return stream


def _blocks(few: int, n: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < n:
        end = min(n, start + max(LEAST, int(GROWTH * (few + start))))
        yield start, end
        start = end


def minilm(texts: Sequence[str]) -> Doubles | None:
    """MiniLM's vectors, kept on disk between runs; None where it is not installed."""
    key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = CACHE / f"minilm-{key}.npy"
    if not path.is_file():
        try:
            from router.minilm import MiniLM

            vectors = MiniLM().many(texts)
        except Exception as error:  # not there, or not this version: the other student remains
            print(f"skipped: MiniLM ({error})")
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    return np.asarray(np.load(path), np.float64)


# --- the section --------------------------------------------------------------------------------


def streams(data: Data, quick: bool = False) -> dict[str, Callable[[int], Stream]]:
    """What there is to run on, by name; the last word of it is the student's embedding."""
    rows = data.rows("banking77_ocats_gpt4_teacher")
    if rows is None:
        return {"made-up task, linear": synthetic(600 if quick else 1500)}
    texts = [row["text"] for row in rows]
    labels = sorted({row["gold"] for row in rows} | {row["gpt4"] for row in rows})
    spoken = [label.replace("_", " ") for label in labels]
    what = f"BANKING77 + GPT-4, {len(rows) - FEW * len(labels):,} requests"
    found = {f"{what}, static": recorded(rows, None)}
    both = minilm([*texts, *spoken])
    if both is not None:
        known = dict(zip([*texts, *spoken], both, strict=True))
        stream = recorded(rows, lambda wanted: np.stack([known[text] for text in wanted]))
        found = {f"{what}, MiniLM": stream, **found}
    return found


def measure(data: Data, quick: bool) -> list[Line]:
    lines = []
    for name, stream in streams(data, quick).items():
        what, student = name.rsplit(", ", 1)
        orders = ORDERS if not quick else 1 if student == "static" else 3
        lines += _lines(what, student, stream, orders, bars=student != "linear")
    return lines


def _lines(
    what: str, student: str, stream: Callable[[int], Stream], orders: int, *, bars: bool
) -> list[Line]:
    courses: dict[str, list[Course]] = {name: [] for name in LOOPS}
    teacher = []
    for seed in range(orders):
        one = stream(seed)
        teacher.append(float((one.teacher == one.gold)[one.order].mean()))
        for name, loop in LOOPS.items():
            courses[name].append(loop(one, seed))
    lines = []
    for name, done in courses.items():
        promise = done[0].broken is not None and bars
        who = f"{student}, {name}"

        def add(
            of: str,
            values: Sequence[float],
            bar: float | None = None,
            at_most: bool = True,
            who: str = who,
        ) -> None:
            low, high = percentiles(values)
            lines.append(
                Line(
                    section="closed loop",
                    what=f"{what}: {of}",
                    who=who,
                    value=float(np.mean(values)),
                    low=low,
                    high=high,
                    bar=bar,
                    at_most=at_most,
                )
            )

        add("teacher share", [c.called.mean() for c in done], 0.25 if promise else None)
        for quarter in range(QUARTERS) if student != "static" else (QUARTERS - 1,):
            last = quarter == QUARTERS - 1
            shares = [np.array_split(c.called, QUARTERS)[quarter].mean() for c in done]
            add(f"teacher share, quarter {quarter + 1}", shares, 0.1 if promise and last else None)
        add("agreement", [1 - c.wrong.mean() for c in done], 0.95 if promise else None, False)
        if done[0].bound is not None:
            bounds = [1 - c.bound for c in done if c.bound is not None]
            add("agreement, certified", bounds, 0.95 if promise else None, False)
        for quarter in range(QUARTERS) if student != "static" else ():
            parts = [1 - np.array_split(c.wrong, QUARTERS)[quarter].mean() for c in done]
            add(f"agreement, quarter {quarter + 1}", parts)
        if done[0].broken is not None:
            add("promises broken", [c.broken or 0.0 for c in done], DELTA if promise else None)
        add("gold accuracy", [c.right.mean() for c in done])
    low, high = percentiles(teacher)
    lines.append(
        Line(
            section="closed loop",
            what=f"{what}: gold accuracy",
            who="always teacher",
            value=float(np.mean(teacher)),
            low=low,
            high=high,
        )
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    for line in measure(find(), parser.parse_args().quick):
        print(f"{line.what:70}{line.who:24}{line.value:8.3f}")


if __name__ == "__main__":
    main()
