"""The student server. Most tests start a stand-in for vLLM as a real process; one the real one."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from gateway.config import Training
from gateway.upstreams.adapters import load_adapter, loaded, unload_adapter
from retrain.ask import Messages, ask_student, probe
from retrain.errors import StudentError
from retrain.student_env import ensure_student_env
from retrain.student_log import last_error
from retrain.student_model import ensure_model
from retrain.student_server import BASE, IDENTITY, StudentServer
from retrain.train import Row, train_adapter
from router.decision import Answer

ROOT = Path(__file__).parent.parent.parent

#: answers as vLLM does, in a child of its own, as vLLM's engine is one
SERVES = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from fake_openai import FakeOpenAI
port = int(sys.argv[sys.argv.index("--port") + 1])
engine = os.fork()
if engine == 0:
    time.sleep(600)
print("engine", engine, flush=True)
with FakeOpenAI(port=port):
    time.sleep(600)
"""
DIES = """
import sys
print("(EngineCore pid=7) ERROR 11-24 04:04:14 [core.py:133] ValueError: no such quantisation",
      file=sys.stderr)
print("(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.")
sys.exit(3)
"""


def stand_in(folder: Path, code: str) -> Path:
    """Something that is started like the student's Python and runs ``code`` instead."""
    script = folder / "stand_in.py"
    script.write_text(code)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    return python


def server(folder: Path, code: str, port: int = 0) -> StudentServer:
    return StudentServer(
        stand_in(folder, code),
        folder / "model",
        identity=folder / "identity",
        log=folder / "student.log",
        port=port,
        progress=False,
    )


def engine(folder: Path) -> int:
    """Process id of the stand-in's own child."""
    return int((folder / "student.log").read_text().split("engine")[1].split()[0])


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while runs(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_it_answers_when_it_has_started_and_is_gone_when_it_has_stopped(tmp_path: Path) -> None:
    with server(tmp_path, SERVES) as student:
        student.check()
        [answer] = ask_student(
            [[{"role": "user", "content": "x"}]],
            base_url=student.base_url,
            adapter=IDENTITY,
            max_tokens=4,
            progress=False,
        )
        assert answer is not None
        child = engine(tmp_path)
        assert runs(child)
    wait_until_gone(child)
    student.stop()  # twice is fine
    with pytest.raises(StudentError, match="the student server ended"):
        student.check()


def test_one_that_dies_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudentError) as caught:
        server(tmp_path, DIES).start()
    assert str(caught.value) == (
        "the student server ended: ValueError: no such quantisation "
        f"(see {tmp_path / 'student.log'})"
    )


def test_a_port_that_is_taken_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StudentError, match=f"^port {port} is in use$"):
            server(tmp_path, SERVES, port).start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_process_that_started_it(tmp_path: Path, number: int) -> None:
    python = stand_in(tmp_path, SERVES)
    starter = f"""
from pathlib import Path
import time
from retrain.student_server import StudentServer
folder = Path({str(tmp_path)!r})
student = StudentServer(Path({str(python)!r}), folder, identity=folder,
                        log=folder / "student.log", progress=False)
student.start()
print("up", flush=True)
time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", starter], env=environment, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        child = engine(tmp_path)
        parent.send_signal(number)
    wait_until_gone(child)


def test_the_last_error_of_a_log_is_its_cause_and_not_its_consequence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_error(log) == "it said nothing"
    log.write_text("starting\nstopping\n\n")
    assert last_error(log) == "stopping"
    log.write_text("KeyError: 'x'\nRuntimeError: Engine core initialization failed.\nbye\n")
    assert last_error(log) == "KeyError: 'x'"


def questions() -> Iterator[tuple[str, str]]:
    things = ["the parcel", "my invoice", "the app", "my password", "the refund", "the shirt"]
    for index in range(48):
        thing = things[index % 6]
        yield f"Hello, {thing} is wrong again, number {index}.", f"Z-{thing.split()[-1].upper()}"


def texts(answers: list[Answer | None]) -> list[str]:
    return [answer.text if answer else "" for answer in answers]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_trained_adapter_is_loaded_while_vllm_runs_and_changes_its_answers(
    tmp_path: Path,
) -> None:
    """The real thing: environment, model, training, vLLM, and what it answers under each name."""
    home = Path(os.environ.get("RETORT_HOME", "~/.cache/retort")).expanduser()
    model = ensure_model(home)
    rows = [
        Row(messages=[{"role": "user", "content": text}], answer=answer)
        for text, answer in questions()
    ]
    # four rows a step: twelve steps teach a 135M model to answer with a code
    training = Training(learning_rate=3e-3, epochs=1, batch_size=4)
    report = train_adapter(rows, base_model=model, out=tmp_path / "new", training=training)
    assert report.loss_last < report.loss_first / 2

    prompts: list[Messages] = [row.messages for row in rows[:6]]
    with StudentServer(ensure_student_env(home), model, log=tmp_path / "vllm.log") as student:

        def ask(adapter: str, concurrency: int = 1) -> list[str]:
            return texts(
                ask_student(
                    prompts,
                    base_url=student.base_url,
                    adapter=adapter,
                    max_tokens=12,
                    concurrency=concurrency,
                    progress=False,
                )
            )

        async def change(load: bool) -> set[str]:
            async with aiohttp.ClientSession() as session:
                if load:
                    await load_adapter(session, student.base_url, "new", str(tmp_path / "new"))
                else:
                    await unload_adapter(session, student.base_url, "new")
                return await loaded(session, student.base_url)

        before = ask(IDENTITY)
        assert before == ask(BASE), "version 0 answers like the base model"
        assert asyncio.run(change(load=True)) == {BASE, IDENTITY, "new"}
        assert probe(student.base_url, "new", prompts).changed == len(prompts)
        after = ask("new")
        assert sum(answer.startswith("Z-") for answer in after) >= 4, after
        # in a batch, as alone, but for near-ties: sums of bfloat16 depend on the batch's shape
        batched = ask("new", concurrency=6)
        assert sum(a == b for a, b in zip(batched, after, strict=True)) >= 4, (batched, after)
        assert asyncio.run(change(load=False)) == {BASE, IDENTITY}
        with pytest.raises(StudentError, match="does not exist"):
            ask("new")
