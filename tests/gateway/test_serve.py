"""The process: where it listens, how it ends, what stops it from starting."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def running(config: Config, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(config.model_dump_json())
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def process(config: Config, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with running(config, tmp_path) as process:
        yield process


def test_told_to_stop_it_is_not_ready_at_once_and_finishes_its_streams(
    process: "subprocess.Popen[str]", config: Config, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    announced = config.state / "gateway.json"
    wait_until(announced.exists, 40)
    said = json.loads(announced.read_text())
    assert said["pid"] == process.pid
    port = int(said["url"].rpartition(":")[2])
    hold = threading.Event()
    teacher.reply = Reply(text="par cel", hold=hold)
    with connected(port, "POST", "/v1/chat/completions", BODY | {"stream": True}) as stream:
        raw = b""
        while b"par" not in raw:
            raw += stream.recv(65536)
        assert b"200 OK" in exchanged(port, "GET", "/readyz")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: b"503 Service" in exchanged(port, "GET", "/readyz"))
        state = exchanged(port, "GET", "/readyz")
        assert b"stopping" in state and b"connection: close" in state.lower()
        assert b"200 OK" in exchanged(port, "GET", "/healthz")
        # whoever has not noticed yet is still served
        teacher.reply = "late"
        assert b"late" in exchanged(port, "POST", "/v1/chat/completions", BODY)
        assert process.poll() is None
        hold.set()
        while part := stream.recv(65536):
            raw += part
    assert b" cel" in raw and raw.endswith(b"0\r\n\r\n") and b"[DONE]" in raw
    assert process.wait(20) == 0
    assert not announced.exists()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert said["url"] in [line.get("url") for line in lines]
    assert "answered" in [line["message"] for line in lines]


@pytest.mark.slow
def test_a_stream_that_does_not_end_is_cut_when_the_time_to_drain_is_over(
    tmp_path: Path, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    config = configuration(
        tmp_path / "state", (teacher, student), {}, server={"port": 0, "drain_s": 1.0}
    )
    teacher.reply = Reply(text="par cel", hold=threading.Event())
    with running(config, tmp_path) as process:
        announced = config.state / "gateway.json"
        wait_until(announced.exists, 40)
        port = int(json.loads(announced.read_text())["url"].rpartition(":")[2])
        with connected(port, "POST", "/v1/chat/completions", BODY | {"stream": True}) as stream:
            raw = b""
            while b"par" not in raw:
                raw += stream.recv(65536)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            while part := stream.recv(65536):
                raw += part
        assert b"[DONE]" not in raw and not raw.endswith(b"0\r\n\r\n")
        teacher.wait_for(lambda server: server.in_flight == 0)


@contextmanager
def connected(
    port: int, method: str, path: str, body: dict[str, Any] | None = None
) -> Iterator[socket.socket]:
    """A request that was sent."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        yield client


def exchanged(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    with connected(port, method, path, body) as client:
        raw = b""
        while part := client.recv(65536):
            raw += part
    return raw


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
