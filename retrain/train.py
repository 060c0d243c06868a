"""Train a LoRA adapter on the teacher's answers, in a process of its own.

The training runs in a child (``retrain.trainer``) so that its memory comes back, its thread
settings reach nobody, and importing this module costs nothing. The job goes over in a folder, and
progress comes back as JSON lines.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import retrain
from gateway.config import Training
from retrain import leash
from retrain.errors import TrainingError
from retrain.progress import Bar
from retrain.student_log import last_error

#: what the child is asked to do, and what it is asked to learn, in the job's folder
JOB, ROWS, LOG = "job.json", "rows.jsonl", "train.log"

#: where the caller's environment does not say otherwise
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # threads that wait sleep instead of spinning: on a box that does anything else beside, as
    # ours does, spinning makes training several times slower
    "OMP_WAIT_POLICY": "PASSIVE",
    # TRL refuses several GPUs without a launcher, and these models need but one
    "CUDA_VISIBLE_DEVICES": "0",
}
#: for a base model that is a folder: nothing is looked up on a hub
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example: what the student is shown (`gateway.prompt.student_messages`) and the teacher's
    answer it should give."""

    messages: Sequence[Mapping[str, Any]]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training did.

    ``losses``: (step, mean loss per answer token in nats) for every step. ``loss_first`` and
    ``loss_last`` are means over the first and last tenth of them. ``dropped``: rows longer than
    ``max_length``. ``tokens``: those seen, all passes together. ``adapter_sha256`` is the
    weights' file's.
    """

    rows: int
    dropped: int
    steps: int
    tokens: int
    loss_first: float
    loss_last: float
    seconds: float
    adapter_sha256: str
    losses: tuple[tuple[int, float], ...] = ()


def train_adapter(
    rows: Sequence[Row],
    *,
    base_model: Path,
    out: Path,
    training: Training,
    progress: bool = True,
    label: str = "train the student",
    done: Callable[[int, float], None] | None = None,
) -> TrainReport:
    """Write an adapter for ``base_model`` into the folder ``out`` (which is replaced whole).

    The same rows, settings and machine give the same bytes. ``done`` is called with each step
    and its loss. Raises TrainingError where the rows or the model cannot be trained on; ``out``
    is then untouched.
    """
    if not rows:
        raise TrainingError("there are no rows to train on")
    if base_model.is_absolute() and not base_model.is_dir():
        raise TrainingError(f"there is no base model in {base_model}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        job = Path(folder)
        adapter = job / "adapter"
        adapter.mkdir()
        with (job / ROWS).open("w") as file:
            for row in rows:
                file.write(json.dumps({"messages": list(row.messages), "answer": row.answer}))
                file.write("\n")
        task = {
            "base_model": str(base_model),
            "out": str(adapter),
            "training": training.model_dump(mode="json"),
        }
        (job / JOB).write_text(json.dumps(task))
        settings = ENVIRONMENT | (OFFLINE if base_model.is_dir() else {})
        report = _run(job, settings | os.environ, label, progress, done)
        if out.exists():
            shutil.rmtree(out)
        adapter.replace(out)
    return report


def _run(
    job: Path,
    settings: Mapping[str, str],
    label: str,
    progress: bool,
    done: Callable[[int, float], None] | None,
) -> TrainReport:
    package = Path(retrain.__file__).parent.parent
    paths = [str(package), *filter(None, [settings.get("PYTHONPATH")])]
    environment = {**settings, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "retrain.trainer", str(job)]
    with (job / LOG).open("wb") as log:
        process = leash.start(command, env=environment, stdout=leash.PIPE, stderr=log)
    assert process.stdout is not None
    report: TrainReport | None = None
    losses: list[tuple[int, float]] = []
    bar = Bar(label, show=False)
    try:
        for line in process.stdout:
            event = json.loads(line)
            match event["event"]:
                case "start":
                    bar = Bar(label, event["rows"], show=progress).__enter__()
                case "step":
                    losses.append((event["step"], event["loss"]))
                    bar.advance(event["rows"], f"loss {event['loss']:.3f}")
                    if done is not None:
                        done(event["step"], event["loss"])
                case "failed":
                    raise TrainingError(event["message"])
                case "done":
                    report = TrainReport(**event["report"], losses=tuple(losses))
        status = process.wait()
    except BaseException as error:
        bar.__exit__(type(error), error, None)
        raise
    finally:
        leash.stop(process)
        process.stdout.close()
    bar.__exit__(None, None, None)
    if report is None:
        raise TrainingError(f"training ended with status {status}: {last_error(job / LOG)}")
    return report


def event_line(event: str, **fields: Any) -> str:
    """One line from the child to the parent."""
    return json.dumps({"event": event, **fields})


def report_fields(report: TrainReport) -> dict[str, Any]:
    """A report as the child sends it; the losses went over one by one."""
    fields = asdict(report)
    del fields["losses"]
    return fields
