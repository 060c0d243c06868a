"""Events arrive in pieces of any size."""

from collections.abc import AsyncIterator

import pytest

from gateway.wire.streaming import events, payload


class Arriving:
    """A response whose bytes come in pieces of this size."""

    def __init__(self, raw: bytes, size: int) -> None:
        self._raw = raw
        self._size = size
        self.content = self

    async def iter_any(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._raw), self._size):
            yield self._raw[start : start + self._size]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_events_are_the_same_however_they_arrive(newline: bytes) -> None:
    blank = newline * 2
    raw = b": hello" + blank + b'data: {"a": 1}' + blank + b"data:x" + newline + b"data: y" + blank
    raw += b"data: [DONE]" + blank
    for size in range(1, len(raw) + 1):
        found = [event async for event in events(Arriving(raw, size))]  # type: ignore[arg-type]
        assert b"".join(found) == raw
        assert [payload(event) for event in found] == [None, b'{"a": 1}', b"x\ny", b"[DONE]"]


async def test_an_unfinished_last_event_is_not_lost() -> None:
    arriving = Arriving(b"data: 1\n\ndata: 2", 3)
    found = [event async for event in events(arriving)]  # type: ignore[arg-type]
    assert [payload(event) for event in found] == [b"1", b"2"]
