"""`kill -9` of the gateway while applications use it: whoever got an answer left a row."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from fake_openai import FakeOpenAI, Reply
from sqlmodel import select

from gateway.storage.store import Store
from gateway.storage.tables import Exchange

pytestmark = pytest.mark.slow

KILLS = 4
CLIENTS = 6
SERVE = "import sys; from retrain.cli import main; sys.exit(main(sys.argv[1:]))"


def echo(body: dict[str, Any]) -> Reply:
    """An answer of several chunks that only this question gets."""
    return Reply(text=f"{body['messages'][-1]['content']} : one two three", chunk_delay_s=0.004)


class Replay:
    """Applications that ask one question after the other, with the official client as it is
    (its own retries included), every second one as a stream."""

    def __init__(self, base_url: str) -> None:
        #: question → answer, for every answer that came whole
        self.answered: dict[str, str] = {}
        self._base_url = base_url
        self._numbers = count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(CLIENTS)]

    def __enter__(self) -> "Replay":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """After the answers that are under way; again is the same as once."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        with openai.OpenAI(base_url=self._base_url, api_key="app", timeout=20) as client:
            while not self._stop.is_set():
                number = next(self._numbers)
                question = f"question {number}"
                try:
                    answer = self._ask(client, question, stream=number % 2 == 0)
                except (openai.APIError, openai.APIConnectionError):
                    continue
                except Exception as error:
                    # a stream cut in the middle surfaces as the HTTP library's own error
                    if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore"):
                        raise
                    continue
                if answer is not None:
                    self.answered[question] = answer

    def _ask(self, client: openai.OpenAI, question: str, *, stream: bool) -> str | None:
        messages: Any = [{"role": "user", "content": question}]
        if not stream:
            whole = client.chat.completions.create(model="triage", messages=messages)
            return whole.choices[0].message.content
        text, finished = "", False
        for chunk in client.chat.completions.create(model="triage", messages=messages, stream=True):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finished = finished or choice.finish_reason is not None
        return text if finished else None


class Gateway:
    """`retort serve` in a process of its own, always on the same port."""

    def __init__(self, folder: Path, database_url: str, teacher: FakeOpenAI) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._state = folder / "state"
        self._config = folder / "retort.yaml"
        self._log = folder / "gateway.log"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "state_dir": str(self._state),
                    "server": {"port": self.port},
                    "store": {"url": database_url},
                    "teacher": {"base_url": teacher.url, "api_key_env": None},
                    "tasks": [
                        {"name": "triage", "mode": "collect", "claim": {"model": ["triage"]}}
                    ],
                }
            )
        )

    @contextmanager
    def running(self) -> Iterator[int]:
        """Its process id, once it takes requests. It is killed at the end, never stopped."""
        with (
            self._log.open("ab") as log,
            subprocess.Popen(
                [sys.executable, "-c", SERVE, "serve", "--config", str(self._config)],
                stdout=log,
                stderr=log,
            ) as process,
        ):
            try:
                give_up = time.monotonic() + 60
                while self._announced() != process.pid:
                    assert process.poll() is None, self._log.read_text()
                    assert time.monotonic() < give_up, "the gateway does not start"
                    time.sleep(0.02)
                yield process.pid
            finally:
                process.kill()

    def _announced(self) -> int | None:
        try:
            return int(json.loads((self._state / "gateway.json").read_text())["pid"])
        except FileNotFoundError:
            return None


@pytest.mark.timeout(300)
def test_kill_9_of_the_gateway_loses_no_row_a_client_has_the_answer_to(
    database_url: str, tmp_path: Path
) -> None:
    chance = random.Random(database_url)
    with FakeOpenAI(echo) as teacher:
        gateway = Gateway(tmp_path, database_url, teacher)
        with Replay(f"http://127.0.0.1:{gateway.port}/v1") as replay:
            for _ in range(KILLS):
                with gateway.running() as pid:
                    enough = len(replay.answered) + 20
                    while len(replay.answered) < enough:
                        time.sleep(0.005)
                    time.sleep(chance.uniform(0.0, 0.3))
                    os.kill(pid, signal.SIGKILL)
            with gateway.running():
                enough = len(replay.answered) + 20
                while len(replay.answered) < enough:
                    time.sleep(0.005)
                replay.stop()

    with Store.open(database_url, tmp_path / "spool") as store, store.session() as session:
        rows = list(session.exec(select(Exchange)))
    kept = Counter(row.prompt for row in rows)
    assert set(kept.values()) == {1}, "a row is doubled"
    assert set(replay.answered) <= set(kept), "an answer left no row"
    texts = {row.prompt: row.teacher_text for row in rows}
    for question, answer in replay.answered.items():
        assert texts[question] == answer
    assert len(replay.answered) >= 20 * (KILLS + 1)
