"""The table of promised audits: who holds which, and which are to be taken over.

A gateway holds the audits it promised by a lease that it renews. When it dies, the lease ends and
another takes the audit over; the ledger's key (one row per audit) makes twice the same as once.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from datetime import datetime, timedelta

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from gateway.storage.database import refused_in_one_line
from gateway.storage.promise import Promise
from gateway.storage.store import Store
from gateway.storage.tables import PendingAudit, Request, utcnow

#: ids in one statement
CHUNK = 500
#: audits taken over at a time
MOST = 100
_COLUMNS = frozenset(PendingAudit.metadata.tables["pending_audit"].columns.keys())


def audit_id(request_id: str) -> str:
    """Of the audit's row in the ledger."""
    return f"{request_id}-audit"


def renew(store: Store, owner: str, ids: Iterable[str], lease_s: float) -> None:
    """Hold on to them. Raises StoreError."""
    until = utcnow() + timedelta(seconds=lease_s)
    held = list(ids)
    if not held:
        return
    with store.transaction() as session:
        for chunk in _chunks(held):
            mine = (col(PendingAudit.id).in_(chunk), col(PendingAudit.lease_owner) == owner)
            session.execute(update(PendingAudit).where(*mine).values(lease_until=until))


def finish(store: Store, ids: Iterable[str]) -> None:
    """They are in the ledger: forget them and their text. Raises StoreError."""
    done = list(ids)
    if not done:
        return
    with store.transaction() as session:
        for chunk in _chunks(done):
            session.execute(delete(PendingAudit).where(col(PendingAudit.id).in_(chunk)))


def release(store: Store, owner: str) -> None:
    """Let others have them at once: this gateway stops. Raises StoreError."""
    now = utcnow()
    with store.transaction() as session:
        held = col(PendingAudit.lease_owner) == owner
        session.execute(update(PendingAudit).where(held).values(lease_until=now))


def claim(store: Store, owner: str, tasks: Collection[str], lease_s: float) -> list[Promise]:
    """Those whose gateway has not been heard of, oldest first, leased to ``owner``: of ``tasks``,
    and whatever has expired. Raises StoreError."""
    now = utcnow()
    free = col(PendingAudit.lease_until) < now
    ours = col(PendingAudit.task).in_(list(tasks)) | (col(PendingAudit.expires) < now)
    statement = select(PendingAudit).where(free, ours).order_by(col(PendingAudit.id)).limit(MOST)
    with refused_in_one_line(store.engine), store.session() as session:
        if session.exec(statement.limit(1)).first() is None:
            return []
    with store.transaction() as session:
        rows = list(session.exec(statement.with_for_update(skip_locked=True)))
        made = _made(session, [row.id for row in rows])
        taken = []
        for row in rows:
            if row.id in made:
                session.delete(row)
                continue
            row.lease_owner, row.lease_until = owner, now + timedelta(seconds=lease_s)
            row.attempts += 1
            taken.append(_promise(row))
    return taken


def erased(store: Store, row_id: str) -> bool:
    """Whether its text was to be forgotten. Raises StoreError."""
    with refused_in_one_line(store.engine), store.session() as session:
        mine = select(PendingAudit.dedupe_key).where(PendingAudit.id == row_id)
        return session.exec(mine).first() == ""


def erase(session: Session, ids: Sequence[str]) -> None:
    """Remove their text; an audit not yet under way is then lost, and counts so."""
    rows = update(PendingAudit).where(col(PendingAudit.id).in_(ids))
    session.execute(rows.values(body={}, prompt="", student_text="", dedupe_key=""))


def _made(session: Session, ids: Sequence[str]) -> set[str]:
    """Whose audit is in the ledger: the gateway died between that row and the end of this one."""
    wanted = {audit_id(request_id): request_id for request_id in ids}
    found = session.exec(select(Request.id).where(col(Request.id).in_(list(wanted))))
    return {wanted[row_id] for row_id in found}


def _promise(row: PendingAudit) -> Promise:
    names = [one.name for one in fields(Promise) if one.name in _COLUMNS]
    return Promise(**{name: getattr(row, name) for name in names})


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[at : at + CHUNK] for at in range(0, len(ids), CHUNK))


def expired(promise: Promise, now: datetime | None = None) -> bool:
    return promise.expires <= (now or utcnow())
