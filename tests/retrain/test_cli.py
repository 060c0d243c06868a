"""The command line: help for a person, errors in one line, exit codes."""

import json
from pathlib import Path

import pytest

from gateway.config import load
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Feedback, utcnow
from retrain.cli import main

COMMANDS = [
    "serve",
    "demo",
    "student",
    "train",
    "evaluate",
    "calibrate",
    "promote",
    "rollback",
    "nightly",
    "label",
    "review",
    "savings",
    "replay",
    "bundles",
    "queue",
    "keys",
    "feedback",
    "doctor",
    "check",
]

CONFIG = """\
state_dir: {state}
teacher: {{base_url: "http://127.0.0.1:9/v1", api_key_env: null}}
student: {{base_url: "http://127.0.0.1:9/v1"}}
tasks:
  - name: triage
    claim: {{model: [gpt-4.1]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "retort.yaml"
    path.write_text(CONFIG.format(state=tmp_path / "state"))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_exits_0(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: retort {command}" in capsys.readouterr().out


def test_an_unknown_command_exits_2() -> None:
    with pytest.raises(SystemExit) as end:
        main(["distill"])
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tsks: []", "tsks: unknown key"),
        ("server: {port: eighty}", "server.port"),
        ("tasks: [", "not valid YAML"),
        ("tasks: [{name: a, claim: {}}]", "tasks.0.claim: at least one rule is needed"),
        ("- a list", "top level"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line_saying_what_and_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str
) -> None:
    path = tmp_path / "retort.yaml"
    path.write_text(text)
    assert main(["check", "--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert expected in error


def test_a_missing_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--config", str(tmp_path / "nowhere.yaml")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unreachable_database_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql+psycopg://nobody:secret-word@127.0.0.1:9/none"
    config.write_text(config.read_text() + f'store: {{url: "{url}"}}\n')
    assert main(["queue", "counts", "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "secret-word" not in error


def test_check_prints_what_check_reads_again(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", str(config)]) == 0
    resolved = capsys.readouterr().out
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved)
    assert main(["check", "--config", str(again)]) == 0
    assert capsys.readouterr().out == resolved


def test_doctor_names_what_is_missing_and_fails(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "MISSING  teacher: http://127.0.0.1:9/v1 does not answer" in out
    assert "wanting  student server (vLLM)" in out
    assert "ok       database: SQLite" in out


def test_doctor_says_what_a_tasks_checks_lack(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = """\
    checks:
      - {kind: pii, name: leaks}
      - {kind: moderation, api_key_env: RETORT_TEST_NO_SUCH_KEY}
"""
    config.write_text(config.read_text() + checks)
    main(["doctor", "--config", str(config)])
    wanted = "MISSING  task triage: tasks.checks: environment variable RETORT_TEST_NO_SUCH_KEY"
    assert wanted in capsys.readouterr().out
    config.write_text(config.read_text().replace("RETORT_TEST_NO_SUCH_KEY", "PATH"))
    main(["doctor", "--config", str(config)])
    assert "task triage: mode serve, checks: leaks, moderation" in capsys.readouterr().out
    test_check_prints_what_check_reads_again(config, config.parent, capsys)


def test_doctor_looks_at_every_replica_and_every_teacher(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    text = config.read_text()
    one, other = '"http://127.0.0.1:9/v1"', '"http://127.0.0.1:10/v1"'
    text = text.replace(f"student: {{base_url: {one}}}", f"student: {{base_url: [{one}, {other}]}}")
    more = (
        f"[{{base_url: {other}, api_key_env: NO_SUCH_KEY}}, {{base_url: {other}, api_key_env: }}]"
    )
    text = text.replace("api_key_env: null}", f"api_key_env: null, fallbacks: {more}}}")
    config.write_text(text)
    assert main(["doctor", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "MISSING  teacher 1 key: environment variable NO_SUCH_KEY is not set" in out
    assert "wanting  teacher 2: http://127.0.0.1:10/v1 does not answer" in out
    assert "wanting  student server (vLLM): http://127.0.0.1:9/v1" in out
    assert "wanting  student server (vLLM): http://127.0.0.1:10/v1" in out


def test_recorded_chats_go_in_and_come_out_again(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"where is parcel {name}?"},
                {"role": "assistant", "content": "shipping"},
            ]
        }
        for name in ("one", "two", "three")
    ]
    chats.write_text("".join(json.dumps(line) + "\n" for line in lines))
    there = ["--config", str(config)]
    assert main(["queue", "import", *there, str(chats)]) == 0
    assert capsys.readouterr().out == "3 stored, 0 were there already\n"
    assert main(["queue", "import", *there, str(chats)]) == 0
    assert capsys.readouterr().out == "0 stored, 3 were there already\n"
    assert main(["queue", "counts", *there]) == 0
    assert "3  captured" in capsys.readouterr().out
    assert main(["queue", "list", *there, "--search", "PARCEL two"]) == 0
    (row,) = capsys.readouterr().out.splitlines()
    assert main(["queue", "export", *there]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    request_id = row.split()[0]
    assert main(["queue", "show", *there, request_id]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["teacher_text"] == "shipping"
    assert [event["state"] for event in shown["events"]] == ["captured"]
    assert main(["queue", "erase", *there, request_id]) == 0
    assert main(["queue", "export", *there]) == 0
    assert "two" not in capsys.readouterr().out.replace("1 rows erased", "")


def test_feedback_is_shown_with_its_row_and_in_a_list(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]
    chats.write_text(json.dumps({"messages": messages}))
    there = ["--config", str(config)]
    main(["queue", "import", *there, str(chats)])
    with Store.open(load(config).database_url, tmp_path / "spool") as store:
        (row,) = exchanges.find(store, "triage")
        with store.transaction() as session:
            row.correction = "yes"
            session.add(row)
            words = {"rating": "down", "correction": "yes", "comment": "it was\nso"}
            at = utcnow()
            session.add(Feedback(id="req-9", at=at, task="triage", exchange_id=row.id, **words))
    capsys.readouterr()
    assert main(["feedback", "list", *there]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("req-9  ") and line.endswith("  down | correction: yes | it was so")
    assert main(["queue", "show", *there, row.id]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["comment"]) for one in shown["feedback"]] == [("req-9", "it was\nso")]
    assert main(["queue", "export", *there]) == 0
    exported = json.loads(capsys.readouterr().out)["messages"]
    assert exported[-1]["content"] == "yes"


def test_a_broken_line_of_recorded_chats_is_named_and_nothing_is_imported(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    chats.write_text(json.dumps(good) + "\n{oops\n")
    assert main(["queue", "import", "--config", str(config), str(chats)]) == 1
    assert f"{chats}:2" in capsys.readouterr().err
    assert main(["queue", "counts", "--config", str(config)]) == 0
    assert "0  captured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["promote", "triage-20260101-00000000"], "no bundle"),
        (["rollback"], "champion"),
        (["evaluate"], "champion"),
        (["calibrate"], "champion"),
        (["queue", "show", "req-0"], "no exchange"),
    ],
)
def test_what_does_not_exist_is_said_in_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main([*arguments, "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error.replace("there is no", "no")
