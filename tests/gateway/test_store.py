"""What the store promises, on SQLite and on PostgreSQL, with real processes and real outages."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from another_process import address, process, processes
from outage import outage
from postgres import Postgres
from sqlalchemy import event
from sqlmodel import select
from store_process import TASK, exchange

from gateway.errors import StoreError
from gateway.storage import exchanges
from gateway.storage.database import transaction
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Request, utcnow
from gateway.storage.writer import LEDGER_ROWS


def request(row_id: str) -> Request:
    return Request(
        id=row_id,
        at=utcnow(),
        task=TASK,
        route="student",
        reason="trusted",
        status=200,
        duration_ms=1.5,
    )


@pytest.fixture
def server(request: pytest.FixtureRequest, store: Store) -> Postgres | None:
    """The PostgreSQL behind ``store``, where it is one."""
    if store.engine.dialect.name == "sqlite":
        return None
    found: Postgres = request.getfixturevalue("postgres_server")
    return found


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "nothing happened"
        await asyncio.sleep(0.02)


def ids(store: Store) -> list[str]:
    with store.session() as session:
        return list(session.exec(select(Exchange.id)))


async def test_an_appended_row_is_there_with_its_first_event(store: Store) -> None:
    await store.start()
    assert await store.append([exchange("a")]) == "stored"
    row, events = exchanges.show(store, "a")
    assert row == exchange("a", at=row.at)
    assert [event.state for event in events] == ["captured"]
    await store.stop()


async def test_a_repeated_request_is_counted_and_lends_its_answer(store: Store) -> None:
    await store.start()
    assert await store.append([exchange("a", "same", teacher_text=None)]) == "stored"
    assert await store.append([exchange("b", "same", teacher_model="gpt")]) == "duplicate"
    assert await store.append([exchange("c", "same", teacher_text="other")]) == "duplicate"
    row, events = exchanges.show(store, "a")
    assert (row.seen, row.teacher_text, row.teacher_model) == (3, "parcel", "gpt")
    assert len(events) == 1
    assert ids(store) == ["a"]
    await store.stop()


async def test_the_same_row_written_twice_is_one_row_seen_once(store: Store) -> None:
    await store.start()
    assert await store.append([exchange("a")]) == "stored"
    assert await store.append([exchange("a")]) == "stored"
    assert exchanges.show(store, "a")[0].seen == 1
    await store.stop()


async def test_appends_that_meet_share_a_commit(store: Store) -> None:
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(store.engine, "commit", count)
    await store.start()
    rows = [exchange(f"r{number}") for number in range(300)]
    await asyncio.gather(*(store.append([row]) for row in rows))
    await store.stop()
    assert len(ids(store)) == 300
    assert commits <= 30


async def test_an_idle_store_commits_at_once_and_a_busy_one_waits_for_company(
    database_url: str, tmp_path: Path
) -> None:
    with Store.open(database_url, tmp_path / "spool", commit_ms=1000) as store:
        await store.start()
        started = time.monotonic()
        await store.append([exchange("a")])
        assert time.monotonic() - started < 0.9
        await asyncio.gather(*(store.append([exchange(name)]) for name in "bc"))
        assert 0.9 < time.monotonic() - started < 3.0
        await store.stop()


async def test_a_bad_row_does_not_take_the_others_along(store: Store) -> None:
    await store.start()
    await store.append([exchange("a")])
    results = await asyncio.gather(
        store.append([exchange("b")]),
        store.append([exchange("a", "another request with the id of a")]),
        store.append([exchange("c", prompt=None)]),
        store.append([exchange("d")]),
        return_exceptions=True,
    )
    assert [str(result) for result in (results[0], results[3])] == ["stored", "stored"]
    assert isinstance(results[1], StoreError) and "another exchange has this id" in str(results[1])
    assert isinstance(results[2], StoreError) and "\n" not in str(results[2])
    assert sorted(ids(store)) == ["a", "b", "d"]
    assert store.healthy
    (refused,) = (store.spool_dir / "refused.jsonl").read_text().splitlines()
    assert json.loads(json.loads(refused)["line"])["row"]["id"] == "c"
    await store.stop()


async def test_text_no_database_takes_is_mended(store: Store) -> None:
    await store.start()
    body = {"messages": [{"role": "user", "content": "a\0b"}]}
    assert await store.append([exchange("a", prompt="a\0b \ud800 ü 👍", body=body)]) == "stored"
    row = exchanges.show(store, "a")[0]
    assert row.prompt == "a�b ? ü 👍"
    await store.stop()


async def test_ledger_rows_arrive_soon_and_at_the_latest_when_the_store_stops(store: Store) -> None:
    await store.start()
    store.enqueue(request("a"))

    def arrived() -> bool:
        with store.session() as session:
            return session.get(Request, "a") is not None

    await until(arrived)
    store.enqueue(request("b"))
    await store.stop()
    with store.session() as session:
        assert {row.id for row in session.exec(select(Request))} == {"a", "b"}


async def test_a_ledger_row_that_cannot_be_kept_does_not_take_the_others_along(
    store: Store,
) -> None:
    await store.start()
    huge = request("huge")
    huge.prompt_tokens = 10**30
    for row in (request("a"), huge, request("b")):
        store.enqueue(row)
    await store.stop()
    with store.session() as session:
        assert {row.id for row in session.exec(select(Request))} == {"a", "b"}
    assert "huge" in (store.spool_dir / "refused.jsonl").read_text()


def test_ledger_rows_that_find_no_place_are_counted(store: Store) -> None:
    row = request("a")
    for _ in range(LEDGER_ROWS + 3):
        store.enqueue(row)
    assert store.dropped == 3


async def test_rows_wait_on_disk_while_the_database_is_away(
    store: Store, server: Postgres | None
) -> None:
    await store.start()
    assert await store.append([exchange("before")]) == "stored"
    with outage(store, server):
        assert await store.append([exchange("away")]) == "spooled"
        assert not store.healthy
        store.enqueue(request("ledger"))
        started = time.monotonic()
        assert await store.append([exchange("again", "key of before")]) == "spooled"
        assert time.monotonic() - started < 1.0
        assert store.spool_rows == 2
    await until(lambda: store.healthy and store.spool_rows == 0)
    assert await store.append([exchange("after")]) == "stored"
    assert sorted(ids(store)) == ["after", "away", "before"]
    assert exchanges.show(store, "before")[0].seen == 2
    assert exchanges.show(store, "away")[1][0].state == "captured"
    await store.stop()
    with store.session() as session:
        assert session.get(Request, "ledger") is not None
    assert not list(store.spool_dir.glob("spool-*"))


async def test_rows_left_in_the_spool_are_drained_by_the_next_process(
    store: Store, server: Postgres | None
) -> None:
    await store.start()
    with outage(store, server):
        for number in range(5):
            assert await store.append([exchange(f"r{number}")]) == "spooled"
        store.enqueue(request("ledger"))
        await store.stop()
    url = store.engine.url.render_as_string(hide_password=False)
    with Store.open(url, store.spool_dir) as fresh:
        assert fresh.spool_rows == 6
        await fresh.start()
        await until(lambda: fresh.spool_rows == 0)
        await fresh.stop()
        assert sorted(ids(fresh)) == [f"r{number}" for number in range(5)]


async def test_a_row_that_can_be_written_nowhere_is_an_error(
    store: Store, server: Postgres | None
) -> None:
    store.spool_dir.write_text("a file where the spool's folder should be")
    await store.start()
    with outage(store, server), pytest.raises(StoreError, match="spool"):
        await store.append([exchange("a")])
    await until(lambda: store.healthy)
    assert await store.append([exchange("b")]) == "stored"
    await store.stop()


async def test_broken_connections_are_no_outage(store: Store, server: Postgres | None) -> None:
    await store.start()
    assert await store.append([exchange("a")]) == "stored"
    if server is not None:
        url = store.engine.url.render_as_string(hide_password=False)
        server.close_to(url, closed=True)
        server.close_to(url, closed=False)
    assert await store.append([exchange("b")]) == "stored"
    assert store.healthy
    await store.stop()


async def test_an_append_outlives_who_waits_for_it(store: Store) -> None:
    await store.start()
    waiting = asyncio.create_task(store.append([exchange("a")]))
    await asyncio.sleep(0)
    waiting.cancel()
    await store.stop()
    assert ids(store) == ["a"]
    with pytest.raises(StoreError, match="not running"):
        await store.append([exchange("b")])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_no_row_that_was_acknowledged(store: Store, seed: int) -> None:
    acknowledged: set[str] = set()
    with process("append", store, "r", 100_000) as child:
        assert child.stdout is not None
        stop = random.Random(seed).randrange(20, 400)
        for line in child.stdout:
            acknowledged.add(line.strip())
            if len(acknowledged) == stop:
                child.kill()
    assert len(acknowledged) >= stop
    with store.session() as session:
        rows = list(session.exec(select(Exchange)))
    keys = Counter(row.dedupe_key for row in rows)
    assert set(keys.values()) == {1}
    for row_id in acknowledged:
        number = int(row_id.removeprefix("r-"))
        assert keys[f"key of r-{number - number % 2}"] == 1


@pytest.mark.slow
def test_kill_9_loses_nothing_from_the_spool_either(store: Store, server: Postgres | None) -> None:
    acknowledged = []
    with process("append", store, "r", 100_000) as child:
        assert child.stdout is not None
        acknowledged.append(child.stdout.readline().strip())
        # another process keeps the SQLite file it has open, wherever it is: a lock held too long
        # is its kind of outage
        with transaction(store.engine) if server is None else outage(store, server):
            while store_rows(store.spool_dir) < 30:
                acknowledged.append(child.stdout.readline().strip())
            child.kill()
            acknowledged += [line.strip() for line in child.stdout]
    asyncio.run(drained(store))
    keys = Counter(row_key(store))
    assert set(keys.values()) == {1}
    for row_id in acknowledged:
        number = int(row_id.removeprefix("r-"))
        assert keys[f"key of r-{number - number % 2}"] == 1


def store_rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("spool-*"))


def row_key(store: Store) -> list[str]:
    with store.session() as session:
        return list(session.exec(select(Exchange.dedupe_key)))


async def drained(store: Store) -> None:
    await store.start()
    await until(lambda: not list(store.spool_dir.glob("spool-*")))
    await store.stop()


@pytest.mark.slow
def test_processes_that_send_the_same_requests_make_one_row_of_each(store: Store) -> None:
    with processes("shared", address(store), [(name, 200) for name in "abc"]) as children:
        for child in children:
            assert len(child.communicate()[0].split()) == 200
    with store.session() as session:
        rows = list(session.exec(select(Exchange)))
    assert len(rows) == 200
    assert sum(row.seen for row in rows) == 600


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://root:secret@host/db", "no such kind of database"),
        ("sqlite://", "names no file"),
        ("sqlite:////proc/nowhere/x.db", "folder cannot be made"),
        ("sqlite:////", "unable to open"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "127.0.0.1"),
        ("postgres://me:secret@/db?host=/nowhere", "/nowhere"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, url: str, says: str
) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        Store.open(url, tmp_path / "spool")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, only some notes\n" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(f"sqlite:///{path}", tmp_path / "spool")


def test_the_folder_of_a_new_database_is_made(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/some/where/retort.db", tmp_path / "spool"):
        assert (tmp_path / "some/where/retort.db").exists()


def test_sqlite_survives_the_loss_of_power(tmp_path: Path) -> None:
    """What the settings say: we cannot pull the plug here."""
    url = f"sqlite:///{tmp_path}/retort.db"
    with (
        Store.open(url, tmp_path / "spool") as store,
        store.engine.connect() as connection,
    ):
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_rows_can_be_imported_without_a_running_store(store: Store) -> None:
    assert store.insert([exchange("a"), exchange("b"), exchange("c", "key of a")]) == [
        "stored",
        "stored",
        "duplicate",
    ]
    with pytest.raises(StoreError):
        store.insert([exchange("d"), exchange("e", prompt=None)])
    assert sorted(ids(store)) == ["a", "b"]
