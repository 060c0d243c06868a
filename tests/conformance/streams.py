"""A thousand streams at once for a minute: `benchmarks/soak_streams.py`, counted as a suite."""

import re
import sys
from collections.abc import Iterator

from rig import ROOT, Clock, NotInstalled, Result, run


def suites() -> Iterator[Result]:
    """Passed are streams whose every word was right. Raises NotInstalled where the system does not
    allow so many connections."""
    clock = Clock()
    done = run([sys.executable, ROOT / "benchmarks" / "soak_streams.py"], check=False)
    if "open files" in done.stdout:
        raise NotInstalled(done.stdout.strip().splitlines()[-1])
    whole = int(_after(done.stdout, "streams whole / left"))
    wrong = int(_after(done.stdout, "streams wrong"))
    memory = _after(done.stdout, "memory, end over warm")
    failed = [] if done.returncode == 0 else [done.stdout[-500:]]
    yield Result(
        suite="a thousand streams at once",
        version="-",
        passed=whole,
        total=whole + wrong,
        failed=failed,
        note=f"memory at the end {memory} of that after warm-up",
        seconds=clock.seconds,
    )


def _after(said: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s+([\d.]+)", said, re.MULTILINE)
    return found[1] if found else "0"
