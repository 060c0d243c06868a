"""MiniLM's vectors of a benchmark's texts, kept between runs: 50,000 texts take a core ten
minutes. The folder is RETORT_CACHE, or one in the system's folder for temporary files."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.errors import NoEmbedder
from router.minilm import MiniLM

Floats = NDArray[np.float32]


def minilm(texts: Sequence[str]) -> Floats | None:
    """One row per text; None, with a line on the screen, where the extra is not installed."""
    digest = hashlib.sha256(MiniLM.name.encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    folder = Path(os.environ.get("RETORT_CACHE", Path(tempfile.gettempdir()) / "retort-vectors"))
    path = folder / f"{digest.hexdigest()[:24]}.npy"
    if path.is_file():
        found: Floats = np.load(path, allow_pickle=False)
        return found
    try:
        vectors = MiniLM().many(texts)
    except NoEmbedder as error:
        print(f"skipped: {error}")
        return None
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return vectors


class Known:
    """MiniLM for texts whose vectors are at hand: what the router is given in a benchmark."""

    name = MiniLM.name
    size = MiniLM.size
    serial = False

    def __init__(self, vectors: Mapping[str, Floats]) -> None:
        self._vectors = vectors

    def __call__(self, text: str, /) -> Floats:
        return self._vectors[text]

    def many(self, texts: Sequence[str], /) -> Floats:
        return np.stack([self._vectors[text] for text in texts])
