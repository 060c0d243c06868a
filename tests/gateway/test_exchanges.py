"""The retraining queue, on SQLite and on PostgreSQL."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from another_process import address, processes
from sqlmodel import select
from store_process import TASK, exchange

from gateway.errors import StoreError
from gateway.storage import exchanges
from gateway.storage.exchanges import claim, group_key, move, release
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, BundleEvent, DatasetRow, State

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def fill(store: Store, rows: int, **columns: Any) -> list[str]:
    """Rows r0, r1, … a minute apart."""
    store.insert(
        [
            exchange(f"r{number}", at=NOON + timedelta(minutes=number), **columns)
            for number in range(rows)
        ]
    )
    return [f"r{number}" for number in range(rows)]


def test_a_claim_takes_the_oldest_rows_and_nobody_else_gets_them(store: Store) -> None:
    fill(store, 5)
    assert [row.id for row in claim(store, TASK, ["captured"], 2, "me", 60)] == ["r0", "r1"]
    assert [row.id for row in claim(store, TASK, ["captured"], 9, "you", 60)] == ["r2", "r3", "r4"]
    assert claim(store, TASK, ["captured"], 9, "she", 60) == []
    assert claim(store, "another task", ["captured"], 9, "she", 60) == []


def test_released_rows_and_ended_leases_can_be_claimed_again(store: Store) -> None:
    fill(store, 3)
    claim(store, TASK, ["captured"], 3, "me", 60)
    assert release(store, ["r0", "r1"], "somebody else") == 0
    assert release(store, ["r0"], "me") == 1
    (row,) = claim(store, TASK, ["captured"], 3, "you", -1)
    assert (row.id, row.attempts) == ("r0", 2)
    (row,) = claim(store, TASK, ["captured"], 3, "she", 60)
    assert (row.id, row.attempts, row.lease_owner) == ("r0", 3, "she")


@pytest.mark.slow
def test_processes_that_claim_at_once_share_every_row_exactly_once(store: Store) -> None:
    names = set(fill(store, 400))
    with processes("claim", address(store), [(f"p{number}", 7) for number in range(3)]) as owners:
        claimed = [child.communicate()[0].split() for child in owners]
    assert sum(map(len, claimed)) == 400
    assert set().union(*claimed) == names
    for number, mine in enumerate(claimed):
        assert all(exchanges.show(store, one)[0].lease_owner == f"p{number}" for one in mine[:3])


def test_moving_a_row_ends_its_lease_and_is_written_down(store: Store) -> None:
    fill(store, 3)
    claim(store, TASK, ["captured"], 2, "me", 60)
    assert move(store, ["r0", "r2", "unknown"], State.REJECTED, "refusal", owner="me") == 1
    assert move(store, ["r0"], State.REJECTED, "again") == 0
    assert move(store, ["r1", "r2"], State.TRAINABLE) == 2
    row, events = exchanges.show(store, "r0")
    assert (row.state, row.lease_owner) == (State.REJECTED, None)
    assert [(event.state, event.detail) for event in events] == [
        ("captured", ""),
        ("rejected", "refusal"),
    ]


def test_counts_name_every_state(store: Store) -> None:
    fill(store, 3)
    move(store, ["r0"], State.HELD_OUT)
    assert exchanges.counts(store, TASK) == {
        State.CAPTURED: 2,
        State.REJECTED: 0,
        State.TRAINABLE: 0,
        State.HELD_OUT: 1,
        State.IN_DATASET: 0,
        State.ERASED: 0,
    }
    assert exchanges.oldest(store, TASK) == NOON + timedelta(minutes=1)
    assert exchanges.oldest(store, "another task") is None


def test_rows_are_found_by_state_reason_and_text(store: Store) -> None:
    fill(store, 3)
    store.insert([exchange("ood", reason="ood", prompt="Die Straße 100% naß", at=NOON)])

    def found(**wanted: Any) -> list[str]:
        return [row.id for row in exchanges.find(store, TASK, **wanted)]

    assert found(limit=2) == ["r2", "r1"]
    assert found(reason="ood") == ["ood"]
    assert found(text="100% N") == ["ood"]
    assert found(text="1__") == []
    assert found(states=["rejected"]) == []
    with pytest.raises(StoreError, match="'nobody'"):
        exchanges.show(store, "nobody")


def test_rejected_rows_are_judged_again_on_request(store: Store) -> None:
    fill(store, 4)
    move(store, ["r0", "r1"], State.REJECTED, "schema")
    move(store, ["r2"], State.REJECTED, "refusal")
    assert exchanges.requeue(store, TASK, reason="refusal") == 1
    assert exchanges.requeue(store, TASK, ["r1", "r3"]) == 1
    assert exchanges.requeue(store, "another task") == 0
    states = {row.id: row.state for row in exchanges.find(store, TASK)}
    assert states == {"r0": "rejected", "r1": "captured", "r2": "captured", "r3": "captured"}
    # rejected for another reason since
    move(store, ["r2"], State.REJECTED, "schema")
    assert exchanges.requeue(store, TASK, reason="refusal") == 0
    assert exchanges.requeue(store, TASK) == 2


def test_erased_rows_keep_no_text_and_name_the_datasets_that_copied_them(store: Store) -> None:
    fill(store, 3, student_text="bill")
    with store.session() as session:
        session.add(DatasetRow(dataset_id="d1", exchange_id="r0", split="train"))
        session.add(DatasetRow(dataset_id="d2", exchange_id="r2", split="train"))
        session.commit()
    erasure = exchanges.erase(store, ["r0", "r1"], "asked by the customer")
    assert (erasure.rows, erasure.datasets) == (2, ("d1",))
    row, events = exchanges.show(store, "r0")
    assert (row.prompt, row.body, row.teacher_text, row.student_text) == ("", {}, None, None)
    assert "key of r0" not in row.dedupe_key
    assert events[-1].detail == "asked by the customer"
    assert move(store, ["r0"], State.TRAINABLE) == 0
    assert exchanges.erase(store, ["r0"]).rows == 0


def test_erasure_taints_the_bundles_made_with_the_rows(store: Store) -> None:
    fill(store, 2)
    with store.session() as session:
        session.add(DatasetRow(dataset_id="d1", exchange_id="r0", split="test"))
        for name, dataset in (("b1", "d1"), ("b2", "d2"), ("b3", None)):
            session.add(
                Bundle(id=name, task=TASK, at=NOON, path="", adapter=name, dataset_id=dataset)
            )
        session.commit()
    for _ in range(2):
        assert exchanges.erase(store, ["r0"]).bundles == ("b1",)
    with store.session() as session:
        assert [b.id for b in session.exec(select(Bundle)) if b.tainted] == ["b1"]
        events = session.exec(select(BundleEvent)).all()
    assert [(event.bundle_id, event.event) for event in events] == [("b1", "tainted")]


def test_the_rows_of_a_user_are_found_although_nothing_kept_names_the_user(store: Store) -> None:
    ann = "ann@shop.io"
    bodies = [{"user": ann}, {"metadata": {"user_id": ann}}, {"user": "bob"}, {"metadata": [1]}]
    for at, body in enumerate(bodies):
        store.insert([exchange(f"r{at}", subject=exchanges.subject(body))])
    assert sorted(exchanges.of_user(store, ann)) == ["r0", "r1"]
    assert exchanges.of_user(store, "") == exchanges.of_user(store, "carol") == []
    assert ann not in str([exchanges.show(store, f"r{at}")[0] for at in range(4)])


def test_erased_text_is_in_no_file_any_more(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/retort.db", tmp_path / "spool") as store:
        fill(store, 30, teacher_text="a confidential answer " * 40)
        exchanges.erase(store, fill(store, 30))
        files = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) == 3
    assert not any(b"confidential" in data or b"where is my parcel" in data for data in files)


def test_a_request_is_known_by_its_task_and_bytes() -> None:
    assert exchanges.dedupe_key("a", b"x") == exchanges.dedupe_key("a", b"x")
    assert exchanges.dedupe_key("a", b"x") != exchanges.dedupe_key("b", b"x")
    assert exchanges.dedupe_key("a", b"x") != exchanges.dedupe_key("a", b"y")


@pytest.mark.parametrize(
    "like",
    [
        "where is order 12345?",
        "  Where IS\torder 7 ?!\n",
        "Where is “order” #99…",
        "Ｗｈｅｒｅ is order ٣",
        "where_is_order-5",
    ],
)
def test_near_identical_prompts_share_a_group(like: str) -> None:
    assert group_key(like) == group_key("Where is order 4711?")


@pytest.mark.parametrize(
    "other", ["Where is my order 4711?", "", "!!!", "👍", "where is order", "где заказ 4711"]
)
def test_other_prompts_have_groups_of_their_own(other: str) -> None:
    assert group_key(other) != group_key("Where is order 4711?")


def test_prompts_made_of_signs_alone_stay_apart() -> None:
    assert len({group_key(text) for text in ("", "?", "!!!", "👍", "👎")}) == 5


def test_a_long_common_beginning_makes_no_group() -> None:
    template = "You are a helpful clerk. Read the ticket and answer. " * 20
    assert group_key(template + "my card is lost") != group_key(template + "where is my parcel")


def test_a_conversation_is_one_group() -> None:
    first = {"role": "user", "content": "My parcel is late."}
    turns = [first, {"role": "assistant", "content": "Sorry."}, {"role": "user", "content": "And?"}]
    assert group_key("And?", {"messages": turns}) == group_key("My parcel is late.")
    for name in ("conversation_id", "thread_id", "session_id"):
        one = {"metadata": {name: "c1"}, "messages": [first]}
        two = {"metadata": {name: "c1"}, "messages": [{"role": "user", "content": "other"}]}
        assert group_key("x", one) == group_key("y", two)
    assert group_key("x", {"user": "u"}) != group_key("y", {"user": "u"})
    assert group_key("x", {"metadata": {"conversation_id": 7}, "messages": "odd"}) == group_key("x")
