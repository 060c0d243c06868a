"""Answers kept in this process's memory, one store per task: least recently used, with an age.

The key says everything an answer depends on, whose it is included, so that an entry can be found
by nobody else and not after the bundle has changed or an alarm was raised.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from gateway import metrics
from gateway.config import CacheSection
from gateway.money.pricing import Usage
from router.decision import Route

#: of the request's fields, those that change how an answer is sent or filed, not what it says
UNSAID = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
#: what an entry takes beside its answer (measured: 455 bytes)
OVERHEAD_BYTES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A complete answer. ``data`` holds it as JSON: ``head``, ``message`` and ``usage``;
    ``teacher_usd`` is what the teacher took for it, or would have."""

    data: bytes
    usage: Usage | None
    route: Route
    teacher_usd: float | None

    @property
    def size(self) -> int:
        return len(self.data) + OVERHEAD_BYTES


class Cache:
    """Used from one event loop. ``clock`` in seconds."""

    def __init__(
        self, task: str, settings: CacheSection, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = settings.ttl_s
        self._max_entries = settings.max_entries
        self._max_bytes = settings.max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, Entry]] = OrderedDict()
        self.bytes = 0
        self._show_entries = metrics.cache_entries.labels(task)
        self._show_bytes = metrics.cache_bytes.labels(task)
        self._show()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[Entry, float] | None:
        """The entry and its age in seconds; None where there is none that is young enough."""
        found = self._entries.get(key)
        if found is None:
            return None
        at, entry = found
        age_s = self._clock() - at
        if age_s >= self._ttl_s:
            self._drop(key)
            self._show()
            return None
        self._entries.move_to_end(key)
        return entry, age_s

    def put(self, key: bytes, entry: Entry) -> None:
        """In place of what was there. An entry larger than the whole cache is not kept."""
        self._drop(key)
        if entry.size <= self._max_bytes:
            self._entries[key] = (self._clock(), entry)
            self.bytes += entry.size
            while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))
        self._show()

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= found[1].size

    def _show(self) -> None:
        self._show_entries.set(len(self._entries))
        self._show_bytes.set(self.bytes)


def key_of(
    body: Mapping[str, Any],
    *,
    whose: tuple[str | None, ...],
    task: str,
    bundle: str | None,
    epoch: int | None,
) -> bytes | None:
    """The same for the same request of the same caller to the same student; None where the body
    is nested too deeply to be written out."""
    said = {name: value for name, value in body.items() if name not in UNSAID}
    try:
        data = orjson.dumps([whose, task, bundle, epoch, said], option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None
    return sha256(data).digest()
