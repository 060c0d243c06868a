import re
from pathlib import Path

import pytest

from retrain.errors import StudentError
from retrain.student_env import FILES, LOCK, MARKER, OVERRIDES, SOURCE, ensure_student_env


def requirements(name: str) -> dict[str, str]:
    lines = (FILES / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return dict(re.split(r"==| ; ", pin, maxsplit=1) for pin in pins)


def test_the_lock_pins_what_it_was_made_from() -> None:
    locked = requirements(LOCK)
    for package, version in requirements(SOURCE).items():
        assert locked[package] == version
    assert locked["torch"].endswith("+cpu")


def test_the_lock_holds_nothing_the_overrides_leave_out() -> None:
    assert not set(requirements(LOCK)) & set(requirements(OVERRIDES))
    assert not [package for package in requirements(LOCK) if package.startswith("nvidia")]


def test_an_environment_that_is_whole_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(StudentError):
        ensure_student_env(tmp_path / "home", progress=False)
    [log] = (tmp_path / "home").iterdir()
    folder = log.with_suffix("")
    folder.mkdir()
    (folder / MARKER).write_text("")
    assert ensure_student_env(tmp_path / "home", progress=False) == folder / "bin" / "python"


def test_an_installation_that_fails_says_why_and_leaves_only_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(StudentError) as caught:
        ensure_student_env(tmp_path / "home", progress=False)
    message = str(caught.value)
    assert message.startswith("the student's environment cannot be made: ")
    assert "\n" not in message
    assert [path.suffix for path in (tmp_path / "home").iterdir()] == [".log"]
    assert str(next((tmp_path / "home").iterdir())) in message
