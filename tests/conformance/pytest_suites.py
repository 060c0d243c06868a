"""Suites that are pytest files: run in their own environment, counted from JUnit's XML."""

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rig import Result, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``name``: module, class and function, with dots and a ``::``."""

    name: str
    verdict: Literal["passed", "failed", "skipped"]
    seconds: float


class NotRun(Exception):
    """pytest could not even collect; what it said."""


def ran(
    python: Path, arguments: Sequence[object], *, cwd: Path, env: Mapping[str, str]
) -> list[Case]:
    """Every test with its verdict. Raises NotRun."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = run([*command, *arguments], cwd=cwd, env=env, check=False)
        if not report.exists():
            raise NotRun(done.stdout[-2000:])
        cases = list(ET.parse(report).getroot().iter("testcase"))
    return [
        Case(
            name=f"{case.get('classname')}::{case.get('name')}",
            verdict=_verdict(case),
            seconds=float(case.get("time") or 0),
        )
        for case in cases
    ]


def summed(suite: str, version: str, cases: Sequence[Case]) -> Result:
    failed = [case.name for case in cases if case.verdict == "failed"]
    skipped = sum(case.verdict == "skipped" for case in cases)
    return Result(
        suite=suite,
        version=version,
        passed=len(cases) - len(failed) - skipped,
        total=len(cases) - skipped,
        failed=failed,
        note=f"{skipped} skipped by the suite" if skipped else "",
        seconds=sum(case.seconds for case in cases),
    )


def _verdict(case: ET.Element) -> Literal["passed", "failed", "skipped"]:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"
