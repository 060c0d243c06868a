"""Text as a short vector, without any model to download: hashed n-grams, TF-IDF, truncated SVD.

Word 1-2-grams and character 3-5-grams are hashed by our own arithmetic (Python's ``hash`` differs
from process to process), so a fitted embedding gives the same vector everywhere. N-grams that the
training texts lack add nothing to the vector but do add to the length it is divided by: a text
made of unknown words comes out short, and short means far from everything.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Keys = NDArray[np.uint32]

WORD = re.compile(r"\w+")
DIGIT = re.compile(r"\d")
#: Lengths of character n-grams.
GRAMS = (3, 4, 5)
#: Of a longer prompt the first and the last half of this many characters are read.
LONGEST = 4000
#: N-grams kept at most: the most widespread ones.
VOCABULARY = 30_000
#: Length of the vectors.
DIMENSIONS = 128

PRIME = np.uint64(0x100000001B3)
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """A fitted embedding. ``keys``: the known n-grams, ascending; ``idf``: their weights;
    ``unseen``: the weight of any other; ``axes``: one row per known n-gram."""

    keys: Keys
    idf: Floats
    unseen: float
    axes: Floats

    def __call__(self, text: str) -> Floats:
        """The vector of ``text``; its length is at most 1. Zeros for an empty text."""
        keys, counts = ngrams(text)
        where = np.searchsorted(self.keys, keys)
        known = np.zeros(len(keys), dtype=bool)
        inside = where < len(self.keys)
        known[inside] = self.keys[where[inside]] == keys[inside]
        rows = where[known]
        weights = counts[known] * self.idf[rows]
        rest = counts[~known] * np.float32(self.unseen)
        length = float(weights @ weights + rest @ rest) ** 0.5
        if length == 0.0:
            return np.zeros(self.axes.shape[1], dtype=np.float32)
        scaled = (weights / np.float32(length)).astype(np.float32)
        return np.asarray(scaled @ self.axes[rows], np.float32)

    def many(self, texts: Sequence[str]) -> Floats:
        """One row per text, each exactly what a single call gives."""
        if not texts:
            return np.zeros((0, self.axes.shape[1]), dtype=np.float32)
        return np.stack([self(text) for text in texts])


def ngrams(text: str) -> tuple[Keys, Floats]:
    """The hashed n-grams of ``text``, ascending, and 1 + log of how often each occurs."""
    if len(text) > LONGEST:
        text = text[: LONGEST // 2] + " " + text[-LONGEST // 2 :]
    words = WORD.findall(DIGIT.sub("0", text.casefold()))
    hashes = np.array([zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in words], np.uint64)
    line = f" {' '.join(words)} " if words else f" {text.casefold().strip()} "
    codes = np.frombuffer(line.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    parts = [hashes, hashes[:-1] * PRIME + hashes[1:] + np.uint64(2)]
    rolling = codes
    for n in range(2, GRAMS[-1] + 1):
        rolling = rolling[:-1] * PRIME + codes[n - 1 :] if len(codes) >= n else rolling[:0]
        if n in GRAMS:
            parts.append(rolling + np.uint64(n << 40))
    mixed = np.concatenate(parts) * MIX
    found, counts = np.unique((mixed >> np.uint64(32)).astype(np.uint32), return_counts=True)
    return found, (1.0 + np.log(counts)).astype(np.float32)


def fit_embedding(texts: Sequence[str], *, seed: int, dimensions: int = DIMENSIONS) -> Embedding:
    """The embedding of a task's prompts; the same texts and seed give the same one."""
    counted = [ngrams(text) for text in texts]
    if not any(len(keys) for keys, _ in counted):
        return Embedding(
            keys=np.zeros(0, np.uint32),
            idf=np.zeros(0, np.float32),
            unseen=1.0,
            axes=np.zeros((0, 1), np.float32),
        )
    every, seen_in = np.unique(np.concatenate([keys for keys, _ in counted]), return_counts=True)
    if len(every) > VOCABULARY:
        kept = np.sort(np.argsort(-seen_in, kind="stable")[:VOCABULARY])
        every, seen_in = every[kept], seen_in[kept]
    n = len(counted)
    idf = (np.log((1.0 + n) / (1.0 + seen_in)) + 1.0).astype(np.float32)
    unseen = float(np.log(1.0 + n) + 1.0)
    axes = _axes(counted, every, idf, unseen, dimensions, seed)
    return Embedding(keys=every, idf=idf, unseen=unseen, axes=axes)


def _axes(
    counted: Sequence[tuple[Keys, Floats]],
    every: Keys,
    idf: Floats,
    unseen: float,
    dimensions: int,
    seed: int,
) -> Floats:
    from scipy.sparse import csr_matrix
    from sklearn.utils.extmath import randomized_svd

    rows, columns, values = [], [], []
    for row, (keys, counts) in enumerate(counted):
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
        shape=(len(counted), len(every)),
    )
    rank = min(dimensions, *matrix.shape)
    _, _, axes = randomized_svd(matrix, rank, n_iter=2, random_state=seed)
    return np.ascontiguousarray(axes.T, dtype=np.float32)
