"""docs/conformance.md says what the floors promise."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = json.loads((ROOT / "tests/conformance/floors.json").read_text())
PAGE = (ROOT / "docs/conformance.md").read_text()


@pytest.mark.parametrize("suite", FLOORS)
def test_every_suite_with_a_floor_is_in_the_table_and_above_it(suite: str) -> None:
    row = re.search(rf"^\| {re.escape(suite)} \| [^|]+ \| (\d+)/(\d+) \|", PAGE, re.MULTILINE)
    assert row is not None
    assert int(row[1]) >= FLOORS[suite]["passed"]
    assert int(row[2]) - int(row[1]) <= len(FLOORS[suite].get("known", {}))


def test_the_page_names_the_pinned_versions() -> None:
    pins = ROOT / "tests/conformance/pins"
    pinned = "\n".join(path.read_text() for path in pins.glob("*.txt"))
    named = ("llmock", "schemathesis", "langchain-tests", "instructor", "pydantic-ai-slim")
    for package in named:
        found = re.search(rf"^{package}(?:\[\w+\])?==(\S+)", pinned, re.MULTILINE)
        assert found is not None
        assert f"{package} {found[1]}" in PAGE
    node = json.loads((ROOT / "tests/conformance/package.json").read_text())["dependencies"]
    for package in ("openai", "ai", "@ai-sdk/openai-compatible"):
        assert f"{package} {node[package]}" in PAGE
