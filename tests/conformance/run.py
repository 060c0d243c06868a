"""Third-party suites against the running gateway: a table, and a verdict by its floors.

    python tests/conformance/run.py [--only NAME ...] [--fast] [--with-litellm] [--json FILE]
        [--again] [--as-installed]

Ends with 1 where a number lies under its floor in floors.json, or a suite could not be installed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import clients
import generated_requests
import hostile
import litellm_peer
import openai_python
import streams
from rig import HERE, NotInstalled, Result, say

SUITES: dict[str, Callable[[], Iterator[Result]]] = {
    "openai-python": openai_python.suites,
    "llmock": hostile.suites,
    "clients": clients.suites,
    "schemathesis": generated_requests.suites,
    "streams": streams.suites,
}
FAST = ("openai-python",)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SUITES, help="these suites alone")
    parser.add_argument("--fast", action="store_true", help="what needs no npm and two minutes")
    parser.add_argument("--with-litellm", action="store_true", help="LiteLLM too, for comparison")
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--again", action="store_true", help="what is under its floor twice counts")
    parser.add_argument(
        "--as-installed", action="store_true", help="what cannot be installed is no failure"
    )
    options = parser.parse_args(arguments)
    results: list[Result] = []
    low: list[str] = []
    missing: list[str] = []
    for name in options.only or (FAST if options.fast else SUITES):
        try:
            found, wrong = judged(SUITES[name])
            if wrong and options.again:
                say(f"{name} once more: {'; '.join(wrong)}")
                found, wrong = judged(SUITES[name])
        except NotInstalled as error:
            missing.append(f"{name}: {error}")
            continue
        results += found
        low += wrong
    if options.with_litellm:
        results += [told(result) for result in litellm_peer.suites()]
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    for text in low:
        print(f"under its floor: {text}")
    for text in missing:
        print(f"not run, not installed: {text}")
    return 1 if low or (missing and not options.as_installed) else 0


def judged(suite: Callable[[], Iterator[Result]]) -> tuple[list[Result], list[str]]:
    """The results of a suite, and what is wrong with them. Raises NotInstalled."""
    floors = json.loads((HERE / "floors.json").read_text())
    results = [told(result) for result in suite()]
    return results, [low for result in results if (low := under(result, floors))]


def told(result: Result) -> Result:
    say(line(result))
    return result


def under(result: Result, floors: Mapping[str, Any]) -> str:
    """What is wrong with a result; empty where nothing is."""
    floor = floors.get(result.suite)
    if floor is None:
        return f"{result.suite} has no floor in floors.json"
    known = floor.get("known", {})
    new = [name for name in result.failed if not any(name.startswith(text) for text in known)]
    if result.passed >= floor["passed"] and not new:
        return ""
    return "".join([f"{line(result)}, floor {floor['passed']}", *(f"\n    {name}" for name in new)])


def line(result: Result) -> str:
    return f"{result.suite} {result.version}: {result.passed}/{result.total}"


def table(results: Sequence[Result]) -> str:
    rows = ["| suite | version | passed | time | |", "|---|---|---|---|---|"]
    for r in results:
        failed = ", ".join(name.rpartition("::")[2] for name in r.failed[:8])
        more = f"failed: {failed}" if failed else ""
        note = "; ".join(part for part in (r.note, more) if part)
        score = f"{r.passed}/{r.total}"
        rows.append(f"| {r.suite} | {r.version} | {score} | {r.seconds:.0f} s | {note} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
