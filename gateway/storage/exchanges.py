"""The retraining queue: keys of a row, claims with a lease, states, counts, export, erasure."""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, func, or_, update
from sqlmodel import Session, col, select

from gateway.errors import StoreError
from gateway.storage import pending, response_store
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import (
    Bundle,
    BundleEvent,
    DatasetRow,
    Exchange,
    ExchangeEvent,
    Feedback,
    PendingAudit,
    State,
    StoredCompletion,
    utcnow,
)

#: ids in one SQL statement
CHUNK = 500
#: where applications put the id of their user in a request's metadata
SUBJECT = ("user", "user_id", "end_user", "customer_id")
#: where they put the id of a conversation
CONVERSATION = ("conversation_id", "conversation", "thread_id", "session_id", "chat_id")


def dedupe_key(task: str, body: bytes) -> str:
    """The same request of the same task, sent again, has the same key."""
    return hashlib.sha256(task.encode() + b"\0" + body).hexdigest()


def group_key(prompt: str, body: Mapping[str, Any] | None = None) -> str:
    """What may never be split: a conversation, or prompts that differ only in case, digits,
    punctuation, spacing or Unicode form.

    With ``body``, a conversation is known by an id in the request's metadata, else by its first
    user message. `user` is no such id: it names a person, or the whole application, and would tie
    all of its traffic to one side of the split.
    """
    if body is not None:
        metadata = body.get("metadata")
        if isinstance(metadata, Mapping):
            for name in CONVERSATION:
                if isinstance(value := metadata.get(name), str) and value:
                    return _hash("conversation\0" + value)
        if (opening := _opening(body.get("messages"))) is not None:
            prompt = opening
    text = unicodedata.normalize("NFKC", prompt).casefold()
    text = re.sub(r"[\W_]+", " ", re.sub(r"\d+", "0", text)).strip()
    return _hash("text\0" + (text or prompt))


def _opening(messages: Any) -> str | None:
    """The first user message of a conversation that already has an answer in it."""
    if not isinstance(messages, list):
        return None
    turns = [message for message in messages if isinstance(message, Mapping)]
    if not any(turn.get("role") == "assistant" for turn in turns):
        return None
    for turn in turns:
        if turn.get("role") == "user":
            content = turn.get("content")
            return content if isinstance(content, str) else None
    return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def subject(body: Mapping[str, Any]) -> str:
    """What is kept of the end user's id: enough to find the rows when that user asks for erasure,
    also after redaction. Empty where the request names nobody."""
    metadata = body.get("metadata")
    named = metadata if isinstance(metadata, Mapping) else {}
    for value in (body.get("safety_identifier"), body.get("user"), *map(named.get, SUBJECT)):
        if isinstance(value, str) and value:
            return subject_of(value)
    return ""


def subject_of(user: str) -> str:
    return _hash("user\0" + user)


def of_user(store: Store, user: str) -> list[str]:
    """Ids of the rows of an end user's requests, and of stored completions and promised audits
    without one."""
    rows = select(Exchange.id).where(Exchange.subject == subject_of(user))
    body, labels = col(StoredCompletion.body), col(StoredCompletion.labels)
    named = (body[name].as_string() for name in ("user", "safety_identifier"))
    tagged = (labels[name].as_string() for name in SUBJECT)
    kept = select(StoredCompletion.id).where(or_(*(each == user for each in (*named, *tagged))))
    promised = select(PendingAudit.id).where(PendingAudit.subject == subject_of(user))
    with store.session() as session:
        return [*session.exec(rows), *session.exec(kept), *session.exec(promised)]


def known(store: Store, keys: Sequence[str]) -> set[str]:
    """Which of these dedupe keys are in the queue, erased ones included."""
    found: set[str] = set()
    with store.session() as session:
        for chunk in _chunks(keys):
            statement = select(Exchange.dedupe_key).where(col(Exchange.dedupe_key).in_(chunk))
            found.update(session.exec(statement))
    return found


def claim(
    store: Store,
    task: str,
    states: Collection[str],
    limit: int,
    owner: str,
    lease_s: float,
) -> list[Exchange]:
    """Take up to ``limit`` of the oldest rows in ``states`` for ``owner``. Nobody else gets them
    before the lease ends, `release` or `move`. Rows of one claim are detached: change them by id.
    """
    now = utcnow()
    with store.transaction() as session:
        statement = (
            select(Exchange)
            .where(
                Exchange.task == task,
                col(Exchange.state).in_(list(states)),
                or_(col(Exchange.lease_until).is_(None), col(Exchange.lease_until) < now),
            )
            .order_by(col(Exchange.at), col(Exchange.id))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = list(session.exec(statement))
        for row in rows:
            row.lease_owner = owner
            row.lease_until = now + timedelta(seconds=lease_s)
            row.attempts += 1
    return rows


def release(store: Store, ids: Iterable[str], owner: str) -> int:
    """Give claimed rows back unchanged; returns how many were still ``owner``'s."""
    count = 0
    with store.transaction() as session:
        for row in _locked(session, ids, col(Exchange.lease_owner) == owner):
            row.lease_owner = row.lease_until = None
            count += 1
    return count


def move(
    store: Store, ids: Iterable[str], state: State, detail: str = "", owner: str | None = None
) -> int:
    """Put rows into ``state``, end their lease and write the event; returns how many moved.

    With ``owner``, only rows that are still its own: a lease may have ended meanwhile. Rows
    already there stay as they are, and an erased row stays erased.
    """
    with store.transaction() as session:
        return move_in(session, ids, state, detail, owner)


def move_in(
    session: Session, ids: Iterable[str], state: State, detail: str = "", owner: str | None = None
) -> int:
    """`move` within a transaction of the caller's."""
    count = 0
    keep: list[ColumnElement[bool]] = [col(Exchange.state).not_in([state, State.ERASED])]
    if owner is not None:
        keep.append(col(Exchange.lease_owner) == owner)
    for row in _locked(session, ids, *keep):
        row.state = state
        row.lease_owner = row.lease_until = None
        session.add(ExchangeEvent(exchange_id=row.id, at=utcnow(), state=state, detail=detail))
        count += 1
    return count


def counts(store: Store, task: str) -> dict[State, int]:
    """Rows in every state, those with none included."""
    statement = (
        select(Exchange.state, func.count()).where(Exchange.task == task).group_by(Exchange.state)
    )
    with store.session() as session:
        found: dict[str, int] = dict(session.exec(statement).all())
    return {state: found.get(state, 0) for state in State}


def erased(store: Store, task: str) -> set[str]:
    """Ids of the rows whose text is gone."""
    statement = select(Exchange.id).where(Exchange.task == task, Exchange.state == State.ERASED)
    with store.session() as session:
        return set(session.exec(statement))


def oldest(store: Store, task: str) -> datetime | None:
    """When the oldest row came that no night has looked at yet; None where there is none."""
    statement = select(func.min(Exchange.at)).where(
        Exchange.task == task, Exchange.state == State.CAPTURED
    )
    with store.session() as session:
        return session.exec(statement).one()


def find(
    store: Store,
    task: str,
    *,
    states: Collection[str] = (),
    reason: str | None = None,
    text: str | None = None,
    limit: int = 50,
) -> list[Exchange]:
    """The newest rows that match; ``text`` is looked for in prompt and answers, case ignored."""
    statement = select(Exchange).where(Exchange.task == task)
    if states:
        statement = statement.where(col(Exchange.state).in_(list(states)))
    if reason is not None:
        statement = statement.where(Exchange.reason == reason)
    if text is not None:
        columns = (Exchange.prompt, Exchange.teacher_text, Exchange.student_text)
        statement = statement.where(
            or_(*(col(column).icontains(text, autoescape=True) for column in columns))
        )
    statement = statement.order_by(col(Exchange.at).desc(), col(Exchange.id).desc()).limit(limit)
    with store.session() as session:
        return list(session.exec(statement))


def show(store: Store, exchange_id: str) -> tuple[Exchange, list[ExchangeEvent]]:
    """One row with its history, oldest first. Raises StoreError where there is none."""
    with store.session() as session:
        row = session.get(Exchange, exchange_id)
        if row is None:
            raise StoreError(f"no exchange {exchange_id!r}")
        events = select(ExchangeEvent).where(ExchangeEvent.exchange_id == exchange_id)
        return row, list(session.exec(events.order_by(col(ExchangeEvent.id))))


def answered(store: Store, task: str, states: Collection[str] = ()) -> Iterator[Exchange]:
    """Rows that have a teacher's answer, or a correction in its place, oldest first."""
    known = or_(col(Exchange.teacher_text).is_not(None), col(Exchange.correction).is_not(None))
    statement = (
        select(Exchange)
        .where(Exchange.task == task, known)
        .order_by(col(Exchange.at), col(Exchange.id))
        .execution_options(yield_per=CHUNK)
    )
    if states:
        statement = statement.where(col(Exchange.state).in_(list(states)))
    with store.session() as session:
        yield from session.exec(statement)


def requeue(store: Store, task: str, ids: Sequence[str] = (), reason: str | None = None) -> int:
    """Give rejected rows (``ids``: these; ``reason``: those rejected for it; neither: all) another
    judgement by the next night; returns how many."""
    statement = select(Exchange.id).where(Exchange.task == task, Exchange.state == State.REJECTED)
    if ids:
        statement = statement.where(col(Exchange.id).in_(ids))
    with store.session() as session:
        rejected = list(session.exec(statement))
        if reason is not None:
            last = (
                select(func.max(ExchangeEvent.id))
                .where(ExchangeEvent.state == State.REJECTED)
                .group_by(col(ExchangeEvent.exchange_id))
            )
            why = select(ExchangeEvent.exchange_id).where(
                col(ExchangeEvent.id).in_(last), ExchangeEvent.detail == reason
            )
            for_it = set(session.exec(why))
            rejected = [one for one in rejected if one in for_it]
    return move(store, rejected, State.CAPTURED, "requeued")


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    rows: int
    datasets: tuple[str, ...]
    """Dataset versions that hold a copy of an erased row, and must not be trained on again."""
    bundles: tuple[str, ...] = ()
    """Bundles made with those datasets, now marked tainted."""
    completions: int = 0
    """Stored completions of the same requests."""


def erase(store: Store, ids: Sequence[str], detail: str = "") -> Erasure:
    """Remove the text of rows, whatever could be matched against that text, and the responses
    kept of those conversations.

    In a SQLite file it is overwritten at once; PostgreSQL does so when it vacuums the table.
    """
    with store.transaction() as session:
        completions = _erase_completions(session, ids)
        erasure = erase_in(session, ids, detail)
    overwrite(store)
    return replace(erasure, completions=completions)


def erase_in(session: Session, ids: Sequence[str], detail: str = "") -> Erasure:
    """The rows and what feedback said of them, within a transaction of the caller's; `overwrite`
    is to follow it."""
    count = 0
    datasets: set[str] = set()
    for chunk in _chunks(ids):
        response_store.erase_requests(session, chunk)
        pending.erase(session, chunk)
    for row in _locked(session, ids, Exchange.state != State.ERASED):
        row.prompt, row.body = "", {}
        row.teacher_text = row.student_text = row.correction = row.signals = None
        row.dedupe_key, row.group_key = f"erased:{row.id}", ""
        row.state = State.ERASED
        row.lease_owner = row.lease_until = None
        session.add(
            ExchangeEvent(exchange_id=row.id, at=utcnow(), state=State.ERASED, detail=detail)
        )
        count += 1
    for chunk in _chunks(ids):
        holders = select(DatasetRow.dataset_id).where(col(DatasetRow.exchange_id).in_(chunk))
        datasets.update(session.exec(holders.distinct()))
        said = or_(col(Feedback.id).in_(chunk), col(Feedback.exchange_id).in_(chunk))
        session.execute(update(Feedback).where(said).values(correction=None, comment=None))
    return Erasure(
        rows=count, datasets=tuple(sorted(datasets)), bundles=tuple(_taint(session, datasets))
    )


def _taint(session: Session, datasets: Collection[str]) -> list[str]:
    """Mark the bundles made with these datasets; their ids, those that were marked before too."""
    made = select(Bundle).where(col(Bundle.dataset_id).in_(datasets)).order_by(col(Bundle.id))
    bundles = session.exec(made.with_for_update()).all() if datasets else []
    for bundle in bundles:
        if bundle.tainted:
            continue
        bundle.tainted = True
        detail = f"rows of {bundle.dataset_id} were erased"
        session.add(
            BundleEvent(
                bundle_id=bundle.id,
                task=bundle.task,
                at=utcnow(),
                event="tainted",
                detail=detail,
            )
        )
    return [bundle.id for bundle in bundles]


def _erase_completions(session: Session, ids: Sequence[str]) -> int:
    """Stored completions of the same requests, repeats included."""
    count = 0
    for chunk in _chunks(ids):
        keys = select(Exchange.dedupe_key).where(col(Exchange.id).in_(chunk))
        same = or_(col(StoredCompletion.id).in_(chunk), col(StoredCompletion.dedupe_key).in_(keys))
        kept = select(StoredCompletion).where(same, col(StoredCompletion.deleted).is_(False))
        for row in session.exec(kept.with_for_update()).all():
            blank(row)
            count += 1
    return count


def blank(row: StoredCompletion) -> None:
    """Leave the id alone: it stays taken, and cursors stay valid."""
    row.body, row.answer, row.labels = {}, {}, {}
    row.dedupe_key, row.deleted = f"erased:{row.id}", True


def overwrite(store: Store) -> None:
    """In a SQLite file, have erased text overwritten now."""
    if store.engine.dialect.name == "sqlite":
        with refused_in_one_line(store.engine), store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _locked(
    session: Session, ids: Iterable[str], *conditions: ColumnElement[bool] | bool
) -> Iterator[Exchange]:
    """The rows of ``ids`` that meet ``conditions``, safe from other writers until the commit."""
    for chunk in _chunks(ids):
        statement = select(Exchange).where(col(Exchange.id).in_(chunk), *conditions)
        yield from session.exec(statement.order_by(col(Exchange.id)).with_for_update()).all()


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
