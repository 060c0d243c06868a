"""The process: where it listens, how it ends, what stops it from starting."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import wait_until
from triage import BODY, configuration

from gateway.app import create_app
from gateway.config import Config
from gateway.errors import ConfigError, StoreError
from gateway.serve import serve

PROGRAM = """
import sys
from gateway.config import Config
from gateway.logs import setup
from gateway.serve import serve
setup()
serve(Config.model_validate_json(sys.stdin.read()))
"""


@pytest.fixture
def config(tmp_path: Path, teacher: FakeOpenAI, student: FakeOpenAI) -> Config:
    return configuration(tmp_path / "state", (teacher, student), {}, server={"port": 0})


@pytest.fixture
def process(config: Config, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stderr=log, text=True
        ) as running,
    ):
        assert running.stdin is not None
        running.stdin.write(config.model_dump_json())
        running.stdin.close()
        yield running
        running.kill()


def test_serves_until_sigterm_and_lets_running_answers_end(
    process: "subprocess.Popen[str]", config: Config, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    announced = config.state / "gateway.json"
    wait_until(announced.exists, 40)
    said = json.loads(announced.read_text())
    assert said["pid"] == process.pid
    teacher.reply = Reply(text="parcel", delay_s=0.5)
    url = said["url"] + "/v1/chat/completions"
    with socket.create_connection(("127.0.0.1", int(said["url"].rpartition(":")[2]))) as client:
        data = json.dumps(BODY).encode()
        head = f"POST {url} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        teacher.wait_for(lambda server: server.in_flight == 1)
        process.send_signal(signal.SIGTERM)
        raw = b""
        while part := client.recv(65536):
            raw += part
    assert b"200 OK" in raw and b"parcel" in raw
    assert process.wait(20) == 0
    assert not announced.exists()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert said["url"] in [line.get("url") for line in lines]
    assert "answered" in [line["message"] for line in lines]


def test_what_is_wrong_with_the_environment_is_said_before_anything_starts(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    teacher = config.teacher.model_copy(update={"api_key_env": "NO_SUCH_KEY"})
    with pytest.raises(ConfigError, match=r"teacher\.api_key_env: .*NO_SUCH_KEY is not set"):
        create_app(config.model_copy(update={"teacher": teacher}))
    server = config.server.model_copy(update={"api_keys_env": "NO_SUCH_KEY"})
    with pytest.raises(ConfigError, match=r"server\.api_keys_env: .*NO_SUCH_KEY holds no key"):
        create_app(config.model_copy(update={"server": server}))
    store = config.store.model_copy(update={"url": "sqlite:////proc/nowhere/retort.db"})
    with pytest.raises(StoreError):
        create_app(config.model_copy(update={"store": store}))


def test_a_port_in_use_is_one_clear_line(config: Config) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = config.server.model_copy(update={"port": port})
        with pytest.raises(ConfigError, match=f":{port}"):
            serve(config.model_copy(update={"server": busy}))
    assert signal.getsignal(signal.SIGTERM) is before
