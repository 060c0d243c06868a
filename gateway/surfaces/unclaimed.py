"""The ledger row of traffic that no task claims, from the bytes that pass by anyway.

Nothing is held up, changed or kept: only the last bytes of an answer are remembered until it is
over, and looked into after its last byte has left.
"""

import time
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter

from gateway import metrics
from gateway.lane import Children
from gateway.money.pricing import Usage, read_usage
from gateway.parts import Parts
from gateway.storage.line import UNCLAIMED, Line, endpoint_of, milliseconds, name_of, retries_of
from gateway.wire.protocol import Incoming, Sink, json_object
from gateway.wire.streaming import EVENT_END, payload
from router.decision import Reason, Route

#: answers larger than this are not looked into, so that a big one holds up nobody
LARGEST = 262_144
#: of a stream only so much of its end is remembered, in which the usage stands
REMEMBERED = 65_536
EVENTS = "text/event-stream"
_ZLIB = {"gzip": 31, "deflate": 15}
_TEACHER = Route.TEACHER.value

_tokens = Children[str, Counter](
    lambda kind: metrics.tokens_total.labels(UNCLAIMED, _TEACHER, kind)
)
_cost = metrics.cost_usd_total.labels(UNCLAIMED, _TEACHER)
_unknown = metrics.price_unknown_total.labels("unclaimed")


class Tail:
    """The last bytes of an answer."""

    __slots__ = ("_coding", "_limit", "_parts", "_size", "_whole", "kind")

    def __init__(self) -> None:
        self.kind = ""
        self._coding = ""
        self._limit = 0
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._whole = True

    def begin(self, headers: Mapping[str, str]) -> None:
        self.kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._coding = headers.get("content-encoding", "identity").lower()
        self._limit = REMEMBERED if self.kind == EVENTS else LARGEST

    def see(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        while self._size > self._limit and len(self._parts) > 1:
            self._size -= len(self._parts.popleft())
            self._whole = False

    def answer(self) -> dict[str, Any]:
        """The JSON object that has the usage: the answer, or the last event that says any. Empty
        where there is none to be read."""
        if self._size > LARGEST:
            return {}
        data = b"".join(self._parts)
        if self._coding != "identity":
            if not self._whole or self._coding not in _ZLIB:
                return {}
            data = _inflated(data, _ZLIB[self._coding])
        if self.kind == EVENTS:
            return _last_usage(data)
        if not self._whole or self.kind != "application/json":
            return {}
        return json_object(data) or {}


def _inflated(data: bytes, window: int) -> bytes:
    """Empty where it is broken or larger than what is looked into."""
    inflater = zlib.decompressobj(window)
    try:
        out = inflater.decompress(data, LARGEST)
    except zlib.error:
        return b""
    return out if inflater.eof else b""


def _last_usage(data: bytes) -> dict[str, Any]:
    for raw in reversed(EVENT_END.split(data)):
        if b'"usage"' not in raw:
            continue
        found = json_object(payload(raw) or b"") or {}
        # the events of the Responses API carry the whole response
        answer = found.get("response", found)
        if isinstance(answer, dict) and isinstance(answer.get("usage"), dict):
            return answer
    return {}


def enter(
    parts: Parts,
    incoming: Incoming,
    sink: Sink,
    tail: Tail,
    *,
    status: int,
    stream: bool,
    asked_s: float,
) -> None:
    """Count what passed and write its row. ``asked_s``: how long the teacher was waited for."""
    duration_s = time.perf_counter() - incoming.arrived
    endpoint, first_byte_at = endpoint_of(incoming.path), sink.first_byte_at
    usage, model, usd = None, None, _free(incoming, sink, status)
    if endpoint != "other" and sink.started and sink.status < 400:
        answer = tail.answer()
        usage = read_usage(answer.get("usage"), answer.get("service_tier"))
        model = name_of(answer.get("model"))
        usd = parts.prices.unclaimed_usd(usage, model)
    _count(usage, usd)
    line = Line(
        id=incoming.id,
        task=UNCLAIMED,
        route=_TEACHER,
        reason=Reason.UNCLAIMED.value,
        endpoint=endpoint,
        model=model,
        caller=incoming.caller.id,
        retries=retries_of(incoming.headers),
        status=status,
        stream=stream or tail.kind == EVENTS,
        student_usd=0.0,
        teacher_usd=usd,
        cost_usd=usd,
        teacher_cost_usd=usd,
        duration_ms=duration_s * 1000,
        first_token_ms=milliseconds(
            None if first_byte_at is None else first_byte_at - incoming.arrived
        ),
        teacher_ms=asked_s * 1000,
        overhead_ms=max(0.0, duration_s - asked_s) * 1000,
    )
    line.count(usage)
    parts.ledger.enter(line)


def _free(incoming: Incoming, sink: Sink, status: int) -> float | None:
    """What a request costs of which no usage is known: a mere look-up, or one refused, nothing; one
    to an endpoint we cannot price, or that was given up before its answer came, nobody knows."""
    if incoming.method != "POST":
        return 0.0
    refused = sink.status >= 400 if sink.started else status not in (499, 504)
    return 0.0 if refused else None


def _count(usage: Usage | None, usd: float | None) -> None:
    if usage is not None:
        _tokens["input"].inc(usage.prompt)
        _tokens["output"].inc(usage.completion)
    if usd is None:
        _unknown.inc()
    elif usd:
        _cost.inc(usd)
