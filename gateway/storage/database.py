"""Open a database by URL: SQLite by default, PostgreSQL for several gateways.

SQLite runs in WAL mode with ``synchronous=FULL``. WAL alone survives the death of the process; the
rows of the retraining queue must also survive the loss of power, and in WAL mode only FULL syncs
the log at each commit (NORMAL syncs it at checkpoints). Group commit makes that affordable.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from gateway.errors import StoreError

#: how long a SQLite writer waits for another process to commit
BUSY_S = 5.0
CONNECT_S = 3
#: how long a PostgreSQL statement waits for a lock: answers wait behind the writer's
LOCK_S = 5
#: a PostgreSQL that stops acknowledging packets is given up after this long
SILENCE_S = 8


def connect(url: str) -> Engine:
    """An engine for ``url``. Raises StoreError where the URL is bad or the database unreachable."""
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    engine = create_engine(
        parsed,
        pool_size=5,
        max_overflow=20,
        pool_pre_ping=True,  # a restarted server is no reason for whoever reads next to fail
        connect_args={
            "connect_timeout": CONNECT_S,
            "keepalives_idle": SILENCE_S,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "tcp_user_timeout": SILENCE_S * 1000,
            "application_name": "retort",
            "options": f"-c lock_timeout={LOCK_S}s",
        },
    )
    with refused_in_one_line(engine):
        engine.connect().close()
    return engine


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # the text itself may hold a password: it is not repeated
        raise StoreError(
            "the database URL cannot be read; expected sqlite:///FILE or"
            " postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise StoreError(
            f"{parsed.drivername}: no such kind of database; expected sqlite or postgresql+psycopg"
        )
    return parsed


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise StoreError("sqlite:// names no file; expected sqlite:///FILE")
    path = Path(url.database).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: its folder cannot be made ({error.strerror})") from None
    # IMMEDIATE: the driver takes the write lock before a transaction's first change. A deferred
    # one that reads first fails at once ("database is locked") when another process wrote since.
    engine = create_engine(
        url.set(database=str(path)),
        pool_size=5,
        max_overflow=20,
        connect_args={"timeout": BUSY_S, "isolation_level": "IMMEDIATE"},
    )
    event.listen(engine, "connect", _pragmas)
    with refused_in_one_line(engine):
        _write_ahead(engine)
    return engine


def _pragmas(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _write_ahead(engine: Engine) -> None:
    """The mode stays in the file. Changing it does not wait for other processes: try again."""
    give_up = time.monotonic() + BUSY_S
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            return
        except DBAPIError as error:
            if "locked" not in str(error.orig) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One that may read before it writes: SQLite takes its write lock at the start."""
    with engine.begin() as connection:
        begin_writing(connection)
        yield connection


def begin_writing(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def refused_in_one_line(engine: Engine) -> Iterator[None]:
    """Turn what the database says into a StoreError of one line, without the password."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(f"{shown(engine)}: {one_line(error)}") from error


def shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


def one_line(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(error).__name__
