"""The CPU student's own Python environment: vLLM as locked in `student/`, made once and kept.

vLLM pins fastapi, transformers and torch, so it can share an environment neither with the gateway
nor with training.
"""

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from retrain.errors import StudentError
from retrain.packages import uv, wheel_links
from retrain.progress import step

FILES = Path(__file__).parent / "student"
LOCK, SOURCE, OVERRIDES = "serve-cpu.txt", "serve-cpu.in", "overrides-cpu.txt"
#: the Python the lock was made for; for another, versions are chosen when it is installed
LOCKED_PYTHON = (3, 11)
#: stands in an environment that is whole
MARKER = ".complete"


def ensure_student_env(home: Path, progress: bool = True) -> Path:
    """The interpreter of the student's environment under ``home``, made on first use (some
    600 MB to download, 2 GB on disk). Raises StudentError, which names the log."""
    folder = home / f"student-{_digest()}"
    python = folder / "bin" / "python"
    if (folder / MARKER).exists():
        return python
    if not sys.platform.startswith("linux"):
        raise StudentError(
            "the CPU student runs on Linux only: run vLLM in a container or on another machine "
            "and set student.base_url"
        )
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{folder.name}.log"
    log.write_text("")
    with (
        step("install the student's vLLM", show=progress),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=home) as scratch,
    ):
        made = Path(scratch) / "env"
        try:
            _install(made, log)
        except StudentError as error:
            raise StudentError(f"the student's environment cannot be made: {error}") from None
        (made / MARKER).write_text("")
        shutil.rmtree(folder, ignore_errors=True)  # one that is not whole
        made.rename(folder)
    return python


def _digest() -> str:
    """Names all that decides what is installed."""
    version = "{}.{}".format(*sys.version_info[:2])
    parts = [version.encode(), *((FILES / name).read_bytes() for name in (LOCK, SOURCE, OVERRIDES))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def _install(folder: Path, log: Path) -> None:
    # relocatable, as it is moved into its place when it is whole
    uv(["venv", "--python", sys.executable, "--relocatable", str(folder)], log)
    # without --compile-bytecode: it takes minutes for 20,000 files, of which vLLM imports few
    install = ["pip", "install", "--python", str(folder / "bin" / "python")]
    if sys.version_info[:2] == LOCKED_PYTHON:
        install += ["--no-deps", "--requirements", str(FILES / LOCK)]
    else:
        install += ["--override", str(FILES / OVERRIDES), "--requirements", str(FILES / SOURCE)]
    # torch for CPUs is on no index of packages but PyTorch's own
    torch = ["--torch-backend", "cpu"]
    links = [argument for link in wheel_links() for argument in ("--find-links", link)]
    if links:
        try:
            uv([*install, *links], log)
        except StudentError:  # what is linked to need not hold torch
            uv([*install, *links, *torch], log)
    else:
        uv([*install, *torch], log)
