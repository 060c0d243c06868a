"""Captured rows become usable ones; nothing is lost and nothing is taken twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from night_world import collect, make_config, open_store
from sqlmodel import select

from gateway.lane import output_spec
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, State
from retrain.harvest import Harvest, harvest
from retrain.splits import split_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(make_config(tmp_path, "http://127.0.0.1:1/v1")) as opened:
        yield opened


def take(store: Store, tmp_path: Path, owner: str = "night-1", lease_s: float = 600.0) -> Harvest:
    spec = output_spec(make_config(tmp_path, "http://127.0.0.1:1/v1").tasks[0].output)
    return harvest(store, "triage", spec, owner=owner, lease_s=lease_s)


def test_rows_go_to_the_side_their_group_belongs_to(store: Store, tmp_path: Path) -> None:
    collect(store, 120)
    found = take(store, tmp_path)
    assert found.trainable + found.held_out + sum(found.rejected.values()) == found.leased
    assert found.waiting == found.trainable + found.held_out
    with store.session() as session:
        rows = session.exec(select(Exchange)).all()
    for row in rows:
        side = State.TRAINABLE if split_of(row.group_key) == "train" else State.HELD_OUT
        assert row.state in (side, State.REJECTED)
        assert row.lease_owner is None


def test_a_second_harvest_finds_nothing_new(store: Store, tmp_path: Path) -> None:
    collect(store, 60)
    first = take(store, tmp_path)
    second = take(store, tmp_path, "night-2")
    assert second.leased == 0 and second.waiting == first.waiting


def test_rows_without_an_answer_wait_for_it(store: Store, tmp_path: Path) -> None:
    collect(store, 20, answer=lambda text: None)
    assert take(store, tmp_path).leased == 0
    with store.session() as session:
        rows = session.exec(select(Exchange)).all()
    assert {(row.state, row.lease_owner) for row in rows} == {(State.CAPTURED, None)}


def test_rows_leased_by_another_are_left_alone(store: Store, tmp_path: Path) -> None:
    collect(store, 30)
    held = exchanges.claim(store, "triage", [State.CAPTURED], 10, "other", 600.0)
    assert take(store, tmp_path).leased == 30 - len(held)


def test_rows_of_a_dead_harvest_come_back_when_its_lease_ends(store: Store, tmp_path: Path) -> None:
    collect(store, 30)
    exchanges.claim(store, "triage", [State.CAPTURED], 100, "dead", -1.0)
    assert take(store, tmp_path).leased == 30


def test_a_resumed_harvest_takes_its_own_rows_back_at_once(store: Store, tmp_path: Path) -> None:
    collect(store, 30)
    exchanges.claim(store, "triage", [State.CAPTURED], 100, "night-1", 600.0)
    assert take(store, tmp_path, "night-2").leased == 0
    assert take(store, tmp_path, "night-1").leased == 30


def test_rejected_rows_say_why_in_their_history(store: Store, tmp_path: Path) -> None:
    (row_id,) = collect(store, 1, answer=lambda text: "")
    assert take(store, tmp_path).rejected == {"no_answer": 1}
    row, events = exchanges.show(store, row_id)
    assert (row.state, events[-1].detail) == (State.REJECTED, "no_answer")


def test_repeats_are_known_across_harvests(store: Store, tmp_path: Path) -> None:
    collect(store, 40, seed=1)
    first = take(store, tmp_path)
    with store.session() as session:
        rows = session.exec(select(Exchange).where(Exchange.state == State.TRAINABLE)).all()
    again = [
        Exchange(**row.model_dump() | {"id": f"again-{i}", "dedupe_key": f"again-{i}"})
        for i, row in enumerate(rows)
    ]
    for row in again:
        row.state = State.CAPTURED
    store.insert(again)
    second = take(store, tmp_path, "night-2")
    assert second.rejected == {"duplicate": first.trainable}


def test_a_corrected_row_needs_no_teacher(store: Store, tmp_path: Path) -> None:
    ids = collect(store, 10, answer=lambda text: None)
    with store.transaction() as session:
        row = session.get(Exchange, ids[0])
        assert row is not None
        row.correction = "refund"
    assert take(store, tmp_path).leased == 1
