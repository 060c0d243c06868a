"""A real gateway process with everything happening to it that the dashboards show: answers of both
models, streams, every kind of fallback, audits, errors, nights; teacher and student are the
scriptable server."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from fake_openai import FakeOpenAI, Reply
from small_bundle import HEADS, STRANGE, SURE, UNSURE, make_router, prompts, save_parts
from triage import SYSTEM, configuration

from gateway.canaries import table
from gateway.config import Config
from gateway.prompt import prompt_hash
from gateway.storage import bundles
from gateway.storage.store import Store
from gateway.storage.tables import Evaluation, Run, utcnow

START_S = 60.0
PAUSE_S = 0.02
#: the command `retort`, also where it is not on the PATH
RETORT = "import sys; from retrain.cli import main; sys.exit(main())"


@contextmanager
def busy_gateway(folder: Path) -> Iterator[str]:
    """Its address, HOST:PORT; requests keep coming until the context ends."""
    with (
        FakeOpenAI(_teacher, models=("gpt-large",)) as teacher,
        FakeOpenAI(_student, models=("student-base",), strict_models=True, vllm=True) as student,
    ):
        task = {
            # kept by this student, so that no alarm ends the traffic
            "contract": {"max_disagreement": 0.4},
            "audit": {"rate": 0.5, "per_day": 0, "reask": 0.5},
            "checks": [{"kind": "blocked", "patterns": ["!$"]}],
            "cache": {"enabled": True},
            # it runs all the time
            "canary": {"steps": [0.5], "min_requests": 10**6, "max_requests": 10**6, "delta": 1e-9},
            "budget": {"daily_usd": 1000.0, "monthly_usd": 9000.0},
        }
        # rows are counted some seconds after they came
        settled = {"settle_s": 2.0}
        config = configuration(folder / "state", (teacher, student), task, certificate=settled)
        _fill(config, folder)
        with _process(config, folder) as address, _traffic(f"http://{address}"):
            yield address


def _text(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def _label(text: str) -> str:
    return next((word for word in ("parcel", "refund", "password") if word in text), "parcel")


def _teacher(body: dict[str, Any]) -> Reply:
    text = _text(body)
    if "fail" in text:
        return Reply(status=500)
    # now and then it sees it differently from the student, so that audits disagree
    return Reply(text="refund!" if text.endswith("7") else _label(text), delay_s=0.01)


def _student(body: dict[str, Any]) -> Reply:
    text = _text(body)
    if text.endswith("3"):
        return Reply(text=_label(text), logprob=UNSURE)
    if text.endswith("4"):
        return Reply(text="something else", logprob=SURE)
    if text.endswith("5"):
        return Reply(text="refund!", logprob=SURE)
    return Reply(text=_label(text), logprob=SURE)


def _fill(config: Config, folder: Path) -> None:
    """A champion, a canary, and the nights behind them."""
    task, router = config.task(), replace(make_router(), prefix=HEADS)
    with Store.open(config.database_url, config.state / "spool", config.store.commit_ms) as store:
        made = []
        for name in ("trained", "challenger"):
            adapter_dir, router_dir = save_parts(folder / name, router)
            files = bundles.write_bundle(
                config.state / "bundles",
                task=task.name,
                adapter_dir=adapter_dir,
                router_dir=router_dir,
                base_model="student-base",
                prompt_hash=prompt_hash(task.prompt),
                dataset_id="d1",
                detail={},
            )
            bundles.register(store, files, None, None, {})
            made.append(files)
        files = made[0]
        bundles.promote(store, files.id)
        table.start(store, made[1].id, task.canary)
        with store.session() as session:
            for hours, verdict in ((30, "promote"), (6, "hold")):
                ended = utcnow() - timedelta(hours=hours)
                session.add(
                    Run(
                        id=f"run-{verdict}",
                        task=task.name,
                        kind="nightly",
                        started_at=ended - timedelta(hours=1),
                        ended_at=ended,
                        state="done",
                        verdict=verdict,
                    )
                )
            session.add(
                Evaluation(
                    bundle_id=files.id,
                    dataset_id="d1",
                    at=utcnow(),
                    n=200,
                    agreement=0.93,
                    agreement_low=0.89,
                    agreement_high=0.96,
                )
            )
            session.commit()


@contextmanager
def _process(config: Config, folder: Path) -> Iterator[str]:
    path, log = folder / "retort.yaml", folder / "gateway.log"
    server = {**config.model_dump(mode="json"), "server": {"port": 0, "drain_s": 5}}
    path.write_text(yaml.safe_dump(server))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", RETORT, "serve", "--config", str(path)],
            stdout=output,
            stderr=output,
        )
    try:
        announced = config.state / "gateway.json"
        deadline = time.monotonic() + START_S
        while not announced.exists():
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"the gateway did not start: {log.read_text()}"
            time.sleep(0.05)
        url = yaml.safe_load(announced.read_text())["url"]
        yield str(url).removeprefix("http://")
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    text: str
    system: str = SYSTEM
    stream: bool = False

    def body(self) -> dict[str, Any]:
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.text},
        ]
        asked = {"model": "gpt-large", "messages": messages, "stream": self.stream}
        return asked | ({"store": True} if self.stream else {})


@contextmanager
def _traffic(url: str) -> Iterator[None]:
    ordinary = [text for text, _ in prompts(200, seed=9)]
    asks = [Ask(text=text, stream=k % 3 == 0) for k, text in enumerate(ordinary)]
    for k in range(0, len(asks), 10):
        asks[k] = Ask(text=f"{STRANGE} {k}", stream=k % 4 == 0)
    for k in range(5, len(asks), 20):
        asks[k] = Ask(text=f"a question of another kind {k}", system="You write poems.")
    asks[15] = Ask(text="fail", system="You write poems.")
    asks[25] = Ask(text=f"{STRANGE}, my card is 4111 1111 1111 1111")
    stop = threading.Event()

    def post(body: bytes, path: str = "chat/completions") -> str:
        """Returns the request id."""
        headers = {"content-type": "application/json", "authorization": "Bearer key"}
        request = urllib.request.Request(f"{url}/v1/{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()
                return str(answer.headers["x-request-id"])
        except urllib.error.HTTPError as error:
            # some are meant to fail
            error.close()
            return ""

    def work() -> None:
        number = 0
        while not stop.wait(PAUSE_S):
            answered = post(json.dumps(asks[number % len(asks)].body()).encode())
            if number % 10 == 3:
                post(json.dumps({"id": answered, "rating": "up"}).encode(), "feedback")
            if number % 40 == 7:
                post(b"{broken")
            number += 1

    worker = threading.Thread(target=work, name="traffic")
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()
