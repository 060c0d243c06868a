import argparse
import re
import socket
from pathlib import Path

import pytest

from gateway.config import load
from gateway.errors import ConfigError
from retrain.demo.desk import desk
from retrain.demo.options import FULL, QUICK, Options, add_options, read_options
from retrain.demo.recorded_teacher import TEACHER_PRICE
from retrain.demo.run import demo
from retrain.demo.settings import DATABASE_ENV, serving, settings, write
from retrain.demo.teacher import classroom, estimate_usd


def config(tmp_path: Path, options: Options):
    with classroom(desk(options.plan, 17), recorded=True) as room:
        return settings(
            options, room, folder=tmp_path, student_url="http://127.0.0.1:1/v1", model=tmp_path
        )


def test_the_written_yaml_is_read_back_as_it_was(tmp_path):
    made = config(tmp_path, Options(plan=QUICK))
    path = tmp_path / "retort.yaml"
    write(made, path)
    assert load(path) == made
    write(serving(made), path)
    assert load(path).task().mode == "serve" and made.task().mode == "collect"


def test_a_database_password_is_not_written_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv(DATABASE_ENV, "")
    url = "postgresql+psycopg://me:secret@127.0.0.1/retort"
    made = config(tmp_path, Options(plan=QUICK, database_url=url))
    assert "secret" not in write(made, tmp_path / "retort.yaml")
    assert load(tmp_path / "retort.yaml").database_url == url


def test_enough_is_collected_for_the_contract_to_be_provable():
    for plan in (QUICK, FULL):
        rows = 0.18 * plan.collect  # a fifth, less what chance may take
        assert 1 - (1 - plan.confidence) ** (1 / rows) < plan.max_disagreement
        assert 1 / (rows + 1) < plan.ood_epsilon


def test_a_live_teacher_is_announced_with_its_cost(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    scenario = desk(QUICK, 17)
    with classroom(scenario, recorded=False) as room:
        assert room.live and room.model == "gpt-4o" and room.api_key == "sk-test"
        assert any("$" in line and "list price" in line for line in room.says)
        assert room.scenario.answers() == {}
        assert "sk-test" not in repr(room.section)
    assert 0.5 < estimate_usd(scenario.cases, TEACHER_PRICE) < 5.0
    with classroom(scenario, recorded=True) as room:
        assert not room.live


def test_without_a_key_the_teacher_says_that_it_is_a_recording(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with classroom(desk(QUICK, 17), recorded=False) as room:
        assert "RECORDING" in room.says[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--traffic", "no/such/file.jsonl"], "there is no file no/such/file.jsonl"),
        (["--port", "70000"], "--port: 70000 is not a port"),
        (["--report", "/no/such/folder/report.html"], "--report: cannot write"),
        (["--home", __file__], "is not a folder"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(arguments, message):
    parser = argparse.ArgumentParser()
    add_options(parser)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_options(parser.parse_args(arguments))


def test_a_port_in_use_is_said_before_anything_starts(tmp_path):
    parser = argparse.ArgumentParser()
    add_options(parser)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        args = ["--port", port, "--home", str(tmp_path / "home"), "--quick", "--exit"]
        with pytest.raises(ConfigError, match=f"--port: cannot listen on port {port}"):
            demo(parser.parse_args(args))
    assert not (tmp_path / "home").exists()


def test_traffic_with_too_little_in_it_is_refused(tmp_path):
    from retrain.demo.recorded_traffic import recorded_traffic

    path = tmp_path / "few.jsonl"
    path.write_text(
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'
    )
    with pytest.raises(ConfigError, match="1 different exchanges; at least 100"):
        recorded_traffic(path, QUICK)
