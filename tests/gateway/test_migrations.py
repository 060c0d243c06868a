"""The schema's history, on SQLite and on PostgreSQL."""

from pathlib import Path
from typing import Any

import pytest
from another_process import processes
from sqlalchemy import Connection, inspect, text
from sqlmodel import SQLModel

from gateway.errors import StoreError
from gateway.storage.database import connect
from gateway.storage.migrations import MIGRATIONS, migrate
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, utcnow  # and so every table is known


def schema(connection: Connection) -> dict[str, Any]:
    """Tables with their columns and indexes, as the database itself describes them."""
    found = inspect(connection)
    return {
        table: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"])
                for column in found.get_columns(table)
            },
            "key": found.get_pk_constraint(table)["constrained_columns"],
            "indexes": sorted(
                (index["column_names"], bool(index["unique"])) for index in found.get_indexes(table)
            ),
            "unique": sorted(
                constraint["column_names"] for constraint in found.get_unique_constraints(table)
            ),
        }
        for table in found.get_table_names()
        if table != "retort_migration"
    }


def test_the_migrations_add_up_to_the_tables(database_url: str) -> None:
    engine = connect(database_url)
    with engine.connect() as connection:
        transaction = connection.begin()
        SQLModel.metadata.create_all(connection)
        wanted = schema(connection)
        SQLModel.metadata.drop_all(connection)
        transaction.commit()
    assert migrate(engine) == [step.__name__ for step in MIGRATIONS]
    with engine.connect() as connection:
        assert schema(connection) == wanted
    engine.dispose()


def test_a_second_time_changes_nothing(database_url: str) -> None:
    engine = connect(database_url)
    assert migrate(engine)
    assert migrate(engine) == []
    engine.dispose()


@pytest.mark.slow
def test_processes_that_start_at_once_on_an_empty_database_all_open_it(
    database_url: str, tmp_path: Path
) -> None:
    with processes("open", (database_url, tmp_path / "spool"), [()] * 4) as children:
        for child in children:
            assert child.communicate()[0] == "open\n"


def test_a_database_of_a_newer_version_is_refused(database_url: str, tmp_path: Path) -> None:
    with Store.open(database_url, tmp_path / "spool") as store, store.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO retort_migration (name, at) VALUES ('m999_later', :at)"),
            {"at": utcnow()},
        )
    with pytest.raises(StoreError, match=r"newer than this Retort.*m999_later") as caught:
        Store.open(database_url, tmp_path / "spool")
    assert "\n" not in str(caught.value)


def test_the_database_itself_allows_one_champion_per_task(store: Store) -> None:
    def bundle(name: str, task: str) -> Bundle:
        return Bundle(id=name, task=task, at=utcnow(), state="champion", path="/", adapter=name)

    store.insert([bundle("a", "one"), bundle("b", "two")])
    with pytest.raises(StoreError), store.transaction() as session:
        session.add(bundle("c", "one"))
