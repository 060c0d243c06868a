"""People's answers put into the queue as corrections, as feedback does."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.config import Task
from gateway.lane import Lane
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, State
from gateway.surfaces.corrections import correct
from router.decision import Answer
from router.output import check

#: Rows changed in one transaction.
CHUNK = 500


@dataclass(slots=True)
class Annotated:
    """``confirmed``: what the teacher had said. ``invalid``: ids whose answers break the task's
    output rules; they are not taken."""

    corrected: int = 0
    confirmed: int = 0
    unknown: int = 0
    invalid: list[str] = field(default_factory=list)


def annotate(store: Store, task: Task, answers: Mapping[str, str]) -> Annotated:
    """Take answers by row id. Raises StoreError."""
    lane = Lane(task)
    done = Annotated()
    ids = list(answers)
    for start in range(0, len(ids), CHUNK):
        with store.transaction() as session:
            for row_id in ids[start : start + CHUNK]:
                row = session.get(Exchange, row_id, with_for_update=True)
                if row is None or row.task != task.name or row.state == State.ERASED:
                    done.unknown += 1
                elif check(lane.spec, Answer(text=answers[row_id])) is not None:
                    done.invalid.append(row_id)
                elif answers[row_id] == (row.teacher_text or "").strip():
                    done.confirmed += 1
                    correct(session, row, answers[row_id], lane)
                else:
                    done.corrected += 1
                    correct(session, row, answers[row_id], lane)
    return done
