"""From the rows of the ledger to the threshold in use, on either database."""

import os
import random
import signal
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import fold_process
import numpy as np
import pytest
from another_process import address, processes
from ledger_rows import (
    BUNDLE,
    RATE,
    TASK,
    WINDOW,
    audit_of,
    request_line,
    stream,
    terms,
)
from sqlmodel import select

from gateway.certificates import drift, incidents
from gateway.certificates.alarm import hear
from gateway.certificates.fold import Subject, ensure, fold, recompute, window_of
from gateway.certificates.outcomes import bound
from gateway.certificates.state import State, begin, same, unpack
from gateway.storage.store import Store
from gateway.storage.tables import Certificate as CertificateRow
from gateway.storage.tables import Request
from router import certificate as live
from router.decision import Reason
from router.router import Start
from router.threshold import NEVER, Certificate

SUBJECT = Subject(terms=terms(), bundle=BUNDLE, offline=None, start=Start())
BEGAN = 1_790_000_000.0
LATER = BEGAN + 100_000


def row(store: Store) -> CertificateRow:
    with store.session() as session:
        return session.get_one(CertificateRow, (TASK, BUNDLE))


def fold_all(store: Store, subject: Subject = SUBJECT, now: float = LATER, most: int = 100) -> None:
    while fold(store, subject, now=now, most=most)[1]:
        pass


def recomputed(store: Store, subject: Subject = SUBJECT) -> State:
    known = row(store)
    state, _ = recompute(
        store,
        subject,
        turn=known.turn,
        since=known.since,
        until=known.frontier,
        window=window_of(known),
    )
    return state


def test_the_stored_state_is_what_the_mathematics_makes_of_the_rows(store: Store) -> None:
    lines, expected = stream(600, BEGAN)
    ensure(store, SUBJECT)
    half = BEGAN + 300
    store.insert([line for line in lines if line.at.timestamp() < half])
    fold_all(store, now=half + 2 * WINDOW.settle_s, most=70)
    store.insert(lines)
    fold_all(store, most=90)
    known = row(store)
    wealth = live.update(begin(SUBJECT.terms, Start(), 1, "").wealth, expected)
    stored = unpack(known.state)
    for name, array in live.to_arrays(wealth).items():
        assert np.array_equal(live.to_arrays(stored.wealth)[name], array), name
    assert known.threshold == live.threshold(wealth) < NEVER
    assert (known.n, known.audits, known.labels) == (wealth.n, wealth.audits, wealth.labels)
    assert (known.coverage, known.coverage_low, known.coverage_high) == live.coverage(
        wealth, known.threshold
    )
    assert known.detail["disagreement_low"] < known.detail["disagreement_estimate"] < 0.2
    assert same(recomputed(store), stored)


def test_a_missing_audit_is_waited_for_and_then_counts_as_a_disagreement(store: Store) -> None:
    ensure(store, SUBJECT)
    one, two, three = (
        request_line(BEGAN + at, at, Reason.TRUSTED, score=0.9, sampled=True) for at in range(3)
    )
    store.insert([one, audit_of(one, 0.0), two, three, audit_of(three, 0.0)])
    soon = BEGAN + WINDOW.audit_wait_s
    fold_all(store, now=soon)
    assert (row(store).frontier, row(store).audits) == (one.id, 1)
    # one that comes too late changes nothing any more, now or when the ledger is read again
    store.insert([audit_of(two, 0.0, after_s=WINDOW.audit_wait_s + 1)])
    fold_all(store, now=soon + WINDOW.settle_s + 10)
    known = row(store)
    assert (known.n, known.audits) == (3, 3)
    assert unpack(known.state).seen[4] == 1 / RATE
    assert same(recomputed(store), unpack(known.state))


def test_rows_are_read_when_they_are_settled_and_late_ones_are_left_out(store: Store) -> None:
    ensure(store, SUBJECT)
    on_time = request_line(BEGAN, 1, Reason.UNSURE, score=0.5, loss=0.0)
    late = request_line(
        BEGAN + 1,
        2,
        Reason.UNSURE,
        score=0.5,
        loss=1.0,
        written_at=datetime.fromtimestamp(BEGAN + 62, UTC),
    )
    store.insert([on_time])
    fold(store, SUBJECT, now=BEGAN + 2 * WINDOW.settle_s - 1)
    assert row(store).n == 0
    fold(store, SUBJECT, now=BEGAN + 2 * WINDOW.settle_s + 5)
    assert row(store).n == 1
    store.insert([late])
    fold_all(store)
    known = row(store)
    assert known.n == 1
    state, counts = recompute(store, SUBJECT, turn=1, since="", until=known.frontier, window=WINDOW)
    assert same(state, unpack(known.state))
    assert (counts["counted"], counts["late"]) == (1, 1)


def test_a_broken_row_does_not_stop_the_certificate(store: Store) -> None:
    ensure(store, SUBJECT)
    bad = [{"loss": 7.0}, {"score": 3.0}, {"propensity": 0.2, "least": 0.4}, {"status": 502}]
    rows = [
        request_line(BEGAN + at, at, Reason.UNSURE, **({"score": 0.5, "loss": 0.0} | columns))
        for at, columns in enumerate([*bad, {}])
    ]
    store.insert(rows)
    fold_all(store)
    assert row(store).n == 2  # the third is odd, but says what it must


def test_gateways_that_race_leave_what_one_alone_would(store: Store) -> None:
    lines, expected = stream(300, BEGAN)
    ensure(store, SUBJECT)
    # in whatever order they arrive, they are counted in that of their requests
    store.insert(random.Random(1).sample(lines, len(lines)))
    url, spool = address(store)
    finished: list[str] = []

    def work() -> None:
        with Store.open(url, spool) as mine:
            while row(mine).n < len(expected):
                fold(mine, SUBJECT, now=LATER, most=25)
            finished.append("")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(finished) == 3
    known = unpack(row(store).state)
    assert known.wealth.n == len(expected)
    assert same(recomputed(store), known)


@pytest.mark.slow
def test_a_process_killed_while_it_folds_loses_and_doubles_nothing(store: Store) -> None:
    lines, expected = stream(400, BEGAN)
    ensure(store, SUBJECT)
    store.insert(lines)
    with processes("fold", address(store), [(3, LATER)], fold_process) as (child,):
        assert child.stdout is not None
        for _ in range(4):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        child.wait(30)
    assert 0 < row(store).n < len(expected)
    fold_all(store)
    known = unpack(row(store).state)
    assert known.wealth.n == len(expected)
    assert same(recomputed(store), known)


def test_an_alarm_voids_the_evidence_and_free_labels_earn_it_anew(store: Store) -> None:
    start = Start(scores=np.full(300, 0.9), losses=np.zeros(300))
    subject = replace(SUBJECT, start=start)
    served = ensure(store, subject)
    assert served.threshold <= 0.9 and served.alarm is None
    for number in range(60):
        line = request_line(time.time(), number, Reason.TRUSTED, score=0.9, sampled=True)
        store.insert([line, audit_of(line, 1.0)])
        after = hear(store, subject)
        assert after is not None and hear(store, subject) is None  # each is heard once
        if after.alarm is not None:
            break
    assert number < 20 and after.threshold == NEVER and after.version > served.version
    known = row(store)
    assert (known.epoch, known.n, known.certified) == (2, 0, False)
    (incident,) = incidents.history(store, TASK)
    assert incident.kind == known.alarm and incident.cleared_at is None
    assert (incident.threshold_before, incident.threshold_after) == (served.threshold, NEVER)
    # what was served before the alarm counts no longer, nor do the calibration rows
    now = time.time() + 1
    labels = [
        request_line(now + at, at, Reason.ALARM, score=0.8, loss=0.0, sampled=True)
        for at in range(400)
    ]
    store.insert(labels)
    fold_all(store, subject, now=now + 1000)
    known = row(store)
    assert known.certified and known.alarm is None and known.n == 400
    assert known.alarms is not None and known.alarms["audits"] == 0
    assert incidents.history(store, TASK)[0].cleared_at is not None
    assert same(recomputed(store, subject), unpack(known.state))


def test_an_audit_that_nobody_answered_raises_no_alarm(store: Store) -> None:
    subject = replace(SUBJECT, start=Start(scores=np.full(300, 0.9), losses=np.zeros(300)))
    ensure(store, subject)
    for number in range(60):
        line = request_line(time.time(), number, Reason.TRUSTED, score=0.9, sampled=True)
        store.insert([line, audit_of(line, 1.0, reason="lost", status=504)])
    standing = hear(store, subject)
    assert standing is not None and standing.alarm is None
    with store.session() as session:
        assert all(one.heard for one in session.exec(select(Request)) if one.kind == "audit")


def test_the_laxer_certificate_counts_and_a_refuted_or_weaker_one_does_not(store: Store) -> None:
    offline = Certificate(
        threshold=0.4,
        max_disagreement=0.1,
        confidence=0.975,
        n=100,
        errors_served=0.0,
        upper_bound=0.03,
        coverage=0.9,
        coverage_low=0.8,
        coverage_high=0.95,
        method="clopper-pearson",
    )
    assert ensure(store, replace(SUBJECT, offline=offline)).threshold == 0.4
    stricter = replace(SUBJECT, offline=offline, terms=terms(alpha=0.05))
    assert ensure(store, stricter).threshold == NEVER
    assert row(store).epoch == 2  # another promise, with an error of its own
    unsure = replace(offline, confidence=0.9)
    assert ensure(store, replace(SUBJECT, offline=unsure)).threshold == NEVER


def test_a_lifetime_promise_is_shared_by_all_bundles_of_the_task(store: Store) -> None:
    start = Start(scores=np.full(300, 0.9), losses=np.zeros(300))
    forever = terms(lifetime=True)
    deltas = []
    for bundle in ("one", "two", "three"):
        subject = Subject(terms=forever, bundle=bundle, offline=None, start=start)
        ensure(store, subject)
        ensure(store, subject)  # again is the same as once
        deltas.append(ensure(store, subject).detail["delta"])
    assert deltas == [forever.delta / 2, forever.delta / 6, forever.delta / 12]
    line = request_line(time.time(), 1, Reason.TRUSTED, bundle="one", score=0.9, sampled=True)
    one = Subject(terms=forever, bundle="one", offline=None, start=start)
    for number in range(20):
        again = replace(line, id=f"{line.id}{number}")
        store.insert([again, audit_of(again, 1.0)])
    standing = hear(store, one)
    assert standing is not None and standing.alarm is not None
    assert standing.detail["delta"] == forever.delta / 20


def test_an_idle_certificate_does_not_write_and_does_not_fall_behind(store: Store) -> None:
    ensure(store, SUBJECT)
    first, _ = fold(store, SUBJECT, now=LATER)
    again, _ = fold(store, SUBJECT, now=LATER + 1)
    assert again.version == first.version
    fold(store, SUBJECT, now=LATER + 1000)
    assert row(store).frontier == bound(LATER + 1000 - 2 * WINDOW.settle_s)


def test_a_moved_window_asks_for_more_audits_until_one_has_not(store: Store) -> None:
    start = Start(scores=np.linspace(0.5, 1.0, 300), losses=np.zeros(300))
    subject = replace(SUBJECT, start=start)
    ensure(store, subject)

    def window(place: int, strange: float) -> None:
        dice = np.random.default_rng(place)
        began = BEGAN + place * drift.WINDOW
        store.insert(
            [
                request_line(
                    began + at,
                    at,
                    Reason.UNSURE,
                    score=float(dice.uniform(0.5, 1.0)),
                    loss=0.0,
                    p_ood=0.002 if at < strange * drift.WINDOW else float(dice.uniform(0.01, 1.0)),
                )
                for at in range(drift.WINDOW)
            ]
        )

    assert drift.follow(store, subject, 1000, now=LATER) == 1.0
    window(0, 0.0)
    assert drift.follow(store, subject, 1000, now=LATER) == 1.0
    window(1, 0.05)
    assert drift.follow(store, subject, 1000, now=LATER) == drift.MORE_AUDITS
    # the same window is not looked at twice, by this gateway or another
    assert drift.follow(store, subject, 1000, now=LATER) == drift.MORE_AUDITS
    (incident,) = incidents.history(store, TASK)
    assert incident.kind == "drift" and "strange" in incident.detail
    assert row(store).threshold == ensure(store, subject).threshold  # it stops nothing
    window(2, 0.0)
    assert drift.follow(store, subject, 1000, now=LATER) == 1.0
    (incident,) = incidents.history(store, TASK)
    assert incident.cleared_at is not None
