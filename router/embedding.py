"""Text as a short vector, without any model to download: hashed n-grams, TF-IDF, truncated SVD.

Words, pairs of them and character n-grams are hashed by our own arithmetic (Python's ``hash``
differs from process to process), so a fitted embedding gives the same vector everywhere. N-grams
that the training texts lack add nothing to the vector but do add to the length it is divided by: a
text made of unknown words comes out short, and short means far from everything.

It runs before every request, so what can be multiplied beforehand is: an n-gram is found in a table
instead of by search, and its row of ``axes`` has its weight in it.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Keys = NDArray[np.uint32]

WORD = re.compile(r"\w+")
DIGIT = re.compile(r"\d")
#: Lengths of character n-grams.
GRAMS = (3, 4)
#: Of a longer prompt the first and the last half of this many characters are read.
LONGEST = 4000
#: N-grams kept at most: the most widespread ones.
VOCABULARY = 30_000
#: Length of the vectors.
DIMENSIONS = 256
#: An n-gram is looked up in the slot that the first bits of its hash name: one n-gram has it.
SLOT_BITS = 17

PRIME = np.uint64(0x100000001B3)
MIX = np.uint64(0x9E3779B97F4A7C15)
HALF = np.uint64(32)
#: what sets one kind of n-gram apart from another of the same letters
PAIR = np.uint64(2)
KINDS = {n: np.uint64(n << 40) for n in GRAMS}
SHIFT = np.uint32(32 - SLOT_BITS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """A fitted embedding. ``keys``: the known n-grams, ascending; ``idf``: their weights;
    ``unseen``: the weight of any other; ``axes``: one row per known n-gram, times its weight, in
    numbers that 16 bits hold exactly."""

    keys: Keys
    idf: Floats
    unseen: float
    axes: Floats
    #: Derived: the row of each slot's n-gram, and the squares of the weights.
    slots: NDArray[np.int32] = field(init=False)
    squares: Floats = field(init=False)

    def __post_init__(self) -> None:
        slots = np.zeros(1 << SLOT_BITS, np.int32)
        slots[self.keys >> SHIFT] = np.arange(len(self.keys), dtype=np.int32)
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "squares", np.square(self.idf))

    @property
    def name(self) -> str:
        return "static"

    @property
    def size(self) -> int:
        return int(self.axes.shape[1])

    @property
    def serial(self) -> bool:
        return True

    def __call__(self, text: str) -> Floats:
        """The vector of ``text``; its length is at most about 1. Zeros for an empty text."""
        keys, counts = ngrams(text)
        rows, weights = self.weigh(keys, counts)
        return weights @ self.axes.take(rows, axis=0)

    def weigh(self, keys: Keys, counts: Floats) -> tuple[NDArray[np.int32], Floats]:
        """The rows of the known ones of these n-grams, and how often each occurs in a text of
        length 1 (its weight is in the axes)."""
        if not len(keys) or not len(self.keys):
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        rows = self.slots[keys >> SHIFT]
        known = self.keys[rows] == keys
        rows, squares = rows[known], np.square(counts)
        mine = squares[known]
        rest = float(squares.sum() - mine.sum()) * self.unseen**2
        length = (float(mine @ self.squares[rows]) + max(rest, 0.0)) ** 0.5
        return rows, counts[known] / np.float32(max(length, 1e-9))

    def many(self, texts: Sequence[str]) -> Floats:
        """One row per text, each exactly what a single call gives."""
        if not texts:
            return np.zeros((0, self.size), dtype=np.float32)
        return np.stack([self(text) for text in texts])


def ngrams(text: str) -> tuple[Keys, Floats]:
    """The hashed n-grams of ``text``, ascending, and 1 + log of how often each occurs."""
    if len(text) > LONGEST:
        text = text[: LONGEST // 2] + " " + text[-LONGEST // 2 :]
    words = WORD.findall(DIGIT.sub("0", text.casefold()))
    hashes = np.array([zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in words], np.uint64)
    line = f" {' '.join(words)} " if words else f" {text.casefold().strip()} "
    codes = np.frombuffer(line.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    parts = [hashes, hashes[:-1] * PRIME + hashes[1:] + PAIR]
    rolling = codes
    for n in range(2, GRAMS[-1] + 1):
        rolling = rolling[:-1] * PRIME + codes[n - 1 :] if len(codes) >= n else rolling[:0]
        if n in KINDS:
            parts.append(rolling + KINDS[n])
    keys = ((np.concatenate(parts) * MIX) >> HALF).astype(np.uint32)
    keys.sort()
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    begins = np.flatnonzero(new)
    counts = np.full(len(begins), len(keys), np.float32)
    counts[:-1] = begins[1:]
    counts -= begins
    return keys[begins], np.log(counts) + np.float32(1.0)


def fit_embedding(texts: Sequence[str], *, seed: int, dimensions: int = DIMENSIONS) -> Embedding:
    """The embedding of a task's prompts; the same texts and seed give the same one."""
    found = [ngrams(text) for text in texts]
    if not any(len(keys) for keys, _ in found):
        return Embedding(
            keys=np.zeros(0, np.uint32),
            idf=np.zeros(0, np.float32),
            unseen=1.0,
            axes=np.zeros((0, 1), np.float32),
        )
    every, seen_in = np.unique(np.concatenate([keys for keys, _ in found]), return_counts=True)
    order = np.argsort(-seen_in, kind="stable")
    _, first = np.unique(every[order] >> SHIFT, return_index=True)
    kept = np.sort(order[np.sort(first)[:VOCABULARY]])
    every, seen_in = every[kept], seen_in[kept]
    n = len(found)
    idf = (np.log((1.0 + n) / (1.0 + seen_in)) + 1.0).astype(np.float32)
    unseen = float(np.log(1.0 + n) + 1.0)
    axes = _axes(found, every, idf, unseen, dimensions, seed)
    return Embedding(keys=every, idf=idf, unseen=unseen, axes=axes)


def _axes(
    found: Sequence[tuple[Keys, Floats]],
    every: Keys,
    idf: Floats,
    unseen: float,
    dimensions: int,
    seed: int,
) -> Floats:
    from scipy.sparse import csr_matrix
    from sklearn.utils.extmath import randomized_svd

    rows, columns, values = [], [], []
    for row, (keys, counts) in enumerate(found):
        where = np.minimum(np.searchsorted(every, keys), len(every) - 1)
        known = every[where] == keys
        weights = counts[known] * idf[where[known]]
        rest = counts[~known] * unseen
        length = float(weights @ weights + rest @ rest) ** 0.5 or 1.0
        rows.append(np.full(len(weights), row))
        columns.append(where[known])
        values.append(weights / length)
    matrix = csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(found), len(every)),
    )
    rank = min(dimensions, *matrix.shape)
    _, _, axes = randomized_svd(matrix, rank, n_iter=2, random_state=seed)
    weighted = (axes.T * idf[:, None]).astype(np.float16)
    return np.ascontiguousarray(weighted, dtype=np.float32)
