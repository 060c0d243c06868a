"""Kept responses, on SQLite and on PostgreSQL: whose they are, how long, and how they go."""

from datetime import timedelta
from pathlib import Path

from gateway.storage import exchanges, response_store
from gateway.storage.spool import Spool
from gateway.storage.store import Store
from gateway.storage.tables import StoredResponse, utcnow


def row(
    name: str, *, caller: str = "one", thread: str = "a", age_days: float = 0
) -> StoredResponse:
    said = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    return StoredResponse(
        id=name,
        caller=caller,
        at=utcnow() - timedelta(days=age_days),
        request_id=f"req-{name}",
        thread=thread,
        items=[{"type": "message", "role": "user", "content": f"from {name}\0"}],
        body={"id": name, "output": [said]},
    )


def test_a_response_exists_for_its_caller_alone(store: Store) -> None:
    store.insert([row("a")])
    assert response_store.find(store, "a", "two") is None
    assert not response_store.remove(store, "a", "two")
    found = response_store.find(store, "a", "one")
    assert found is not None
    assert [item["type"] for item in response_store.conversation(found)] == ["message"] * 2
    assert response_store.remove(store, "a", "one")
    assert not response_store.remove(store, "a", "one")


def test_erasing_a_request_takes_the_whole_conversation_along(store: Store) -> None:
    # what came later repeats its text
    store.insert([row("a"), row("b"), row("c", thread="c")])
    exchanges.erase(store, ["req-a"])
    left = [name for name in "abc" if response_store.find(store, name, "one") is not None]
    assert left == ["c"]


def test_old_responses_are_forgotten(store: Store) -> None:
    store.insert([row("a", age_days=31), row("b", age_days=29)])
    response_store.forget_old(store, 30)
    response_store.forget_old(store, 30)
    assert response_store.find(store, "a", "one") is None
    assert response_store.find(store, "b", "one") is not None


def test_a_response_survives_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([row("a")])
    (back,) = [r for segment in spool.segments() for rows in segment.chunks(9) for r in rows]
    assert isinstance(back, StoredResponse)
    assert back.model_dump() == row("a").model_dump() | {"at": back.at}
    spool.close()
