"""`retort keys`: what it prints, once, and what it refuses."""

import re
from pathlib import Path

import pytest

from retrain.cli import main

CONFIG = """\
state_dir: {state}
server: {{keys: database}}
tasks:
  - name: triage
    claim: {{key: [app]}}
"""
KEY = re.compile(r"rk-[A-Za-z0-9_-]{43}\n")


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> "Keys":
    path = tmp_path / "retort.yaml"
    path.write_text(CONFIG.format(state=tmp_path / "state"))
    return Keys(path, capsys)


class Keys:
    """`retort keys …`, and what it wrote."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._config = config
        self._capsys = capsys

    def __call__(self, action: str, *words: str, code: int = 0) -> str:
        assert main(["keys", action, "--config", str(self._config), *words]) == code
        said = self._capsys.readouterr()
        assert "Traceback" not in said.err
        return said.out if code == 0 else said.err


def test_a_key_is_printed_once(keys: Keys) -> None:
    key = keys("create", "app")
    assert KEY.fullmatch(key)
    listed = keys("list")
    assert key.strip() not in listed
    assert key[:9] + "…" in listed


def test_the_list_says_what_a_key_may_do(keys: Keys) -> None:
    limits = ["--rpm", "60", "--tpm", "100000", "--daily-usd", "2.5", "--monthly-usd", "40"]
    scopes = ["--task", "triage", "--unclaimed", "--may-route", "--admin", "--expires", "30"]
    keys("create", "app", *limits, *scopes)
    keys("create", "plain")
    app, plain = keys("list").splitlines()
    for word in ("tasks=-,triage", "may-route", "admin", "rpm=60", "tpm=100000", "expires"):
        assert word in app and word not in plain
    assert "daily_usd=0/2.5" in app and "monthly_usd=0/40" in app
    assert "tasks=all" in plain


def test_limits_are_changed_one_by_one(keys: Keys) -> None:
    keys("create", "app", "--rpm", "60", "--tpm", "1000", "--daily-usd", "1")
    assert keys("change", "app", "--rpm", "90", "--tpm", "none").startswith("changed: app (key-")
    line = keys("list")
    assert "rpm=90" in line and "tpm=" not in line and "daily_usd=0/1" in line


def test_rotating_prints_the_new_value_and_until_when_the_old_one_works(keys: Keys) -> None:
    old = keys("create", "app")
    new = keys("rotate", "app", "--grace", "2")
    assert KEY.fullmatch(new) and new != old
    (line,) = keys("list").splitlines()
    assert f"{new[:9]}…  {old[:9]}… until " in line
    keys("rotate", "app", "--grace", "0")
    assert old[:9] not in keys("list")


def test_a_revoked_key_leaves_the_list_and_its_name(keys: Keys) -> None:
    keys("create", "app")
    assert keys("revoke", "app").startswith("revoked: app (key-")
    assert keys("list") == ""
    assert "revoked 20" in keys("list", "--revoked")
    keys("create", "app")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["create", "app", "--task", "nothing"], "no task named 'nothing'"),
        (["create", "app", "--unclaimed"], "--unclaimed says nothing without --task"),
        (["create", "a b"], "a key's name is made of"),
        (["change", "app"], "nothing to change"),
        (["change", "nobody", "--rpm", "1"], "no key named 'nobody'"),
        (["rotate", "nobody"], "no key named 'nobody'"),
        (["revoke", "nobody"], "no key named 'nobody'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(keys: Keys, words: list[str], expected: str) -> None:
    said = keys(*words, code=1)
    assert expected in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["--rpm", "0"], ["--daily-usd", "-1"], ["--daily-usd", "nan"], ["--expires", "x"]],
    ids=" ".join,
)
def test_limits_that_make_no_sense_are_refused(keys: Keys, words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        keys("create", "app", *words)
    assert end.value.code == 2
