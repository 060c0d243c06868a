"""After a replay: what ledger and queue hold of it, and proof that no fallback is missing."""

import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

from sqlmodel import col, select

from gateway.errors import RetortError
from gateway.money.pricing import add
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Request
from retrain.demo.replay import Outcome
from retrain.demo.table import Played
from router.decision import Route
from router.output import OutputSpec, disagreement

Row = TypeVar("Row", Request, Exchange)

#: Ledger rows are written soon after the answer, audits once the teacher has answered.
SETTLE_S = 20.0
#: Most ids in one query: SQLite's limit on variables is far above, old ones had 999.
BATCH = 500


def read_back(
    store: Store,
    outcomes: Sequence[Outcome],
    *,
    teachers: Mapping[str, str],
    spec: OutputSpec,
) -> list[Played]:
    """The outcomes with what was written down about them.

    ``teachers``: the teacher's answer by the case's key, as far as known; where the teacher
    answered a request, its answer counts. Raises RetortError if a fallback that a client received
    has no row in the queue: that must never happen.
    """
    answered = [outcome for outcome in outcomes if outcome.error is None]
    ledger, queue = _settled(store, answered)
    lost = [o for o in answered if o.route == Route.TEACHER and o.request_id not in queue]
    if lost:
        raise RetortError(
            f"{len(lost)} of {len(answered)} answers of the teacher have no row in the queue, for "
            f"example {lost[0].request_id}"
        )
    played = []
    for outcome in outcomes:
        kept, request = queue.get(outcome.request_id), ledger.get(outcome.request_id)
        by_teacher = outcome.route == Route.TEACHER and outcome.error is None
        teacher = outcome.answer if by_teacher else teachers.get(outcome.case.key)
        draft = outcome.answer if outcome.route == Route.STUDENT else None
        if draft is None and kept is not None:
            draft = kept.student_text
        loss = None
        if draft is not None and teacher is not None:
            loss = disagreement(spec, draft, teacher)
        played.append(
            Played(
                outcome=outcome,
                teacher=teacher,
                loss=loss,
                score=None if request is None else request.score,
                p_ood=None if request is None else request.p_ood,
                cost_usd=None
                if request is None
                else _cost(request, ledger.get(_audit(request.id))),
            )
        )
    return played


def _cost(request: Request, audit: Request | None) -> float | None:
    """With its audit, which has a row of its own in the ledger."""
    return add(request.cost_usd, 0.0 if audit is None else audit.cost_usd)


def _audit(request_id: str) -> str:
    return f"{request_id}-audit"


def _settled(
    store: Store, answered: Sequence[Outcome]
) -> tuple[dict[str, Request], dict[str, Exchange]]:
    """The rows of ledger and queue, waited for until they are all there, or for SETTLE_S."""
    ids = [outcome.request_id for outcome in answered]
    deadline = time.monotonic() + SETTLE_S
    while True:
        ledger, queue = _rows(store, Request, ids), _rows(store, Exchange, ids)
        complete = len(ledger) == len(ids)
        audits = {
            row.id for row in ledger.values() if row.sampled and row.route == Route.STUDENT.value
        }
        ledger |= _rows(store, Request, [_audit(request_id) for request_id in audits])
        complete = complete and len(ledger) == len(ids) + len(audits) and audits <= queue.keys()
        if complete or time.monotonic() > deadline:
            return ledger, queue
        time.sleep(0.3)


def _rows(store: Store, table: type[Row], ids: Sequence[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    with store.session() as session:
        for at in range(0, len(ids), BATCH):
            query = select(table).where(col(table.id).in_(ids[at : at + BATCH]))
            found |= {row.id: row for row in session.exec(query)}
    return found
