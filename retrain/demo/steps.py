"""What the demo does between its headings: replay, read back, run a night, wait, tell."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.config import Config
from gateway.errors import RetortError
from gateway.lane import output_spec
from gateway.storage.store import Store
from gateway.storage.tables import utcnow
from retrain.demo.gateway_process import GatewayProcess
from retrain.demo.options import Options
from retrain.demo.readback import read_back
from retrain.demo.replay import Outcome, replay
from retrain.demo.scenario import Case
from retrain.demo.screen import Screen
from retrain.demo.table import Played
from retrain.demo.teacher import Classroom
from retrain.progress import Bar
from retrain.student_env import ensure_student_env
from retrain.student_model import ensure_identity_adapter, ensure_model
from retrain.student_server import StudentServer
from router.decision import Route

#: More failed requests than this share and the numbers would mean nothing.
MOST_FAILURES = 0.02


class Student(Protocol):
    """What the demo needs of a student server."""

    @property
    def base_url(self) -> str: ...
    def check(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...


#: Makes the student server, not started yet, and says where the base model is.
Prepare = Callable[[Options, Path], tuple[Student, Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What every step needs. ``model`` is the base model's folder, ``folder`` the run's own."""

    options: Options
    screen: Screen
    folder: Path
    room: Classroom
    model: Path
    store: Store


def new_folder(home: Path) -> Path:
    """A fresh folder for a run."""
    stem = f"{utcnow():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = home / "demo" / f"{stem}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RetortError(f"--home: cannot write to {home} ({error.strerror})") from None
        return folder
    raise RetortError(f"--home: {home / 'demo'} is full of runs of this second")


def prepare_student(options: Options, folder: Path) -> tuple[Student, Path]:
    """The real one, after installing and converting what is not there. Raises StudentError."""
    python = ensure_student_env(options.home)
    model = ensure_model(options.home)
    server = StudentServer(
        python,
        model,
        identity=ensure_identity_adapter(options.home, model),
        log=folder / "student.log",
    )
    return server, model


def play(
    stage: Stage, config: Config, base_url: str, cases: Sequence[Case], label: str
) -> list[Played]:
    """Send the cases through the gateway at ``base_url`` and read back what became of them.

    Raises RetortError where too many requests failed, or a fallback is not in the queue.
    """
    plan, task = stage.options.plan, config.task()
    concurrency = plan.collect_concurrency if task.mode == "collect" else plan.concurrency
    outcomes = _send(
        stage, base_url, cases, label, concurrency=concurrency, stream_share=plan.stream_share
    )
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(failed) > MOST_FAILURES * len(outcomes):
        raise RetortError(
            f"{len(failed)} of {len(outcomes)} requests failed, the first with: {failed[0].error}"
        )
    teachers = stage.room.scenario.answers()
    if stage.room.live:
        # what a live teacher says to the student's requests too, only to measure agreement
        served = [outcome.case for outcome in outcomes if outcome.route == Route.STUDENT]
        url = stage.room.section.base_url
        asked = _send(stage, url, served, "measure", concurrency=8, stream_share=0.0)
        teachers |= {item.case.key: item.answer for item in asked if item.error is None}
    return read_back(
        stage.store,
        outcomes,
        teachers=teachers,
        spec=output_spec(task.output),
    )


def _send(
    stage: Stage,
    base_url: str,
    cases: Sequence[Case],
    label: str,
    *,
    concurrency: int,
    stream_share: float,
) -> list[Outcome]:
    routes: Counter[str] = Counter()
    with Bar(label, len(cases)) as bar:

        def done(outcome: Outcome) -> None:
            routes["failed" if outcome.error else outcome.route] += 1
            bar.advance(1, ", ".join(f"{route} {n}" for route, n in sorted(routes.items())))

        return replay(
            cases,
            base_url=base_url,
            api_key=stage.room.api_key,
            model=stage.room.model,
            concurrency=concurrency,
            stream_share=stream_share,
            seed=stage.options.seed,
            done=done,
        )


def stay_up(gateway: GatewayProcess, student: Student) -> None:
    """Until Ctrl-C. Raises RetortError if a server ends by itself."""
    while True:
        time.sleep(0.5)
        student.check()
        if not gateway.alive():
            raise RetortError("the gateway ended; its log says why")
