"""The training itself. Run by `retrain.train` in a process of its own, as `python -m
retrain.trainer JOB_FOLDER`; its events go to standard output, one JSON object a line."""

import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gateway.config import Training
from gateway.errors import RetortError
from retrain.adapter_files import WEIGHTS, weights_sha256, write_config
from retrain.errors import TrainingError
from retrain.examples import Example, encode, plan
from retrain.train import JOB, ROWS, Row, TrainReport, event_line, report_fields

#: share of the steps whose mean is called the first and the last loss
TENTH = 0.1


def train(
    rows: Sequence[Row],
    *,
    base_model: Path,
    out: Path,
    training: Training,
    started: Callable[[int], None] = lambda rows: None,
    step: Callable[[int, int, float], None] = lambda step, rows, loss: None,
) -> TrainReport:
    """Train in this process, into the existing folder ``out``. Raises TrainingError.

    ``started`` gets the number of rows to come, all passes together; ``step`` a step's number,
    its rows and its loss.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    begun = time.monotonic()
    losses: list[tuple[int, float]] = []

    def on_step(number: int, loss: float) -> None:
        losses.append((number, loss))
        step(number, len(batches[number - 1]), loss)

    try:
        tokenizer = AutoTokenizer.from_pretrained(base_model)
    except (OSError, ValueError) as error:
        raise TrainingError(f"no tokenizer in {base_model}: {_first_line(error)}") from None
    examples = encode(rows, tokenizer, training.max_length)
    # only now, as it takes seconds to import: rows that cannot be used are known without it
    from retrain.distiller import Distiller, attention, dtype

    lengths = [len(example.ids) for example in examples]
    batches = plan(
        lengths, batch_size=training.batch_size, epochs=training.epochs, seed=training.seed
    )
    scratch = out / ".trainer"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base_model, dtype=dtype(), attn_implementation=attention(max(lengths))
        )
        trainer = Distiller(
            model=model,
            tokenizer=tokenizer,
            examples=examples,
            batches=batches,
            training=training,
            folder=scratch,
            step=on_step,
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base_model} cannot be trained: {_first_line(error)}") from None
    started(sum(map(len, batches)))
    trainer.train()
    trainer.model.save_pretrained(scratch)
    shutil.move(scratch / WEIGHTS, out / WEIGHTS)
    shutil.rmtree(scratch)
    write_config(
        out,
        # a folder's place on this machine means nothing on another
        base_model=base_model.name if base_model.is_dir() else str(base_model),
        rank=training.rank,
        alpha=training.alpha,
        target_modules=training.target_modules,
    )
    return _report(rows, examples, batches, losses, time.monotonic() - begun, out)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _report(
    rows: Sequence[Row],
    examples: Sequence[Example],
    batches: Sequence[Sequence[int]],
    losses: Sequence[tuple[int, float]],
    seconds: float,
    out: Path,
) -> TrainReport:
    few = max(1, round(TENTH * len(losses)))
    values = [loss for _, loss in losses]
    return TrainReport(
        rows=len(examples),
        dropped=len(rows) - len(examples),
        steps=len(batches),
        tokens=sum(len(examples[index].ids) for batch in batches for index in batch),
        loss_first=sum(values[:few]) / few,
        loss_last=sum(values[-few:]) / few,
        seconds=seconds,
        adapter_sha256=weights_sha256(out),
        losses=tuple(losses),
    )


def _rows(path: Path) -> Iterator[Row]:
    with path.open() as file:
        for line in file:
            yield Row(**json.loads(line))


def main(folder: Path) -> int:
    """Do the job in ``folder``. What goes wrong is an event too, in one line."""
    with os.fdopen(os.dup(1), "w", buffering=1) as events:
        os.dup2(2, 1)  # whatever a library prints belongs to the log
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        job: dict[str, Any] = json.loads((folder / JOB).read_text())
        try:
            report = train(
                list(_rows(folder / ROWS)),
                base_model=Path(job["base_model"]),
                out=Path(job["out"]),
                training=Training.model_validate(job["training"]),
                started=lambda rows: print(event_line("start", rows=rows), file=events),
                step=lambda step, rows, loss: print(
                    event_line("step", step=step, rows=rows, loss=loss), file=events
                ),
            )
        except RetortError as error:
            print(event_line("failed", message=str(error)), file=events)
            return 1
        print(event_line("done", report=report_fields(report)), file=events)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
