"""A sample of the teacher's answers, looked at by people: how often it is wrong, with an interval.

A student inherits its teacher's mistakes, and no comparison with the teacher will show them. The
sample is stratified: the same share of every answer given (labels) or every reason (else), chosen
by a hash of the row's id, so that asking twice gives the same rows and nobody picks them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import ColumnElement
from sqlmodel import col, func, select

from gateway.config import Task
from gateway.lane import Lane, output_spec
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, ExchangeEvent, State, utcnow
from gateway.surfaces.corrections import correct
from router.decision import Answer
from router.output import check, disagreement, label_of
from router.threshold import interval

#: What the event of a reviewed row says.
RIGHT, WRONG = "reviewed: right", "reviewed: wrong"
#: Strata of more different answers than this are none.
MOST_STRATA = 200
USABLE = (State.CAPTURED, State.TRAINABLE, State.HELD_OUT, State.IN_DATASET)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelError:
    """``wrong`` of ``n`` reviewed answers of the teacher; the 95 % Clopper–Pearson interval of
    how often it is wrong. Of ``rows`` that could be reviewed."""

    n: int
    wrong: int
    low: float
    high: float
    rows: int


@dataclass(slots=True)
class Reviewed:
    """``invalid``: ids whose new answers break the task's output rules; they are not taken."""

    right: int = 0
    wrong: int = 0
    unknown: int = 0
    invalid: tuple[str, ...] = ()


def sample(store: Store, task: Task, share: float) -> list[Exchange]:
    """Rows to be looked at next: of every stratum so many that ``share`` of it has been seen."""
    strata: dict[str, list[Exchange]] = defaultdict(list)
    spec = output_spec(task.output)
    seen = _verdicts(store, task.name)
    rows = _rows(store, task.name)
    labels = {row.id: label_of(spec, row.teacher_text or "") for row in rows}
    by_label = spec.kind != "text" and len(set(labels.values())) <= MOST_STRATA
    for row in rows:
        strata[str(labels[row.id]) if by_label else row.reason].append(row)
    chosen: list[Exchange] = []
    for stratum in strata.values():
        stratum.sort(key=lambda row: sha256(b"review:" + row.id.encode()).digest())
        chosen += stratum[: math.ceil(share * len(stratum))]
    return sorted((row for row in chosen if row.id not in seen), key=lambda row: row.id)


def label_error(store: Store, task: str) -> LabelError:
    """From all reviews so far; of a row reviewed twice the last counts."""
    verdicts = _verdicts(store, task)
    wrong = sum(verdict == WRONG for verdict in verdicts.values())
    low, high = interval(wrong, len(verdicts), 0.05)
    with store.session() as session:
        count = select(func.count()).select_from(Exchange).where(*_reviewable(task))
        rows = session.exec(count).one()
    return LabelError(n=len(verdicts), wrong=wrong, low=low, high=high, rows=int(rows))


def take(store: Store, task: Task, answers: Mapping[str, str]) -> Reviewed:
    """What people say the right answers are, by row id. Where one differs from the teacher's it
    becomes the row's correction. Raises StoreError."""
    lane, done, invalid = Lane(task), Reviewed(), []
    for row_id, answer in answers.items():
        with store.transaction() as session:
            row = session.get(Exchange, row_id, with_for_update=True)
            if row is None or row.task != task.name or row.state == State.ERASED:
                done.unknown += 1
                continue
            if check(lane.spec, Answer(text=answer)) is not None:
                invalid.append(row_id)
                continue
            right = disagreement(lane.spec, answer, row.teacher_text or "") == 0.0
            if not right or row.correction is not None:
                correct(session, row, answer, lane)
            detail = RIGHT if right else WRONG
            event = ExchangeEvent(exchange_id=row.id, at=utcnow(), state=row.state, detail=detail)
            session.add(event)
            done.right += right
            done.wrong += not right
    done.invalid = tuple(invalid)
    return done


def ask(
    rows: Sequence[Exchange], read: Callable[[str], str], say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Row by row on a terminal: the right answer, as a person gives it. Ends at q or at the end of
    the input."""
    say("enter: the teacher is right; s: skip; q: stop; anything else: the right answer")
    for at, row in enumerate(rows, 1):
        say(f"\n[{at}/{len(rows)}] {row.id}  {row.reason}\n{row.prompt}")
        say(f"  teacher: {row.teacher_text}")
        if row.student_text is not None:
            say(f"  student: {row.student_text}")
        try:
            given = read("> ").strip()
        except EOFError:
            return
        if given == "q":
            return
        if given != "s":
            yield row.id, given or row.teacher_text or ""


def _rows(store: Store, task: str) -> list[Exchange]:
    with store.session() as session:
        return list(session.exec(select(Exchange).where(*_reviewable(task))))


def _reviewable(task: str) -> tuple[ColumnElement[bool] | bool, ...]:
    answered = col(Exchange.teacher_text).is_not(None)
    return Exchange.task == task, col(Exchange.state).in_(USABLE), answered


def _verdicts(store: Store, task: str) -> dict[str, str]:
    """The last review of every row that has one."""
    statement = (
        select(ExchangeEvent.exchange_id, ExchangeEvent.detail)
        .join(Exchange, col(Exchange.id) == col(ExchangeEvent.exchange_id))
        .where(Exchange.task == task, col(ExchangeEvent.detail).in_([RIGHT, WRONG]))
        .order_by(col(ExchangeEvent.id))
    )
    with store.session() as session:
        return dict(session.exec(statement).all())
