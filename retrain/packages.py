"""uv, which installs what this process must not have in its own environment.

uv does not read pip's configuration; where pip is told to look for wheels, uv is told too.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from retrain.errors import StudentError


def uv(arguments: Sequence[str], log: Path) -> None:
    """Run it; what it says is appended to ``log``. Raises StudentError with its last words."""
    with log.open("a") as file:
        print("$ uv", *arguments, file=file, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "uv", "--no-progress", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        )
    if done.returncode != 0:
        raise StudentError(f"{_last_words(log)} (see {log})")


def wheel_links() -> list[str]:
    """Where pip is configured to look for wheels beside the index, by its file or environment."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = asked.stdout if asked.returncode == 0 else ""
    return list(dict.fromkeys(f"{found} {os.environ.get('PIP_FIND_LINKS', '')}".split()))


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith(("error:", "×", "╰─▶", "cause:"))]
    if any("No module named uv" in line for line in lines[-2:]):
        return "uv is not installed: pip install 'retort[train]'"
    return (errors or [line for line in lines if line])[-1].lstrip("×╰─▶ ")[:300]
