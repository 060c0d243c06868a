"""The next rows of the ledger into the certificate. Every gateway tries; one of them gets it done.

The rows are read and the capital is worked out without a lock. Then the certificate's row is
locked, and written only if it still stands where the work began: whoever comes second has worked
for nothing, and a process that dies leaves nothing behind.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, func, select

from gateway import metrics
from gateway.certificates import incidents
from gateway.certificates.outcomes import (
    Left,
    Row,
    Window,
    outcomes,
    read_audits,
    read_rows,
)
from gateway.certificates.standing import Standing, standing_of
from gateway.certificates.state import (
    State,
    Terms,
    add,
    begin,
    figures,
    pack,
    threshold_of,
    unpack,
)
from gateway.storage.database import refused_in_one_line
from gateway.storage.rows import insert_rows
from gateway.storage.store import Store
from gateway.storage.tables import Certificate, utcnow
from router import alarms
from router import certificate as live
from router.certificate import Outcome
from router.router import Start
from router.threshold import NEVER
from router.threshold import Certificate as Offline

#: rows of one step
ROWS = 1000
#: an idle certificate's frontier is moved on when it is so far behind, not every second
IDLE_S = 60.0
#: The alarms start anew, at a new level, when the served share has changed by more than this.
LEVEL_MOVES = 0.25
#: No level is over this: that many disagreements are harm whatever the contract allows.
MOST_LEVEL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose certificate it is."""

    terms: Terms
    bundle: str
    offline: Offline | None
    start: Start


def ensure(store: Store, subject: Subject) -> Standing:
    """Start a bundle's certificate where it has none, or where the contract has changed since: that
    is a promise of its own, with its own part of the allowed error. Raises StoreError."""
    terms = subject.terms
    with refused_in_one_line(store.engine), store.session() as session:
        first = _new(subject, next_turn(session, terms, 1))
    with store.transaction() as session:
        row = locked(session, terms.task, subject.bundle)
        if row is None:
            insert_rows(session.connection(), [first])
            row = locked(session, terms.task, subject.bundle)
            assert row is not None
        elif _other_contract(row, subject):
            row.epoch += 1
            row.turn = next_turn(session, terms, row.epoch)
            row.frontier = row.since
            row.settle_s = terms.window.settle_s
            row.audit_wait_s = terms.window.audit_wait_s
            state = begin(terms, subject.start, row.turn, row.since)
            write(row, subject, columns(subject, state, row.since))
        return standing_of(row)


def fold(
    store: Store, subject: Subject, *, now: float | None = None, most: int = ROWS
) -> tuple[Standing, bool]:
    """Count the next rows. Returns where the certificate stands, and whether there may be more rows
    to count at once. ``now``: Unix time. Raises StoreError."""
    now = time.time() if now is None else now
    key = (subject.terms.task, subject.bundle)
    with refused_in_one_line(store.engine), store.session() as session:
        row = session.get(Certificate, key)
        if row is None:  # somebody deleted it
            return ensure(store, subject), False
        window = window_of(row)
        horizon = window.horizon(now)
        rows = read_rows(session, *key, row.frontier, horizon, most)
        found = outcomes(rows, read_audits(session, rows), window, now)
    began = (row.epoch, row.frontier)
    whole = len(found) == len(rows) < most
    frontier = horizon if whole else found[-1][0].id if found else row.frontier
    if not found and row.frontier > window.horizon(now - IDLE_S):
        return standing_of(row), False
    if frontier <= row.frontier:
        return standing_of(row), False
    counted = [(one, what) for one, what in found if not isinstance(what, Left)]
    state = unpack(row.state)
    if counted:
        state = add(state, counted)
    values = columns(subject, state, row.since)
    with store.transaction() as session:
        current = locked(session, *key, skip=True)
        if current is None or (current.epoch, current.frontier) != began:
            return standing_of(current or row), False
        current.frontier = frontier
        write(current, subject, values)
        if current.alarm is not None and current.threshold < NEVER:
            current.alarm = None
            incidents.clear(session, *key, drift=False)
        standing = standing_of(current)
    _count(subject.terms.task, found)
    return standing, not whole and len(found) == len(rows)


def recompute(
    store: Store, subject: Subject, *, turn: int, since: str, until: str, window: Window
) -> tuple[State, dict[str, int]]:
    """The same from the first row on, up to the frontier ``until``; and how many rows there were of
    each kind: counted, or left out and why."""
    terms = subject.terms
    state = begin(terms, subject.start, turn, since)
    after, counts = since, dict.fromkeys(("counted", *map(str, Left)), 0)
    while True:
        with store.session() as session:
            rows = read_rows(session, terms.task, subject.bundle, after, until, ROWS)
            if not rows:
                return state, counts
            found = outcomes(rows, read_audits(session, rows), window, float("inf"))
        for _, what in found:
            counts[str(what) if isinstance(what, Left) else "counted"] += 1
        counted = [(one, what) for one, what in found if not isinstance(what, Left)]
        state = add(state, counted) if counted else state
        after = rows[-1].id


def columns(subject: Subject, state: State, since: str) -> dict[str, Any]:
    """What of the row follows from the state. Worked out before the lock is taken: it is what takes
    the time, and the first time it loads a library."""
    wealth = state.wealth
    threshold = threshold_of(subject.terms, state, subject.offline, since)
    certified = threshold < NEVER
    value, low, high = live.coverage(wealth, threshold) if certified else (0.0, 0.0, 0.0)
    return {
        "state": pack(state),
        "threshold": threshold,
        "certified": certified,
        "coverage": value,
        "coverage_low": low,
        "coverage_high": high,
        "n": wealth.n,
        "audits": wealth.audits,
        "labels": wealth.labels,
        "detail": figures(subject.terms, state, threshold),
    }


def write(row: Certificate, subject: Subject, values: Mapping[str, Any]) -> None:
    """The row with these columns, a version on. The alarms follow the threshold."""
    for name, value in values.items():
        setattr(row, name, value)
    row.version += 1
    row.updated_at = utcnow()
    if row.certified:
        row.alarms = _watched(row.alarms, subject.terms, row.coverage)


def locked(session: Session, task: str, bundle: str, *, skip: bool = False) -> Certificate | None:
    """None where there is none, or, with ``skip``, where another process holds it. SQLite has
    locked the whole database already."""
    return session.get(
        Certificate,
        (task, bundle),
        with_for_update={"skip_locked": True} if skip else True,
        populate_existing=True,
    )


def next_turn(session: Session, terms: Terms, epoch: int) -> int:
    """Which part of the allowed error the next start has."""
    if not terms.lifetime:
        return epoch
    statement = select(func.max(Certificate.turn)).where(Certificate.task == terms.task)
    return (session.exec(statement).one() or 0) + 1


def level(alpha: float, coverage: float) -> float:
    """The mean loss of served drafts over which the contract is broken."""
    return min(MOST_LEVEL, alpha / coverage) if coverage > 0.0 else MOST_LEVEL


def _watched(known: dict[str, Any] | None, terms: Terms, coverage: float) -> dict[str, Any]:
    """The alarms of what is served now."""
    wanted = level(terms.alpha, coverage)
    epoch = 1
    if known is not None:
        old = alarms.from_dict(known)
        moved = abs(wanted / old.level - 1.0) > LEVEL_MOVES
        if old.raised is None and not moved:
            return known
        epoch = old.epoch + 1
    return alarms.to_dict(alarms.start_alarms(wanted, delta=terms.delta, epoch=epoch))


def _new(subject: Subject, turn: int) -> Certificate:
    terms = subject.terms
    row = Certificate(
        task=terms.task,
        bundle=subject.bundle,
        version=0,
        epoch=1,
        turn=turn,
        since="",
        frontier="",
        settle_s=terms.window.settle_s,
        audit_wait_s=terms.window.audit_wait_s,
        state=b"",
        threshold=NEVER,
        certified=False,
        coverage=0.0,
        coverage_low=0.0,
        coverage_high=0.0,
        n=0,
        audits=0,
        labels=0,
        updated_at=utcnow(),
    )
    write(row, subject, columns(subject, begin(terms, subject.start, turn, ""), ""))
    return row


def _other_contract(row: Certificate, subject: Subject) -> bool:
    """The contract, or what a certificate is made of, is not what it was."""
    try:
        wealth = unpack(row.state).wealth
    except (KeyError, ValueError):  # of another version
        return True
    now = begin(subject.terms, Start(share=subject.start.share), row.turn, row.since).wealth
    return (wealth.alpha, wealth.delta, len(wealth.grid)) != (now.alpha, now.delta, len(now.grid))


def window_of(row: Certificate) -> Window:
    return Window(settle_s=row.settle_s, audit_wait_s=row.audit_wait_s)


def _count(task: str, found: list[tuple[Row, Outcome | Left]]) -> None:
    for _, what in found:
        result = str(what) if isinstance(what, Left) else "counted"
        metrics.certificate_rows_total.labels(task, result).inc()
