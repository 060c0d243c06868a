"""Alarms at work: each audit is heard once, in the order of arrival, and acted on in the same
transaction.

When one is raised, the evidence so far counts no longer: a new epoch begins with the next request,
with no capital and a smaller part of the allowed error, and the threshold is NEVER until it is
certified anew, from drafts made beside the teacher's answers.
"""

import logging
import time
from collections.abc import Sequence

from sqlalchemy import text
from sqlmodel import Session, col, select

from gateway import metrics
from gateway.certificates import incidents
from gateway.certificates.fold import Subject, columns, locked, next_turn, write
from gateway.certificates.outcomes import bound
from gateway.certificates.standing import Standing, standing_of
from gateway.certificates.state import begin
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import Certificate, Request
from router import alarms
from router.decision import Reason
from router.threshold import NEVER

logger = logging.getLogger(__name__)

NOT_TRUSTED = frozenset({Reason.FORCED, Reason.DEGRADED})
#: audits heard at a time
MOST = 500


def hear(store: Store, subject: Subject) -> Standing | None:
    """Hear the audits of a bundle that nobody has heard. None where there were none, or the bundle
    has no certificate. Raises StoreError."""
    with refused_in_one_line(store.engine), store.session() as session:
        if not _unheard(session, subject, 1):
            return None
    with store.transaction() as session:
        row = locked(session, subject.terms.task, subject.bundle)
        audits = _unheard(session, subject, MOST) if row is not None else []
        if row is None or not audits:
            return None
        raised = _observe(row, audits)
        if raised is not None:
            _raise(session, row, subject, raised)
        else:
            row.version += 1
        standing = standing_of(row)
    if raised is not None:
        metrics.incidents_total.labels(subject.terms.task, raised).inc()
        extra = {"task": subject.terms.task, "bundle": subject.bundle, "alarm": raised}
        logger.error("alarm: the teacher answers everything", extra=extra)
    return standing


def _unheard(session: Session, subject: Subject, most: int) -> list[Request]:
    statement = (
        select(Request)
        .where(
            Request.task == subject.terms.task,
            Request.bundle == subject.bundle,
            text("kind = 'audit' AND NOT heard"),
        )
        .order_by(col(Request.written_at), col(Request.id))
        .limit(most)
    )
    return list(session.exec(statement))


def _observe(row: Certificate, audits: Sequence[Request]) -> str | None:
    """Count them; returns what they raise."""
    state = None if row.alarms is None else alarms.from_dict(row.alarms)
    for audit in audits:
        audit.heard = True
        parent = audit.parent or audit.id
        if state is None or state.raised is not None:
            continue
        # Audits of before the last alarm have had their say. One that nobody answered says nothing
        # of the student, though the certificate counts it as a disagreement, and a draft that was
        # served for other reasons than its score says nothing of the threshold.
        if parent < row.since or audit.status >= 400 or audit.reason in NOT_TRUSTED:
            continue
        weight = 1.0
        if audit.propensity and audit.least:
            weight = min(1.0, audit.least / audit.propensity)
        loss = 1.0 if audit.loss is None else min(1.0, max(0.0, audit.loss))
        state = alarms.observe(state, loss, weight)
    if state is not None:
        row.alarms = alarms.to_dict(state)
    return None if state is None or row.alarm is not None else state.raised


def _raise(session: Session, row: Certificate, subject: Subject, kind: str) -> None:
    before = row.threshold
    assert row.alarms is not None
    state = alarms.from_dict(row.alarms)
    row.alarm = kind
    row.epoch += 1
    row.turn = next_turn(session, subject.terms, row.epoch)
    row.since = row.frontier = bound(time.time())
    fresh = begin(subject.terms, subject.start, row.turn, row.since)
    write(row, subject, columns(subject, fresh, row.since))
    incidents.report(
        session,
        task=row.task,
        bundle=row.bundle,
        kind=kind,
        detail=f"{state.losses:g} disagreements in {state.audits} audits;"
        f" {state.level:.1%} of what is served keeps the contract",
        done=f"epoch {row.epoch}: the teacher answers until the student is certified anew",
        before=before,
        after=NEVER,
    )
