"""The store: sessions for whoever reads and decides, a writer for rows that must not be lost."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Engine
from sqlmodel import Session

from gateway.errors import StoreError
from gateway.storage.database import begin_writing, connect, refused_in_one_line, transaction
from gateway.storage.line import Row
from gateway.storage.migrations import migrate
from gateway.storage.rows import Outcome, insert_rows
from gateway.storage.spool import Spool
from gateway.storage.writer import Job, Kept, Writer


class Store:
    """Open it with `Store.open`. Sessions work at once; `append` and `enqueue` need `start`."""

    def __init__(self, engine: Engine, spool: Spool, commit_ms: float) -> None:
        self.engine = engine
        self._spool = spool
        self._writer = Writer(engine, spool, commit_ms / 1000)

    @classmethod
    def open(cls, url: str, spool_dir: Path, commit_ms: float = 3.0) -> Self:
        """Connect and migrate. Raises StoreError in one line.

        An idle store commits a row at once; ``commit_ms`` is the shortest time between the
        beginnings of two commits, so no row waits longer than that for company.
        """
        engine = connect(url)
        try:
            migrate(engine)
            return cls(engine, Spool(spool_dir), commit_ms)
        except BaseException:
            engine.dispose()
            raise

    @property
    def healthy(self) -> bool:
        """False while rows go to the spool."""
        return not self._writer.away

    @property
    def dropped(self) -> int:
        """Ledger rows thrown away because they could not be written in time."""
        return self._writer.dropped

    @property
    def spool_dir(self) -> Path:
        return self._spool.folder

    @property
    def spool_rows(self) -> int:
        """Rows on disk waiting for the database, those of other processes included."""
        return self._spool.rows

    def session(self) -> Session:
        """For reading, and for changes that do not depend on what was read before."""
        return Session(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that may read and then write what follows from it; commits at the end.
        Raises StoreError."""
        with refused_in_one_line(self.engine), self.session() as session:
            begin_writing(session.connection())
            yield session
            session.commit()

    def insert(self, rows: Sequence[Row]) -> list[Outcome]:
        """Insert rows now, all or none, exactly as `append` would. Raises StoreError."""
        with refused_in_one_line(self.engine), transaction(self.engine) as connection:
            return insert_rows(connection, rows)

    async def append(self, rows: Sequence[Row]) -> Kept:
        """Returns when the rows are durable: ``stored``; ``duplicate`` where every exchange among
        them repeats a known request; ``spooled`` while the database is away.

        Raises StoreError where they could be written nowhere. Cancelling does not take them back.
        """
        if not self._writer.running:
            raise StoreError("the store is not running")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Kept] = loop.create_future()
        self._writer.append(Job(rows, loop, done))
        return await done

    def enqueue(self, row: Row) -> None:
        """Write a row soon. Never waits; rows beyond what may wait are dropped and counted."""
        self._writer.enqueue(row)

    async def start(self) -> None:
        self._writer.start()

    async def stop(self) -> None:
        """Write what is queued, then close."""
        await self._writer.stop()
        self.close()

    def close(self) -> None:
        self._spool.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
