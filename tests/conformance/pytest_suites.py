"""Suites that are pytest files: run in their own environment, counted from JUnit's XML."""

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from rig import Clock, Result, run


def counted(
    suite: str,
    version: str,
    python: Path,
    arguments: Sequence[object],
    *,
    cwd: Path,
    env: Mapping[str, str],
    note: str = "",
) -> Result:
    """Run pytest and count. A suite that could not even be collected has passed 0 of 0."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = run([*command, *arguments], cwd=cwd, env=env, check=False)
        if not report.exists():
            return Result(suite=suite, version=version, passed=0, total=0, note=done.stdout[-500:])
        cases = ET.parse(report).getroot().iter("testcase")
        verdicts = {f"{c.get('classname')}::{c.get('name')}": _verdict(c) for c in cases}
    failed = [name for name, verdict in verdicts.items() if verdict == "failed"]
    skipped = sum(verdict == "skipped" for verdict in verdicts.values())
    if skipped:
        note = f"{skipped} skipped by the suite; {note}".rstrip("; ")
    return Result(
        suite=suite,
        version=version,
        passed=len(verdicts) - len(failed) - skipped,
        total=len(verdicts) - skipped,
        failed=failed,
        note=note,
        seconds=clock.seconds,
    )


def _verdict(case: ET.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"
