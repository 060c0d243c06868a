"""Incidents: what the alarms and the drift tests saw, and what was done about it."""

from datetime import timedelta

from sqlmodel import Session, col, select

from gateway.ids import new_id
from gateway.storage.store import Store
from gateway.storage.tables import Incident, utcnow

DRIFT = "drift"


def report(
    session: Session,
    *,
    task: str,
    bundle: str,
    kind: str,
    detail: str,
    done: str,
    before: float | None = None,
    after: float | None = None,
) -> Incident:
    incident = Incident(
        id=new_id("inc"),
        task=task,
        bundle=bundle,
        at=utcnow(),
        kind=kind,
        detail=detail,
        done=done,
        threshold_before=before,
        threshold_after=after,
    )
    session.add(incident)
    return incident


def open_ones(session: Session, task: str, bundle: str) -> list[Incident]:
    statement = select(Incident).where(
        Incident.task == task, Incident.bundle == bundle, col(Incident.cleared_at).is_(None)
    )
    return list(session.exec(statement.order_by(col(Incident.id))))


def clear(session: Session, task: str, bundle: str, *, drift: bool) -> None:
    """What was seen is over: of drift, or of the alarms."""
    for incident in open_ones(session, task, bundle):
        if (incident.kind == DRIFT) is drift:
            incident.cleared_at = utcnow()


def history(store: Store, task: str, days: float = 30.0, limit: int = 20) -> list[Incident]:
    """The newest first."""
    since = utcnow() - timedelta(days=days)
    statement = (
        select(Incident)
        .where(Incident.task == task, col(Incident.at) >= since)
        .order_by(col(Incident.id).desc())
        .limit(limit)
    )
    with store.session() as session:
        return list(session.exec(statement))
