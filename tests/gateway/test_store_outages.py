"""The database is away, and the spool too: what clients get, and what becomes of the rows."""

from pathlib import Path

import pytest
from fake_openai import FakeOpenAI, Reply
from outage import outage
from postgres import Postgres
from running_gateway import RunningGateway, wait_until
from triage import BODY, configuration

from gateway.storage.store import Store

CHAT = "/v1/chat/completions"


@pytest.fixture
def server(request: pytest.FixtureRequest, store: Store) -> Postgres | None:
    """The PostgreSQL behind ``store``, where it is one."""
    if store.engine.dialect.name == "sqlite":
        return None
    found: Postgres = request.getfixturevalue("postgres_server")
    return found


def test_database_outage_is_served_through_and_its_rows_come_later(
    store: Store,
    server: Postgres | None,
    tmp_path: Path,
    teacher: FakeOpenAI,
    student: FakeOpenAI,
) -> None:
    config = configuration(tmp_path / "state", (teacher, student), {})
    with RunningGateway(config, store=store) as gateway:
        with outage(store, server):
            for number in range(3):
                body = BODY | {"user": str(number), "stream": number == 1}
                status, _, data = gateway.send("POST", CHAT, body)
                assert status == 200 and b"parcel" in data
            code, state = gateway.json("/readyz")
            assert (code, state["ready"], state["store"]["healthy"]) == (200, True, False)
            assert "database is away" in state["problems"]["store"]
            assert state["store"]["spool_rows"] >= 3
        wait_until(lambda: len(gateway.exchanges()) == 3, 20)
        wait_until(lambda: "store" not in gateway.json("/readyz")[1]["problems"])
        assert len(gateway.ledger(3)) == 3


def test_a_row_that_can_be_kept_nowhere_is_counted_and_the_answer_served(
    store: Store,
    server: Postgres | None,
    tmp_path: Path,
    teacher: FakeOpenAI,
    student: FakeOpenAI,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.spool_dir.write_text("a file where the spool's folder should be")
    teacher.reply = Reply(text="parcel")
    config = configuration(tmp_path / "state", (teacher, student), {})
    with RunningGateway(config, store=store) as gateway:
        line = 'retort_exchanges_total{outcome="lost",task="triage"}'
        lost = gateway.metric(line)
        with outage(store, server):
            status, _, data = gateway.send("POST", CHAT, BODY)
            assert status == 200 and b"parcel" in data
            assert gateway.metric(line) == lost + 1
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "exchange lost" in [record.message for record in errors]
        wait_until(lambda: gateway.json("/readyz")[1]["store"]["healthy"])
        gateway.send("POST", CHAT, BODY)
        assert gateway.exchange().teacher_text == "parcel"
