"""Dataset versions: immutable, cumulative, named by the hash of what is in them.

A version holds every usable row of the task so far: all of the training side (less near-duplicates
of held-out rows) and the newest of the two held-out sides. The same rows always give the same id,
so freezing twice changes nothing. The rows themselves are written beside the run, as the student
will see them, and every later step reads those files and not the database.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import and_, or_
from sqlmodel import col, select

from gateway.config import Task
from gateway.prompt import prompt_hash, student_messages
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Dataset, DatasetRow, Exchange, State, utcnow
from retrain.curate import conversation, right_answer
from retrain.errors import NightError
from retrain.evaluate import gold_of
from retrain.splits import SALT, SPLITS, Prompted, Split, guard, split_of

#: States of rows that may be in a version.
USABLE = (State.TRAINABLE, State.HELD_OUT, State.IN_DATASET)
#: Rows of each held-out side in one version: the newest ones, which look most like tomorrow's.
MOST_HELD_OUT = 4000
#: More near-duplicates across the sides than this share of the training rows fail the run.
MOST_LEAKS = 0.1
#: A group with more than this share of the rows is no conversation, but a shared template.
LARGEST_GROUP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a version. ``messages`` is what the student sees, ``answer`` what it shall say:
    what the teacher said, or the correction of that; ``teacher`` is then what the teacher said,
    if it was asked at all. ``sampled`` rows of the held-out sides are traffic as it is."""

    id: str
    prompt: str
    messages: list[dict[str, Any]]
    answer: str
    sampled: bool
    gold: str | None = None
    corrected: bool = False
    teacher: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A frozen dataset. ``left_out``: training rows too like held-out ones; ``example``: a pair."""

    id: str
    sha256: str
    train: int
    calibration: int
    test: int
    left_out: int = 0
    example: str = ""


def freeze(
    store: Store,
    task: Task,
    folder: Path,
    *,
    max_rows: int | None = None,
    max_held_out: int = MOST_HELD_OUT,
) -> Version:
    """Freeze all usable rows of the task, and write them to ``folder`` as JSON lines.

    ``max_rows`` caps the training rows, chosen by a hash of their ids; ``max_held_out`` each of the
    other sides, to the newest. Raises LeakageError, and NightError where there is nothing to
    train on or one group swallows the traffic.
    """
    # a correction may have been withdrawn since the harvest, and with it what made a row usable
    taught = and_(col(Exchange.teacher_text).is_not(None), col(Exchange.licensed))
    answered = and_(or_(taught, col(Exchange.correction).is_not(None)), col(Exchange.consent))
    with store.session() as session:
        rows = session.exec(
            select(Exchange)
            .where(Exchange.task == task.name, col(Exchange.state).in_(USABLE), answered)
            .order_by(col(Exchange.at), col(Exchange.id))
        ).all()
    _check_groups(rows)
    prompted = [Prompted(id=r.id, group_key=r.group_key, prompt=conversation(r)) for r in rows]
    leaks = guard(prompted, max_share=MOST_LEAKS)
    leaking = {leak.train.id for leak in leaks}
    sides: dict[Split, list[Exchange]] = {split: [] for split in SPLITS}
    for row in rows:
        if row.id not in leaking:
            sides[split_of(row.group_key)].append(row)
    sides["train"] = _some(sides["train"], max_rows)
    sides["calibration"] = sides["calibration"][-max_held_out:]
    sides["test"] = sides["test"][-max_held_out:]
    if not sides["train"]:
        raise NightError(f"task {task.name} has no rows to train on")
    manifest = _manifest(task, sides)
    sha256 = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    version_id = f"{task.name}-data-{sha256[:12]}"
    for leak in leaks:
        exchanges.move(store, [leak.train.id], State.REJECTED, f"leaks into {leak.held_out.id}")
    for split, side in sides.items():
        _write(folder / f"{split}.jsonl", [_example(task, row) for row in side])
    _record(store, task.name, version_id, sha256, manifest, sides)
    return Version(
        id=version_id,
        sha256=sha256,
        train=len(sides["train"]),
        calibration=len(sides["calibration"]),
        test=len(sides["test"]),
        left_out=len(leaking),
        example=f"{leaks[0].train.id} is like {leaks[0].held_out.id}" if leaks else "",
    )


def read_examples(folder: Path, split: Split) -> list[Example]:
    """The rows of one side, as ``freeze`` wrote them."""
    path = folder / f"{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [Example(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise NightError(f"{path}: cannot be read ({error})") from None


def forget(state: Path, ids: Collection[str]) -> int:
    """Remove erased rows from every copy in the run directories and from the students' answers to
    them. Returns how many lines went. Bundles trained on them stay until the next night replaces
    them: `gateway.storage.exchanges.erase` names the datasets."""
    gone = 0
    if not ids:
        return gone
    for path in (*state.glob("runs/*/rows/*.jsonl"), *state.glob("answers/*.jsonl")):
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
        kept = [line for line in lines if _id_of(line) not in {None, *ids}]
        if len(kept) < len(lines):
            gone += len(lines) - len(kept)
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            temporary.replace(path)
    return gone


def _id_of(line: str) -> str | None:
    """None for a line that a crash cut off: nobody reads it, and it may be anybody's."""
    try:
        return str(json.loads(line)["id"])
    except ValueError:
        return None


def _check_groups(rows: Sequence[Exchange]) -> None:
    """Rows that share a long template look like one conversation and fall on one side together."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.group_key] = counts.get(row.group_key, 0) + 1
    largest = max(counts.values(), default=0)
    if largest > 20 and largest > LARGEST_GROUP * len(rows):
        raise NightError(
            f"{largest} of {len(rows)} prompts begin alike and would all be on one side of the "
            "split: cut the changing part out of the template with the task's prompt.user_regex"
        )


def _some(rows: list[Exchange], most: int | None) -> list[Exchange]:
    if most is None or len(rows) <= most:
        return rows
    chosen = {
        row.id for row in sorted(rows, key=lambda r: hashlib.sha256(r.id.encode()).digest())[:most]
    }
    return [row for row in rows if row.id in chosen]


def _manifest(task: Task, sides: dict[Split, list[Exchange]]) -> dict[str, Any]:
    """Everything that makes this version what it is, and nothing else: no times, no run."""
    digest = hashlib.sha256()
    for split, rows in sides.items():
        for row in sorted(rows, key=lambda r: r.id):
            line = json.dumps([split, row.id, row.prompt, right_answer(row), row.sampled])
            digest.update(line.encode() + b"\n")
    return {
        "format": 1,
        "task": task.name,
        "prompt_hash": prompt_hash(task.prompt),
        "salt": SALT.decode(),
        "rows": {split: len(rows) for split, rows in sides.items()},
        "rows_sha256": digest.hexdigest(),
    }


def _example(task: Task, row: Exchange) -> Example:
    return Example(
        id=row.id,
        prompt=row.prompt,
        messages=student_messages(task.prompt, row.body["messages"]),
        answer=right_answer(row) or "",
        sampled=row.sampled,
        gold=gold_of(row.body) if row.correction is None else row.correction,
        corrected=row.correction is not None,
        teacher=None if row.correction is None else row.teacher_text,
    )


def _write(path: Path, examples: Iterable[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")


def _record(
    store: Store,
    task: str,
    version_id: str,
    sha256: str,
    manifest: dict[str, Any],
    sides: dict[Split, list[Exchange]],
) -> None:
    """The version, its members and their state, in one transaction."""
    new = [r.id for rows in sides.values() for r in rows if r.state != State.IN_DATASET]
    with store.transaction() as session:
        if session.get(Dataset, version_id) is None:
            session.add(
                Dataset(id=version_id, task=task, at=utcnow(), sha256=sha256, manifest=manifest)
            )
            session.flush()
            session.add_all(
                DatasetRow(dataset_id=version_id, exchange_id=row.id, split=split)
                for split, rows in sides.items()
                for row in rows
            )
        exchanges.move_in(session, new, State.IN_DATASET, version_id)
