"""The Dockerfiles, as far as they can be judged without a builder."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.train"]


def last_stage(text: str) -> str:
    return text[text.rindex("\nFROM ") :]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_image_runs_as_the_user_the_chart_asks_for(path: Path) -> None:
    text = last_stage(path.read_text())
    assert re.findall(r"(?m)^USER (\S+)$", text) == ["10001:10001"]
    assert 'ENTRYPOINT ["retort"]' in text
    assert "HOME=/tmp" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_everything_copied_is_there_and_not_ignored(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", path.read_text()):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists() and source in allowed, source


def test_packages_in_the_image_are_all_packages() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for path in FILES:
        assert packages <= set(re.findall(r"(?m)^COPY (\w+) \w+$", path.read_text()))


def test_gateway_image_has_no_training_extra() -> None:
    assert "[train]" not in FILES[0].read_text()
    assert "[train]" in FILES[1].read_text()
