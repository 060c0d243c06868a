"""A run resumes where it stopped, and two nights of a task never run at once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from night_world import make_config, open_store
from sqlmodel import select

from gateway.config import Config
from gateway.storage.store import Store
from gateway.storage.tables import Run, utcnow
from retrain.errors import NightBusy, NightError
from retrain.runs import RESUME_H, open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    rows: int
    names: tuple[str, ...] = ()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path, "http://127.0.0.1:1/v1")


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    with open_store(config) as opened:
        yield opened


def rows(store: Store) -> list[Run]:
    with store.session() as session:
        return list(session.exec(select(Run).order_by(Run.started_at)))  # type: ignore[arg-type]


def fail(config: Config, store: Store, **options: object) -> str:
    """A run that finished one step and died in the next. Its id."""
    with pytest.raises(RuntimeError), open_run(config, store, "triage", **options) as run:  # type: ignore[arg-type]
        run.step("one", Found, lambda: Found(rows=3, names=("a", "b")))
        raise RuntimeError("power cut")
    return run.id


def never() -> Found:
    raise AssertionError("done before")


def test_finished_steps_are_read_back(config: Config, store: Store) -> None:
    first = fail(config, store)
    said: list[str] = []
    with open_run(config, store, "triage", say=said.append) as run:
        assert run.id == first
        assert run.step("one", Found, never) == Found(rows=3, names=("a", "b"))
        assert run.step("two", Found, lambda: Found(rows=4)) == Found(rows=4)
    assert said[:2] == [f"resuming {first}", "one: done before"]
    assert said[2].startswith("two: done in")
    assert [(row.id, row.state) for row in rows(store)] == [(first, "done")]


def test_a_failed_run_says_where_and_why(config: Config, store: Store) -> None:
    fail(config, store)
    (row,) = rows(store)
    assert (row.state, row.step) == ("failed", "one")
    assert row.detail["error"] == "RuntimeError: power cut" and row.ended_at is not None


def test_a_finished_run_is_not_resumed(config: Config, store: Store) -> None:
    with open_run(config, store, "triage") as first:
        pass
    with open_run(config, store, "triage") as second:
        assert second.id != first.id


@pytest.mark.parametrize("change", ["config", "settings", "kind", "fresh", "age"])
def test_a_run_that_would_do_something_else_is_not_resumed(
    config: Config, store: Store, change: str
) -> None:
    first = fail(config, store, settings={"max_rows": None})
    options: dict[str, object] = {"settings": {"max_rows": None}}
    if change == "config":
        training = config.training.model_copy(update={"epochs": 5.0})
        config = config.model_copy(update={"training": training})
    elif change == "settings":
        options["settings"] = {"max_rows": 10}
    elif change == "kind":
        options["kind"] = "train"
    elif change == "fresh":
        options["resume"] = False
    else:
        with store.session() as session:
            row = session.get_one(Run, first)
            row.started_at = utcnow() - timedelta(hours=RESUME_H + 1)
            session.add(row)
            session.commit()
    with open_run(config, store, "triage", **options) as run:  # type: ignore[arg-type]
        assert run.id != first


def test_two_nights_of_a_task_never_run_at_once(config: Config, store: Store) -> None:
    with open_run(config, store, "triage"):
        with (
            pytest.raises(NightBusy, match=rf"running already \(process {os.getpid()}\)"),
            open_run(config, store, "triage"),
        ):
            pass
        with open_run(config, store, "another"):
            pass


def test_a_night_on_another_machine_is_respected_until_it_is_surely_dead(
    config: Config, store: Store
) -> None:
    with store.session() as session:
        session.add(
            Run(id="r", task="triage", kind="nightly", started_at=utcnow(), detail={"host": "b"})
        )
        session.commit()
    with (
        pytest.raises(NightBusy, match="is running on b"),
        open_run(config, store, "triage"),
    ):
        pass
    with store.session() as session:
        row = session.get_one(Run, "r")
        row.started_at = utcnow() - timedelta(hours=24)
        session.add(row)
        session.commit()
    with open_run(config, store, "triage") as run:
        assert run.id != "r"
    assert [row.state for row in rows(store)] == ["failed", "done"]


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from night_world import make_config, open_store
from retrain.runs import open_run
config = make_config(Path(sys.argv[1]), "http://127.0.0.1:1/v1")
with open_store(config) as store, open_run(config, store, "triage") as run:
    run.step("one", dict, lambda: {"rows": 3})
    print(run.id, flush=True)
    time.sleep(60)
"""


def test_a_killed_night_is_resumed_at_once(config: Config, store: Store, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(root), str(root / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        with pytest.raises(NightBusy), open_run(config, store, "triage"):
            pass
        process.send_signal(signal.SIGKILL)
    assert rows(store)[0].state == "running"
    with open_run(config, store, "triage") as run:
        assert run.id == run_id
        assert run.step("one", dict, lambda: {"rows": 0}) == {"rows": 3}


def test_numbers_are_logged_line_by_line(config: Config, store: Store) -> None:
    with open_run(config, store, "triage") as run:
        run.log(step=1, loss=2.0)
        run.log(step=2, loss=1.5)
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [2.0, 1.5]


def test_a_damaged_run_directory_is_named(config: Config, store: Store) -> None:
    run_id = fail(config, store)
    path = config.state / "runs" / run_id / "steps.json"
    path.write_text("{")
    with (
        pytest.raises(NightError, match=r"steps.json: cannot be read"),
        open_run(config, store, "triage") as run,
    ):
        run.step("one", Found, never)
    path.write_text('{"one": {"seconds": 1, "output": {"rows": "many"}}}')
    with (
        pytest.raises(NightError, match=r"the output of one is not readable.*--fresh"),
        open_run(config, store, "triage") as run,
    ):
        run.step("one", Found, never)
