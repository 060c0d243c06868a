"""Rows on local disk: whole, in order, and each handed out once."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_process import exchange

from gateway.errors import StoreError
from gateway.storage.spool import Spool
from gateway.storage.tables import Exchange


def read(spool: Spool) -> list[Exchange]:
    """Drain everything."""
    found: list[Exchange] = []
    for segment in spool.segments():
        for rows in segment.chunks(3):
            found += [row for row in rows if isinstance(row, Exchange)]
    return found


def ids(spool: Spool) -> list[str]:
    return [row.id for row in read(spool)]


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """A full disk, as this process sees it: no file grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_rows_come_back_whole_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    row = exchange("a", prompt="ü 👍\n\0", score=0.25, body={"messages": [{"content": [1, None]}]})
    spool.append([row])
    for number in range(10):
        spool.append([exchange(f"r{number}")])
    assert spool.rows == 11
    rows = read(spool)
    assert rows[0] == row
    assert [one.id for one in rows[1:]] == [f"r{number}" for number in range(10)]
    assert spool.rows == 0
    assert not list((tmp_path / "spool").iterdir())


def test_a_segment_drained_halfway_is_drained_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([exchange(f"r{number}") for number in range(5)])
    for segment in spool.segments():
        next(segment.chunks(2))
    assert spool.rows == 5
    assert ids(spool) == [f"r{number}" for number in range(5)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([exchange("a"), exchange("b")])
    spool.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert ids(Spool(tmp_path)) == ["a"]


def test_an_unreadable_line_is_put_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([exchange("a")])
    spool.close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(b'\0\0garbage\n{"table":"exchange","row":{"id":1}}\n' + path.read_bytes())
    assert ids(Spool(tmp_path)) == ["a"]
    assert len((tmp_path / "refused.jsonl").read_text().splitlines()) == 2


def test_another_process_leaves_a_segment_alone_while_it_is_written(tmp_path: Path) -> None:
    mine, yours = Spool(tmp_path), Spool(tmp_path)
    mine.append([exchange("a")])
    assert ids(yours) == []
    assert yours.rows == 1
    mine.close()
    assert ids(yours) == ["a"]
    mine.look()
    assert mine.rows == 0


def test_a_full_disk_keeps_what_was_written_and_takes_nothing_by_halves(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([exchange("a")])
    (path,) = tmp_path.iterdir()
    with files_at_most(path.stat().st_size + 40), pytest.raises(StoreError, match=str(tmp_path)):
        spool.append([exchange("b"), exchange("c")])
    spool.append([exchange("d")])
    assert ids(spool) == ["a", "d"]


def test_a_long_outage_fills_several_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=1000)
    for number in range(9):
        spool.append([exchange(f"r{number}")])
    assert len(list(tmp_path.iterdir())) > 3
    assert ids(spool) == [f"r{number}" for number in range(9)]
