"""Has the traffic moved? Looked at once per window of requests, by one gateway for all of them.

These tests know nothing of losses, so they serve and stop nothing: while one has fired, audits are
drawn more often, and the certificate and its alarms hear sooner. The rate of deferrals is not among
them: it moves with every new threshold.
"""

import logging
import time

from gateway import metrics
from gateway.certificates import incidents
from gateway.certificates.fold import Subject, locked, window_of
from gateway.certificates.outcomes import Row, read_rows
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import Certificate
from router.decision import Reason
from router.drift import MORE_AUDITS, WINDOW, Test, ks_test, tail_test
from router.router import Start

logger = logging.getLogger(__name__)

#: with fewer scores on either side, their distributions are not compared
FEWEST = 50


def follow(store: Store, subject: Subject, reference: int, *, now: float | None = None) -> float:
    """Look at the next window, if there is one. Returns by how much audits are multiplied now.
    ``reference``: prompts that the OOD gate's p-values are ranks among. Raises StoreError."""
    key = (subject.terms.task, subject.bundle)
    with refused_in_one_line(store.engine), store.session() as session:
        row = session.get(Certificate, key)
        if row is None:
            return 1.0
        before = row.drift
        horizon = window_of(row).horizon(time.time() if now is None else now)
        rows = read_rows(session, *key, str((before or {}).get("until", "")), horizon, WINDOW)
        moved = any(one.kind == incidents.DRIFT for one in incidents.open_ones(session, *key))
    if len(rows) < WINDOW:
        return MORE_AUDITS if moved else 1.0
    found = look(rows, subject.start, reference)
    fired = [test for test in found if test.fires]
    with store.transaction() as session:
        row = locked(session, *key)
        if row is None or row.drift != before:
            return MORE_AUDITS if moved else 1.0  # another gateway has looked
        row.drift = {"until": rows[-1].id, "p_values": {one.name: one.p_value for one in found}}
        if not fired:
            incidents.clear(session, *key, drift=True)
        elif not moved:
            incidents.report(
                session,
                task=key[0],
                bundle=key[1],
                kind=incidents.DRIFT,
                detail="; ".join(map(_said, fired)),
                done=f"{MORE_AUDITS:g} times as many audits while it lasts",
            )
    if fired and not moved:
        metrics.incidents_total.labels(key[0], incidents.DRIFT).inc()
        extra = {"task": key[0], "bundle": key[1], "drift": "; ".join(map(_said, fired))}
        logger.warning("the traffic has moved", extra=extra)
    return MORE_AUDITS if fired else 1.0


def look(rows: list[Row], start: Start, reference: int) -> list[Test]:
    """The tests of one window."""
    strange = [row.p_ood for row in rows if row.p_ood is not None]
    scores = [
        row.score
        for row in rows
        if row.score is not None and row.score >= 0.0 and row.reason != Reason.INVALID
    ]
    known = start.scores[start.scores >= 0.0]
    tests = []
    if reference and strange:
        tests.append(tail_test(strange, reference))
    if len(scores) >= FEWEST and len(known) >= FEWEST:
        tests.append(ks_test(known, scores))
    return tests


def _said(test: Test) -> str:
    if test.name == "tail":
        return (
            f"{test.observed:.1%} of {test.n} requests are strange where {test.expected:.1%} are"
            f" to be expected (p = {test.p_value:.2g})"
        )
    return f"scores are {test.observed:.2f} away from the calibration's (p = {test.p_value:.2g})"
