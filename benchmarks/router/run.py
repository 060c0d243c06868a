"""The router's benchmark: every section, one table, against baselines measured in the same run.

    make bench-router [ARGS="--quick --only speed certificate --docs"]

A section is a module of this folder with ``measure(data, quick) -> list[Line]``. Each runs in a
process of its own, so that one that fails costs only its own lines. Data sets come from the folder
in RETORT_DATA; without it the sections use synthetic streams, or say what they leave out.

Writes results.json and results.md (and the plots, see plots.py) into ``--out``; ``--docs`` also
puts the table between the marks of docs/router.md and the plots into docs/images.
"""

import argparse
import ast
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: What is read first comes first; sections not named here follow by name.
ORDER = ("certificate", "postgate", "pregate", "ood", "drift", "alarms", "instream", "closed_loop")
BEGIN, END = "<!-- bench-router: begin -->", "<!-- bench-router: end -->"
PACKAGES = ("retort", "numpy", "scipy", "scikit-learn", "orjson")
COLUMNS = ("what", "who", "value [95 %]", "bar", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="subsamples: some 30 s a section")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="run these sections")
    parser.add_argument("--out", type=Path, default=ROOT / ".retort/bench-router")
    parser.add_argument("--docs", action="store_true", help="also docs/router.md and docs/images")
    parser.add_argument("--no-plots", action="store_true")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="most seconds of one section")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # what a section's own process is told
    options = parser.parse_args()
    if options.section:
        return one(options.section, options.quick, options.out)
    names = sections()
    unknown = set(options.only or ()) - set(names)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for name in names:
        if not options.only or name in options.only:
            print(f"── {name}", flush=True)
            runs.append(run(name, options.quick, options.limit_s))
    result = {"about": about(options.quick), "sections": runs}
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    (options.out / "results.json").write_text(text + "\n", encoding="utf-8")
    page = markdown(result)
    (options.out / "results.md").write_text(page, encoding="utf-8")
    print("\n" + screen(result))
    images = ROOT / "docs/images" if options.docs else options.out
    if not options.no_plots:
        command = [sys.executable, str(HERE / "plots.py"), "--into", str(images)]
        drawn = subprocess.run([*command, *(["--quick"] if options.quick else [])], check=False)
        if drawn.returncode:
            print("the plots were not drawn")
    if options.docs:
        into_docs(markdown(result, brief=True))
    return 1 if any(part["error"] for part in runs) else 0


def sections() -> list[str]:
    """The modules here that define ``measure``, without importing any."""
    found = []
    for path in sorted(HERE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in tree.body):
            found.append(path.stem)
    return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def run(name: str, quick: bool, limit_s: float) -> dict[str, Any]:
    """One section in a process of its own. ``error`` says in one line why it gave no lines."""
    began = time.perf_counter()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines.json"
        command = [sys.executable, __file__, "--section", name, "--out", str(out)]
        try:
            code = subprocess.run(
                [*command, *(["--quick"] if quick else [])], check=False, timeout=limit_s
            ).returncode
            error = None if code == 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            error = f"took more than {limit_s:.0f} s"
        if error is None:
            lines = json.loads(out.read_text(encoding="utf-8"))
    took = round(time.perf_counter() - began, 1)
    return {"section": name, "took_s": took, "error": error, "lines": lines}


def one(name: str, quick: bool, out: Path) -> int:
    """In the section's own process: measure, and leave the lines in ``out``."""
    sys.path[:0] = [str(HERE), str(ROOT)]
    from benchmarks.router.data import find

    lines = importlib.import_module(f"benchmarks.router.{name}").measure(find(), quick)
    rows = [{**asdict(line), "met": line.met} for line in lines]
    for row in rows:
        for key in ("value", "low", "high"):
            if row[key] is not None:
                row[key] = float(row[key])
                row[key] = row[key] if math.isfinite(row[key]) else None
        row["met"] = None if row["met"] is None else bool(row["met"]) and row["value"] is not None
    out.write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")
    return 0


def about(quick: bool) -> dict[str, Any]:
    """What the numbers depend on. No host name, no path, no user."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.router.data import find

    folder = find().folder
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "quick": quick,
        "data": sorted(p.name for p in folder.iterdir() if p.suffix != ".md") if folder else None,
        "seeds": "fixed in each section",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def screen(result: dict[str, Any]) -> str:
    """The table with aligned columns."""
    rows = [COLUMNS, *(cells for _, cells in _cells(result))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()

    out = [_head(result), "", line(COLUMNS)]
    for name, part in groupby(_cells(result), key=lambda pair: pair[0]):
        out += ["", f"── {name} ".ljust(sum(widths) + 8, "─"), *(line(cells) for _, cells in part)]
    return "\n".join([*out, "", *_failures(result), _score(result)])


def markdown(result: dict[str, Any], *, brief: bool = False) -> str:
    """The table; ``brief``: only what has a bar, and who else was measured by the same."""
    out = [_head(result)]
    for name, part in groupby(_cells(result, brief), key=lambda pair: pair[0]):
        out += ["", f"**{name}**", "", "| " + " | ".join(COLUMNS) + " |", "| --- " * 5 + "|"]
        out += ["| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for _, cells in part]
    return "\n".join([*out, "", *_failures(result), _score(result), ""])


def into_docs(page: str) -> None:
    """The table between the marks of docs/router.md."""
    path = ROOT / "docs/router.md"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    path.write_text(f"{head}{BEGIN}\n\n{page}\n{END}{tail}", encoding="utf-8")


def _cells(result: dict[str, Any], brief: bool = False) -> Iterable[tuple[str, tuple[str, ...]]]:
    for part in result["sections"]:
        barred = {line["what"] for line in part["lines"] if line["bar"] is not None}
        for line in part["lines"]:
            if brief and line["what"] not in barred:
                continue
            value = "none" if line["value"] is None else _number(line["value"])
            if line["low"] is not None and line["high"] is not None:
                value += f" [{_number(line['low'])}, {_number(line['high'])}]"
            bar = (
                "–"
                if line["bar"] is None
                else f"{'≤' if line['at_most'] else '≥'} " + _number(line["bar"])
            )
            verdict = {True: "met", False: "not met", None: "–"}[line["met"]]
            unit = f" {line['unit']}" if line["unit"] else ""
            yield line["section"], (line["what"], line["who"], value + unit, bar, verdict)


def _head(result: dict[str, Any]) -> str:
    about = result["about"]
    parts = [about["date"], about["machine"], f"Python {about['python']}"]
    parts += [f"{name} {found}" for name, found in about["versions"].items()]
    if about["quick"]:
        parts.append("quick: subsamples, the numbers are rough")
    if about["data"] is None:
        parts.append("no data sets (RETORT_DATA): synthetic streams only")
    return " · ".join(parts)


def _failures(result: dict[str, Any]) -> list[str]:
    return [f"{p['section']}: failed, {p['error']}" for p in result["sections"] if p["error"]]


def _score(result: dict[str, Any]) -> str:
    met = [line["met"] for part in result["sections"] for line in part["lines"]]
    return f"{met.count(True)} bars met, {met.count(False)} not."


def _number(value: float) -> str:
    """Four figures, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    digits = min(6, max(0, 3 - math.floor(math.log10(abs(value)))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
