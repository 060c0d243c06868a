"""Promised audits in the database, and what gateways read of each other there."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from gateway.audits.counts import Reader
from gateway.config import Task
from gateway.lane import Lane, Live
from gateway.storage import exchanges, pending
from gateway.storage.bundles import BundleFiles
from gateway.storage.line import Line
from gateway.storage.promise import Promise
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, PendingAudit, utcnow
from router.router import Router

TASK = Task.model_validate({"name": "triage", "claim": {"model": ["m"]}})


def promise(row_id: str = "req-1", held_s: float = 60.0, **more: Any) -> Promise:
    now = utcnow()
    values: dict[str, Any] = {
        "id": row_id,
        "at": now,
        "task": "triage",
        "bundle": "b",
        "caller": "",
        "endpoint": "chat/completions",
        "dedupe_key": f"key-{row_id}",
        "body": {"model": "m", "messages": []},
        "prompt": "hi",
        "student_text": "parcel",
        "prompt_hash": "",
        "subject": exchanges.subject_of("ann"),
        "consent": True,
        "broken": False,
        "reason": "trusted",
        "score": 0.9,
        "p_ood": None,
        "propensity": 0.1,
        "uniform": 0.1,
        "guess": 0.1,
        "signals": {"seq": -0.1},
        "expires": now + timedelta(seconds=3600),
        "lease_owner": "one",
        "lease_until": now + timedelta(seconds=held_s),
        "headers": {"authorization": "Bearer secret"},
    }
    return Promise(**{**values, **more})


def line(row_id: str, **more: Any) -> Line:
    values: dict[str, Any] = {
        "id": row_id,
        "task": "triage",
        "route": "student",
        "reason": "trusted",
        "status": 200,
        "duration_ms": 1.0,
        "bundle": "b",
    }
    return Line(**{**values, **more})


def claimed(store: Store, owner: str = "two", tasks: tuple[str, ...] = ("triage",)) -> list[str]:
    return [one.id for one in pending.claim(store, owner, tasks, 60.0)]


def left(store: Store) -> list[PendingAudit]:
    with store.session() as session:
        return list(session.exec(select(PendingAudit).order_by(PendingAudit.id)))


def test_an_audit_is_taken_over_when_its_lease_has_ended_and_only_once(store: Store) -> None:
    store.insert([promise("req-1", -1.0), promise("req-2", 60.0)])
    (taken,) = pending.claim(store, "two", ["triage"], 60.0)
    assert (taken.id, taken.body, taken.student_text) == (
        "req-1",
        {"model": "m", "messages": []},
        "parcel",
    )
    assert (taken.lease_owner, taken.attempts, taken.headers) == ("two", 1, {})
    assert claimed(store, "three") == []
    pending.release(store, "one")
    assert claimed(store, "three") == ["req-2"]


def test_who_renews_its_lease_keeps_its_audits(store: Store) -> None:
    store.insert([promise("req-1", -1.0), promise("req-2", -1.0)])
    pending.renew(store, "one", ["req-1"], 60.0)
    assert claimed(store) == ["req-2"]
    # and nobody renews what another has taken
    pending.renew(store, "one", ["req-2"], -1.0)
    assert claimed(store, "three") == []


def test_an_audit_that_is_in_the_ledger_is_not_made_again(store: Store) -> None:
    store.insert([promise("req-1", -1.0), line("req-1-audit", kind="audit", parent="req-1")])
    assert claimed(store) == []
    assert left(store) == []


def test_audits_of_other_tasks_are_left_to_their_gateways_until_they_expire(store: Store) -> None:
    over = utcnow() - timedelta(seconds=1)
    store.insert(
        [promise("req-1", -1.0, task="other"), promise("req-2", -1.0, task="gone", expires=over)]
    )
    assert claimed(store) == ["req-2"]
    assert claimed(store, "three", ("other",)) == ["req-1"]


def test_what_is_finished_is_forgotten_and_secrets_were_never_kept(store: Store) -> None:
    store.insert([promise("req-1"), promise("req-2")])
    assert "secret" not in str([row.model_dump() for row in left(store)])
    pending.finish(store, ["req-1", "req-9"])
    assert [row.id for row in left(store)] == ["req-2"]


def test_erasing_a_request_erases_its_promise(store: Store) -> None:
    kept = Exchange(
        id="req-1",
        dedupe_key="k",
        at=utcnow(),
        task="triage",
        group_key="g",
        prompt="hi",
        body={"model": "m"},
        route="student",
        reason="degraded",
    )
    store.insert([promise("req-1"), kept])
    assert not pending.erased(store, "req-1")
    exchanges.erase(store, ["req-1"])
    (row,) = left(store)
    assert (row.body, row.prompt, row.student_text) == ({}, "", "")
    assert pending.erased(store, "req-1")
    assert exchanges.of_user(store, "ann") == ["req-1"]


async def test_promises_outlive_an_outage_of_the_database_in_the_spool(store: Store) -> None:
    await store.start()
    store._writer.away = True
    store.enqueue(promise("req-1"))
    await store.stop()
    again = Store.open(store.engine.url.render_as_string(hide_password=False), store.spool_dir)
    with again:
        await again.start()
        for _ in range(200):
            if left(again):
                break
            await asyncio.sleep(0.05)
        assert [row.id for row in left(again)] == ["req-1"]
        await again.stop()


def test_gateways_count_what_all_of_them_served_and_promised(store: Store) -> None:
    now = utcnow()
    day = timedelta(days=1)
    yesterday = now - day - timedelta(hours=2)
    store.insert(
        [
            line("1"),
            line("2", sampled=True),
            line("3", route="teacher", reason="unsure", sampled=True),
            line("4", reason="cached", sampled=True),
            line("5", status=499, sampled=True),
            line("6", sampled=True, at=yesterday),
            line("7", task="other", sampled=True),
            line("8", at=now - timedelta(minutes=90)),
            line("2-audit", kind="audit", loss=1.0),
            line("9-audit", kind="audit", loss=0.0),
            line("0-audit", kind="audit", loss=1.0, reason="lost"),
        ]
    )
    lane = Lane(TASK)
    reader = Reader(store)
    known = reader.read(lane)
    assert (known.counts.served, known.counts.promised, known.typical) == (3, 1, 0.5)
    # no bundle is live, so there is nothing to count the first requests of
    assert known.counts.requests == TASK.audit.first_requests
    store.insert([line("10", sampled=True)])
    known = reader.read(lane)
    assert (known.counts.served, known.counts.promised) == (4, 2)


def test_a_floor_for_a_new_bundle_ends_with_its_first_requests(
    store: Store, small_router: Router, tmp_path: Path
) -> None:
    task = Task.model_validate(
        {
            "name": "triage",
            "claim": {"model": ["m"]},
            "audit": {"first_requests": 3, "per_day": 0},
        }
    )
    files = BundleFiles(
        id="b",
        task="triage",
        adapter="b",
        base_model="",
        prompt_hash="",
        dataset_id="",
        created_at="",
        folder=tmp_path,
    )
    lane = Lane(task)
    lane.live = Live(bundle=files, router=small_router)
    reader = Reader(store)
    store.insert([line("1", bundle="older"), line("2"), line("3", route="teacher")])
    lane.sampling.learn(reader.read(lane))
    assert lane.sampling.rate() == 0.05
    store.insert([line("4"), line("4-audit", kind="audit")])
    lane.sampling.learn(reader.read(lane))
    assert lane.sampling.rate() == 0.01


@pytest.mark.parametrize("own", [0, 7])
def test_a_gateway_adds_what_it_promised_since_it_last_looked(own: int) -> None:
    task = Task.model_validate(
        {
            "name": "triage",
            "claim": {"model": ["m"]},
            "audit": {"rate": 0.01, "per_day": 7, "first_requests": 0},
        }
    )
    lane = Lane(task)
    assert lane.sampling.rate() == 1.0
    for _ in range(own):
        lane.sampling.promised()
    assert lane.sampling.rate() == (0.01 if own else 1.0)
    assert lane.sampling.rate(3.0) == (0.03 if own else 1.0)
    lane.sampling.closed = "budget"
    assert lane.sampling.rate(3.0) == 0.0
