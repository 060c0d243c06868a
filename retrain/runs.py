"""The run directory of a night: its configuration, its finished steps, its numbers, its report.

    state_dir/runs/<run id>/  config.json  steps.json  metrics.jsonl  report.md  report.json  …
    state_dir/runs/<task>.lock

A step is done once its output stands in steps.json. A night that died is taken up by the next one
at the first step that is not there; the steps before it are read back, not repeated.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from sqlmodel import col, select

from gateway.config import Config
from gateway.ids import new_id
from gateway.storage.store import Store
from gateway.storage.tables import Run, utcnow
from retrain.errors import NightBusy, NightError

T = TypeVar("T")

#: An unfinished run older than this is not resumed: it is another night's traffic by now.
RESUME_H = 20
#: A run on another machine is taken for dead after this long.
ELSEWHERE_H = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class NightRun:
    """One open run. ``say`` gets a line of progress."""

    id: str
    task: str
    folder: Path
    store: Store
    say: Callable[[str], None]

    def step(self, name: str, kind: type[T], work: Callable[[], T]) -> T:
        """The output of the step: read back if it was done before, else ``work()``, kept.

        Outputs are frozen dataclasses of plain values; big things are files in ``folder``.
        """
        adapter = TypeAdapter(kind)
        steps = self._steps()
        if name in steps:
            self.say(f"{name}: done before")
            try:
                return adapter.validate_python(steps[name]["output"])
            except ValidationError as error:
                raise NightError(
                    f"{self.folder / 'steps.json'}: the output of {name} is not readable "
                    f"({error.error_count()} mistakes); start afresh with --fresh"
                ) from None
        self._row(step=name)
        started = time.monotonic()
        output = work()
        seconds = round(time.monotonic() - started, 3)
        kept = {"seconds": seconds, "output": adapter.dump_python(output, mode="json")}
        write_json(self.folder / "steps.json", steps | {name: kept})
        self.say(f"{name}: done in {seconds:.1f} s")
        return output

    def log(self, **numbers: Any) -> None:
        """One line of metrics.jsonl."""
        line = json.dumps({"at": utcnow().isoformat(timespec="seconds"), **numbers})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def seconds(self) -> dict[str, float]:
        """How long each finished step took."""
        return {name: float(step["seconds"]) for name, step in self._steps().items()}

    def note(self, verdict: str | None = None, **detail: Any) -> None:
        """Into the run's row in the database."""
        self._row(verdict=verdict, detail=detail)

    def _steps(self) -> dict[str, Any]:
        path = self.folder / "steps.json"
        return read_json(path) if path.exists() else {}

    def _row(
        self,
        *,
        step: str | None = None,
        state: str | None = None,
        verdict: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        with self.store.session() as session:
            row = session.get_one(Run, self.id)
            row.step = step or row.step
            row.verdict = verdict or row.verdict
            row.detail = {**row.detail, **(detail or {})}
            if state is not None:
                row.state = state
                row.ended_at = utcnow() if state != "running" else None
            session.add(row)
            session.commit()


@contextmanager
def open_run(
    config: Config,
    store: Store,
    task: str,
    *,
    kind: str = "nightly",
    resume: bool = True,
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[NightRun]:
    """A run of the task, for this process alone: the unfinished one of this night, if there is one
    with the same configuration and ``settings``, else a new one. Raises NightBusy."""
    root = config.state / "runs"
    root.mkdir(parents=True, exist_ok=True)
    frozen = {"config": config.model_dump(mode="json"), "settings": dict(settings or {})}
    with _locked(root / f"{task}.lock", task):
        _refuse_elsewhere(store, task)
        run_id = _unfinished(store, root, task, kind, frozen) if resume else None
        if run_id is None:
            run_id = _start(store, root, task, kind, frozen)
        else:
            say(f"resuming {run_id}")
        run = NightRun(id=run_id, task=task, folder=root / run_id, store=store, say=say)
        run._row(state="running", detail=_whereabouts())
        try:
            yield run
        except BaseException as error:
            run._row(state="failed", detail={"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        run._row(state="done")


def _start(store: Store, root: Path, task: str, kind: str, frozen: Mapping[str, Any]) -> str:
    run_id = new_id(task)
    folder = root / run_id
    folder.mkdir()
    write_json(folder / "config.json", frozen)
    _close_others(store, task)
    with store.session() as session:
        session.add(Run(id=run_id, task=task, kind=kind, started_at=utcnow(), detail={}))
        session.commit()
    return run_id


def _close_others(store: Store, task: str) -> None:
    """Runs that nobody will resume any more are not "running"."""
    with store.session() as session:
        for row in session.exec(select(Run).where(Run.task == task, Run.state == "running")):
            row.state, row.ended_at = "failed", utcnow()
            row.detail = {**row.detail, "error": "died, and was not resumed"}
            session.add(row)
        session.commit()


def _unfinished(
    store: Store, root: Path, task: str, kind: str, frozen: Mapping[str, Any]
) -> str | None:
    """The newest run of the task, if it did not finish and would do what a new one would."""
    with store.session() as session:
        newest = session.exec(
            select(Run).where(Run.task == task).order_by(col(Run.started_at).desc()).limit(1)
        ).first()
    if newest is None or newest.state == "done" or newest.kind != kind:
        return None
    if utcnow() - newest.started_at > timedelta(hours=RESUME_H):
        return None
    path = root / newest.id / "config.json"
    return newest.id if path.exists() and _digest(read_json(path)) == _digest(frozen) else None


def _refuse_elsewhere(store: Store, task: str) -> None:
    """The file lock proves that nobody on this machine is at work; other machines have a row."""
    with store.session() as session:
        for row in session.exec(select(Run).where(Run.task == task, Run.state == "running")):
            host = row.detail.get("host")
            age = utcnow() - row.started_at
            if host not in (None, socket.gethostname()) and age < timedelta(hours=ELSEWHERE_H):
                raise NightBusy(
                    f"a night of task {task} is running on {host} ({row.id}, "
                    f"since {row.started_at:%Y-%m-%d %H:%M} UTC)"
                )


@contextmanager
def _locked(path: Path, task: str) -> Iterator[None]:
    """Held by this process until it ends, however it ends."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "unknown"
            raise NightBusy(f"a night of task {task} is running already (process {who})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _whereabouts() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Raises NightError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NightError(f"{path}: cannot be read ({error})") from None


def write_json(path: Path, data: Any) -> None:
    """All of it or nothing, also if the machine dies."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
