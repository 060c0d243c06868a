"""Rows on local disk while the database is away.

A folder of segments, one JSON row per line, each line synced before anybody relies on it. A
segment is locked by the process that writes it, and by whoever drains it; the lock dies with the
process, so what a killed gateway left is drained by the next one.
"""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlmodel import SQLModel

from gateway.errors import StoreError
from gateway.ids import new_id
from gateway.storage.line import Row
from gateway.storage.tables import (
    Exchange,
    ExchangeEvent,
    PendingAudit,
    Request,
    StoredCompletion,
    StoredResponse,
)

logger = logging.getLogger(__name__)

#: a segment is closed at this size, so that draining shows progress on disk
SEGMENT_BYTES = 16_000_000
MODELS: dict[str, type[SQLModel]] = {
    str(model.__tablename__): model
    for model in (
        Exchange,
        ExchangeEvent,
        Request,
        StoredCompletion,
        StoredResponse,
        PendingAudit,
    )
}


class Spool:
    """One process's end of the folder. Its methods may be called from several threads."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._lines: dict[Path, int] = {}
        self._look()

    @property
    def rows(self) -> int:
        """Rows waiting, those other processes left or are writing included."""
        return sum(list(self._lines.values()))

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows down; they are on the disk when this returns. Raises StoreError, and then
        none of them is."""
        lines = b"".join(_line(row) for row in rows)
        with self._lock:
            try:
                file = self._file or self._open()
                size = file.tell()
                try:
                    written = 0
                    while written < len(lines):  # a disk almost full takes a part, without error
                        written += file.write(lines[written:])
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), size)
                    file.seek(size)
                    raise
            except OSError as error:
                raise StoreError(f"{self.folder}: {error.strerror or error}") from error
            path = Path(file.name)
            self._lines[path] = self._lines.get(path, 0) + len(rows)
            if file.tell() >= self._segment_bytes:
                self._close_segment()

    def refuse(self, row: Row, reason: str) -> None:
        """Keep a row the database will never take where a person can find it."""
        _refuse(self.folder, _line(row), reason)

    def segments(self) -> Iterator["Segment"]:
        """Every segment nobody else holds, oldest first, locked while it is handed out."""
        with self._lock:
            self._close_segment()
            self._look()
        for path in sorted(self._lines):
            with _locked(path) as file:
                if file is None:
                    continue
                segment = Segment(path, file)
                yield segment
                if segment.drained:
                    path.unlink()
                    _sync_folder(self.folder)
                    with self._lock:
                        self._lines.pop(path, None)

    def close(self) -> None:
        with self._lock:
            self._close_segment()

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / f"{new_id('spool')}.jsonl").open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        _sync_folder(self.folder)
        return self._file

    def _close_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def look(self) -> None:
        """Notice what other processes left or drained."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        found = set(self.folder.glob("spool-*.jsonl"))
        self._lines = {path: lines for path, lines in self._lines.items() if path in found}
        for path in found - set(self._lines):
            self._lines[path] = path.read_bytes().count(b"\n")


class Segment:
    """A closed segment, read in chunks."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self.drained = False

    def chunks(self, size: int) -> Iterator[list[SQLModel]]:
        """Its rows in the order they were written. It counts as drained when this is exhausted."""
        rows: list[SQLModel] = []
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                # the process died while writing it: nobody was told it is safe
                logger.warning("torn line in the spool", extra={"file": str(self.path)})
                break
            row = _row(line)
            if row is None:
                extra = {"file": str(self.path), "line": number}
                logger.error("unreadable line in the spool", extra=extra)
                _refuse(self.path.parent, line, "unreadable")
                continue
            rows.append(row)
            if len(rows) == size:
                yield rows
                rows = []
        if rows:
            yield rows
        self.drained = True


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes] | None]:
    """The file, locked; None where another process has it or drained it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file if os.fstat(file.fileno()).st_nlink else None


def _refuse(folder: Path, line: bytes, reason: str) -> None:
    entry = {"reason": reason, "line": line.decode("utf-8", "replace").rstrip("\n")}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "refused.jsonl").open("ab") as file:
        file.write(_json(entry))
        file.flush()
        os.fsync(file.fileno())


def _line(row: Row) -> bytes:
    names = SQLModel.metadata.tables[str(row.__tablename__)].columns.keys()
    values = {name: _plain(getattr(row, name)) for name in names}
    return _json({"table": row.__tablename__, "row": values})


def _json(entry: dict[str, Any]) -> bytes:
    # the standard library's: it takes integers of any size
    return json.dumps(entry, default=datetime.isoformat).encode() + b"\n"


def _plain(value: Any) -> Any:
    """No model takes half a surrogate pair; the database layer replaces it in the same way."""
    if type(value) is str and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return value


def _row(line: bytes) -> SQLModel | None:
    try:
        entry = json.loads(line)
        return MODELS[entry["table"]].model_validate(entry["row"])
    except (ValueError, KeyError, TypeError):
        return None


def _sync_folder(folder: Path) -> None:
    """A new or removed name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
