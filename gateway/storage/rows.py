"""Rows into tables, so that doing it twice is the same as doing it once."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Connection, Table, case, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from gateway.errors import StoreError
from gateway.storage.line import Row
from gateway.storage.tables import Exchange, ExchangeEvent, utcnow

Outcome = Literal["stored", "duplicate"]
Values = dict[str, Any]

#: what an audit knows of a row that feedback made
_AUDITED = (
    *("dedupe_key", "teacher_text", "teacher_model", "student_text", "score", "p_ood"),
    *("sampled", "propensity", "bundle", "signals"),
)
_exchange: Table = Exchange.metadata.tables["exchange"]
_event: Table = ExchangeEvent.metadata.tables["exchange_event"]


def insert_rows(connection: Connection, rows: Sequence[Row]) -> list[Outcome]:
    """Insert them all; a row that is there already is left alone. One outcome per row.

    An exchange that repeats a request we have (same ``dedupe_key``, another id) is a duplicate:
    it is counted in ``seen``, and lends its teacher's answer to a row that has none.

    Raises StoreError where a row can never be inserted, SQLAlchemyError where the database says no.
    """
    try:
        return _insert_all(connection, rows)
    except OverflowError as error:
        raise StoreError(f"a number the database cannot hold ({error})") from error


def _insert_all(connection: Connection, rows: Sequence[Row]) -> list[Outcome]:
    outcomes: list[Outcome] = ["stored"] * len(rows)
    by_table: dict[str, list[Values]] = defaultdict(list)
    exchanges: list[tuple[int, Values]] = []
    for place, row in enumerate(rows):
        values = _values(row)
        if isinstance(row, Exchange):
            exchanges.append((place, values))
        else:
            by_table[str(row.__tablename__)].append(values)
    for name, values_list in by_table.items():
        connection.execute(_insert(connection, SQLModel.metadata.tables[name]), values_list)
    # one order for every process: two that insert the same keys must not wait for each other
    exchanges.sort(key=lambda item: str(item[1]["dedupe_key"]))
    for place in _insert_exchanges(connection, exchanges):
        outcomes[place] = "duplicate"
    return outcomes


def _insert_exchanges(connection: Connection, rows: list[tuple[int, Values]]) -> list[int]:
    """Returns the places of the duplicates."""
    if not rows:
        return []
    statement = _insert(connection, _exchange).returning(_exchange.c.id)
    inserted = set(connection.scalars(statement, [values for _, values in rows]))
    events = []
    duplicates = []
    for place, values in rows:
        if values["id"] in inserted:
            inserted.remove(values["id"])
            event = {"exchange_id": values["id"], "at": values["at"]}
            events.append({**event, "state": values["state"], "detail": ""})
        elif _repeat(connection, values):
            duplicates.append(place)
    if events:
        connection.execute(_event.insert(), events)
    return duplicates


def _repeat(connection: Connection, values: Values) -> bool:
    """Count a repeated request. False: it is the very same row, written twice."""
    table = _exchange.c
    first_answer = (table.teacher_text.is_(None)) & (values["teacher_text"] is not None)
    statement = (
        update(_exchange)
        .where(table.dedupe_key == values["dedupe_key"])
        .values(
            seen=table.seen + case((table.id == values["id"], 0), else_=values["seen"]),
            teacher_model=case((first_answer, values["teacher_model"]), else_=table.teacher_model),
            teacher_text=func.coalesce(table.teacher_text, values["teacher_text"]),
        )
        .returning(table.id)
    )
    known = connection.execute(statement).scalar()
    if known is None:
        return _late(connection, values)
    return bool(known != values["id"])


def _late(connection: Connection, values: Values) -> bool:
    """An audit that comes home after feedback made the row (it then fills it in), or after the
    row was erased (it then stays so)."""
    row_id = values["id"]
    mine = _exchange.c.id == row_id
    key = connection.scalar(select(_exchange.c.dedupe_key).where(mine))
    if key == f"erased:{row_id}":
        return True
    if key != f"feedback:{row_id}":
        raise StoreError(f"{row_id}: another exchange has this id")
    connection.execute(
        update(_exchange).where(mine).values({name: values[name] for name in _AUDITED})
    )
    return False


def _insert(connection: Connection, table: Table) -> Any:
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def _values(row: Row) -> Values:
    table = SQLModel.metadata.tables[str(row.__tablename__)]
    values = {column.name: storable(getattr(row, column.name)) for column in table.columns}
    if values.get("id", "") is None:
        del values["id"]  # the database counts these
    if values.get("written_at", "") is None:
        values["written_at"] = utcnow()
    return values


def storable(value: Any) -> Any:
    """PostgreSQL's text holds no NUL, and no encoding holds half of a surrogate pair; a client
    can send both."""
    if type(value) is str and not value.isascii():
        value = value.encode("utf-8", "replace").decode()
    if type(value) is str and "\0" in value:
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value
