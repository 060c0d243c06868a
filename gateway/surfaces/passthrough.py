"""Traffic no task claims: to the teacher and back, byte for byte.

Only a stream that ends too early gets something of ours: an error event, for no client notices
that its last events are missing.
"""

import time
from collections.abc import Mapping

import aiohttp

from gateway import metrics
from gateway.access.keys import UNCLAIMED
from gateway.access.metering import Meter, metered
from gateway.errors import GatewayError
from gateway.parts import Parts
from gateway.surfaces.unclaimed import Tail, enter
from gateway.upstreams.refusals import is_envelope, refused
from gateway.wire.ending import Ending, may_stream
from gateway.wire.protocol import HOP_BY_HOP, Headers, Incoming, Sink, encode_headers
from gateway.wire.watched import CHAT, Watched
from router.decision import Reason, Route

#: the gateway and its server set their own
_OURS = HOP_BY_HOP | {"x-request-id", "date", "server"}
_TASK = "-"
_ROUTE = Route.TEACHER.value
_WHY: Headers = [
    (b"x-retort-route", _ROUTE.encode()),
    (b"x-retort-reason", Reason.UNCLAIMED.value.encode()),
]
#: an error body larger than this is no error body
_ERROR_BYTES = 1_000_000


class Broken(Exception):
    """The answer broke off where no error can be told any more: the connection must be cut."""


async def pass_through(
    parts: Parts, incoming: Incoming, sink: Sink, *, stream: bool = False
) -> None:
    """Raises GatewayError, or Broken."""
    incoming.caller.require(UNCLAIMED)
    status, tail, asked = 499, Tail(), time.perf_counter()
    meter = await metered(parts.budgets, parts.prices.budgeted_usd, incoming)
    try:
        await _relay(parts, incoming, sink, tail, meter, stream=stream)
        status = sink.status
    except GatewayError as error:
        status = error.status
        raise
    except Broken:
        status = 502
        raise
    finally:
        if meter is not None:
            meter.settle(incoming, status)
        duration_s = time.perf_counter() - incoming.arrived
        labels = (Reason.UNCLAIMED.value, str(status), "true" if stream else "false")
        metrics.requests_total.labels(_TASK, _ROUTE, *labels).inc()
        metrics.request_seconds.labels(_TASK, _ROUTE).observe(duration_s)
        asked_s = time.perf_counter() - asked
        enter(parts, incoming, sink, tail, status=status, stream=stream, asked_s=asked_s)


async def _relay(
    parts: Parts, incoming: Incoming, sink: Sink, tail: Tail, meter: Meter | None, *, stream: bool
) -> None:
    path = path_query = incoming.path.removeprefix("/v1")
    if incoming.query:
        path_query += "?" + incoming.query
    headers = parts.teacher.headers(incoming.headers)
    if stream or meter is not None or may_stream(incoming.raw):
        # or it could not be seen where it begins, whether it ends, and what it used
        headers["accept-encoding"] = "identity"
    elif "accept-encoding" in incoming.headers:
        headers["accept-encoding"] = incoming.headers["accept-encoding"]
    watched = incoming.method == "POST" and path in CHAT
    begin = Watched.begin if watched else _untouched
    events, ending = False, Ending(incoming.path)
    try:
        async with parts.teacher.relay(
            incoming.method,
            path_query,
            incoming.raw,
            headers,
            begin,
            stream=stream,
            elsewhere=watched,
        ) as (response, answer):
            shown = [*_WHY, *encode_headers(_shown(response.headers))]
            if response.status >= 400 and "content-encoding" not in response.headers:
                raw = await response.content.read(_ERROR_BYTES)
                if not is_envelope(raw):
                    raise refused(response, raw)
                out = [(name, value) for name, value in shown if name != b"content-length"]
                await sink.whole(response.status, raw, out)
                return
            tail.begin(response.headers)
            plain = "content-encoding" not in response.headers
            events = plain and response.content_type == "text/event-stream"
            if events:
                # it may become longer by an error
                shown = [(name, value) for name, value in shown if name != b"content-length"]
            await sink.start(response.status, shown)
            pieces = response.content.iter_any() if answer is None else answer.parts()
            async for part in pieces:
                if meter is not None:
                    meter.feed(part, events=events)
                await sink.write(part)
                tail.see(part)
                if events:
                    ending.watch(part)
            if events:
                ending.check()
        await sink.end()
    except GatewayError:
        if sink.started and not events:
            raise Broken from None
        if sink.started and not ending.between_events:
            await sink.write(b"\n\n")
        raise


async def _untouched(response: aiohttp.ClientResponse) -> Watched | None:
    return None


def _shown(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers.items() if name.lower() not in _OURS]
