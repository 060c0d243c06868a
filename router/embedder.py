"""Where a prompt lies among those of its task: what its words are and, with an embedder, what
they mean.

Every task has the first, hashed n-grams fitted to its own prompts (`embedding.py`): it costs some
tens of microseconds and is computed before the student is asked. An embedder beside it, a small
model here (`minilm.py`) or a service elsewhere, knows that a parcel is a package, but costs
milliseconds: it is never waited for before the student is asked, and its vector is handed in.
Neither makes the other worth nothing: together they beat both alone (docs/design.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.embedding import Embedding
from router.errors import NoEmbedder

Floats = NDArray[np.float32]

#: The identity of "no embedder but the task's own n-grams".
STATIC = "static"
#: How much words weigh beside meaning: each squared is a share of the product of two vectors.
WORDS = 0.7


class Embedder(Protocol):
    """``name``: which model, weights included, so that vectors of one name may be compared;
    ``size``: their length, 0 where it is not known before the first; ``serial``: cheap enough to
    be waited for before the student is asked."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def serial(self) -> bool: ...
    def __call__(self, text: str, /) -> Floats: ...
    def many(self, texts: Sequence[str], /) -> Floats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """An embedder that is only known by name here: its vectors come with the prompts."""

    name: str
    size: int = 0
    serial: bool = False

    def __call__(self, text: str, /) -> Floats:
        """Raises NoEmbedder."""
        raise NoEmbedder(f"the vectors of {self.name} are computed elsewhere and were not given")

    def many(self, texts: Sequence[str], /) -> Floats:
        """Raises NoEmbedder."""
        return self("")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """The vectors of a task. ``words``: its own n-grams; ``meaning``: the embedder beside them."""

    words: Embedding
    meaning: Embedder | None = None

    @property
    def name(self) -> str:
        return STATIC if self.meaning is None else self.meaning.name

    @property
    def serial(self) -> bool:
        return self.meaning is None or self.meaning.serial

    def __call__(self, text: str, vector: Floats | None = None) -> Floats:
        """Where ``text`` lies; ``vector`` is its embedder's, where that was asked already. Raises
        NoEmbedder where it is needed and cannot be had, or has not the length it must have."""
        words = self.words(text)
        if self.meaning is None:
            return words
        if vector is None:
            vector = self.meaning(text)
        if self.meaning.size and vector.shape != (self.meaning.size,):
            raise NoEmbedder(
                f"{self.name}: vectors of {self.meaning.size} numbers are known,"
                f" not of shape {vector.shape}"
            )
        return joined(words, vector)

    def many(self, texts: Sequence[str]) -> Floats:
        """One row per text, each exactly what a single call gives."""
        if self.meaning is None:
            return self.words.many(texts)
        vectors = self.meaning.many(texts)
        if not len(vectors):
            return np.zeros((0, vectors.shape[1] + self.words.size), np.float32)
        return np.stack([self(*pair) for pair in zip(texts, vectors, strict=True)])


def joined(words: Floats, meaning: Floats) -> Floats:
    """One vector, of length 1 where both parts have it."""
    length = float(np.linalg.norm(meaning))
    unit = meaning / max(length, 1e-9)
    both = np.concatenate([unit, WORDS * words]) / (1.0 + WORDS**2) ** 0.5
    return np.asarray(both, np.float32)
