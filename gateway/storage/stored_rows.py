"""The rows of stored completions: found, relabelled, deleted, each by its owner alone."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, func, or_
from sqlmodel import Session, col, select

from gateway.errors import NotFound, StoreAway, StoreError
from gateway.storage import exchanges
from gateway.storage.database import refused_in_one_line
from gateway.storage.rows import storable
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, StoredCompletion

logger = logging.getLogger(__name__)


@contextmanager
def asking(store: Store) -> Iterator[None]:
    """Raises StoreAway where the database cannot be asked."""
    try:
        with refused_in_one_line(store.engine):
            yield
    except StoreError as error:
        logger.error("database away", extra={"error": str(error)})
        raise StoreAway("The database is away: try again.") from None


def find(store: Store, caller: str, completion_id: str) -> StoredCompletion | None:
    """None where the id is none of ours. Raises NotFound where it is another caller's, or
    deleted, StoreAway."""
    with asking(store), store.session() as session:
        row = own(session, caller, completion_id)
        if row is not None and not row.deleted:
            return row
        anybodys = select(StoredCompletion.id).where(
            StoredCompletion.completion_id == completion_id
        )
        if session.exec(anybodys.limit(1)).first() is None:
            return None
    raise NotFound(f"No chat completion with the id '{completion_id}'.", param="completion_id")


def own(session: Session, caller: str, completion_id: str) -> StoredCompletion | None:
    """The newest of that id: nothing keeps an upstream from giving one twice."""
    statement = (
        select(StoredCompletion)
        .where(*_named(caller, completion_id))
        .order_by(col(StoredCompletion.deleted), col(StoredCompletion.id).desc())
    )
    return session.exec(statement.limit(1)).first()


def place(session: Session, caller: str, completion_id: str, *, newest_first: bool) -> str | None:
    """The row id a list goes on after; None where the caller has no such completion. Deleted ones
    are places too."""
    # of several with one id the last in that direction, or a list would never end
    last = func.min if newest_first else func.max
    statement = select(last(StoredCompletion.id)).where(*_named(caller, completion_id))
    return session.exec(statement).one()


def _named(caller: str, completion_id: str) -> tuple[bool, bool]:
    return (
        StoredCompletion.completion_id == storable(completion_id),
        StoredCompletion.caller == caller,
    )


def relabel(store: Store, row: StoredCompletion, labels: dict[str, str]) -> StoredCompletion:
    """Replace its metadata."""
    with asking(store), store.transaction() as session:
        (newest, *_) = _locked(session, row)
        newest.labels = labels
    return newest


def delete(store: Store, row: StoredCompletion) -> None:
    """Erase it here and in the queue. Rows of other callers that asked the same stay theirs."""
    datasets: tuple[str, ...] = ()
    with asking(store), store.transaction() as session:
        for kept in _locked(session, row):
            ids = list(session.exec(select(Exchange.id).where(_same_request(kept))))
            if not ids:
                # or an audit still under way would bring the text back
                session.add(_placeholder(kept))
            erasure = exchanges.erase_in(session, ids or [kept.id], "stored completion deleted")
            datasets += erasure.datasets
            exchanges.blank(kept)
    with asking(store):
        exchanges.overwrite(store)
    if datasets:
        logger.warning("an erased row is in datasets", extra={"datasets": sorted(set(datasets))})


def _same_request(row: StoredCompletion) -> ColumnElement[bool]:
    same = (col(Exchange.dedupe_key) == row.dedupe_key) & (col(Exchange.caller) == row.caller)
    return or_(col(Exchange.id) == row.id, same)


def _placeholder(row: StoredCompletion) -> Exchange:
    return Exchange(
        id=row.id,
        dedupe_key=f"erased:{row.id}",
        at=row.at,
        task=row.task,
        group_key="",
        prompt="",
        body={},
        route=row.route,
        reason=row.reason,
        caller=row.caller,
    )


def _locked(session: Session, row: StoredCompletion) -> list[StoredCompletion]:
    """Every row of that id, newest first."""
    statement = (
        select(StoredCompletion)
        .where(*_named(row.caller, row.completion_id), col(StoredCompletion.deleted).is_(False))
        .order_by(col(StoredCompletion.id).desc())
    )
    kept = list(session.exec(statement.with_for_update()))
    if not kept:
        raise NotFound(f"No chat completion with the id '{row.completion_id}'.")
    return kept
