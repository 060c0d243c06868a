"""The teacher's part of a request: its answer relayed, and written down before its last byte."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import orjson

from gateway.audits.teacher import answer_text, teacher_body
from gateway.draft import Draft
from gateway.errors import GatewayError, UpstreamTimeout
from gateway.first_try import ask_in_shadow, score_after
from gateway.money.pricing import read_usage
from gateway.parts import Parts
from gateway.trip import Trip
from gateway.wire.protocol import EVENTS, JSON, Headers, Sink, encode_headers, number
from gateway.wire.streaming import TeacherStream
from router.decision import Reason
from router.threshold import REJECTED

#: nothing may be served, and the draft is made beside the teacher's answer: what it is worth counts
UNSERVED = frozenset({Reason.SHADOW, Reason.NOT_CERTIFIED, Reason.ALARM})
#: how long a shadow draft may hold up a complete answer of the teacher
SHADOW_WAIT_S = 0.25

Shadow = asyncio.Task[Draft | None] | None


async def ask_teacher(parts: Parts, trip: Trip, sink: Sink) -> None:
    """Its answer, to the client and into the row, where the budgets allow it. Raises
    GatewayError."""
    incoming = trip.incoming
    hold = await parts.budgets.hold(incoming.raw, task=trip.lane.task, caller=incoming.caller)
    try:
        await relay(parts, trip, sink)
    except GatewayError as error:
        lost = trip.asking.lost or isinstance(error, UpstreamTimeout)
        if hold is not None and not sink.started and not lost:
            hold.settle(0.0)
        raise
    finally:
        if hold is not None:
            hold.settle(trip.teacher_usd if trip.teacher_asked else None)


async def relay(parts: Parts, trip: Trip, sink: Sink) -> None:
    # a draft that the teacher stands in for is still a label
    shadow: Shadow = trip.drafting
    reason = trip.decision.reason
    if reason is Reason.SHADOW or (reason in UNSERVED and trip.sampled):
        shadow = asyncio.create_task(ask_in_shadow(parts, trip))
    try:
        if trip.chat.stream:
            await relay_stream(parts, trip, sink, shadow)
        else:
            await relay_whole(parts, trip, sink, shadow)
    finally:
        if shadow is not None:
            shadow.cancel()
            with suppress(asyncio.CancelledError):
                await shadow


async def relay_whole(parts: Parts, trip: Trip, sink: Sink, shadow: Shadow) -> None:
    data, headers = teacher_request(parts, trip)
    started = time.perf_counter()
    try:
        reply = await parts.teacher.ask(data, headers, trip.asking)
    finally:
        trip.teacher_s = time.perf_counter() - started
        trip.incoming.waited_s += trip.teacher_s
    trip.teacher_asked = True
    trip.teacher_text = answer_text(reply.body)
    trip.teacher_model = reply.body.get("model")
    trip.answer_id = reply.body.get("id")
    trip.teacher_usage = read_usage(reply.body.get("usage"), reply.body.get("service_tier"))
    await parts.ledger.outlive(record(parts, trip, shadow))
    out = [JSON, *route_headers(trip), *encode_headers(reply.headers.items())]
    await sink.whole(200, reply.data, out)


async def relay_stream(parts: Parts, trip: Trip, sink: Sink, shadow: Shadow) -> None:
    chat = trip.chat
    choices = chat.body.get("n")
    begin = partial(
        TeacherStream.begin,
        choices=choices if isinstance(choices, int) else 1,
        hide_usage=not chat.usage,
    )
    data, headers = teacher_request(parts, trip)
    started = time.perf_counter()
    async with parts.teacher.stream(data, headers, begin, trip.asking) as stream:
        trip.teacher_model = stream.model
        try:
            out = [*EVENTS, *route_headers(trip), *encode_headers(stream.headers.items())]
            await sink.start(200, out)
            async for part in stream.body():
                await sink.write(part)
        finally:
            trip.teacher_s = time.perf_counter() - started
            trip.incoming.waited_s += trip.teacher_s
            if not stream.complete:
                # it has cost something by now, and the usage comes last
                trip.asking.lost += 1
            else:
                # also where the client left while only the usage was still to come
                trip.teacher_asked = True
                trip.teacher_text = stream.text or None
                if stream.finish_reason == "content_filter":
                    trip.teacher_text = None
                trip.teacher_model, trip.teacher_usage = stream.model, stream.usage
                trip.answer_id = stream.id
                await parts.ledger.outlive(record(parts, trip, shadow))
    await sink.end(stream.tail)


def teacher_request(parts: Parts, trip: Trip) -> tuple[bytes, dict[str, str]]:
    """The client's own bytes, unless the model has another name here or the usage of a stream
    must be asked for."""
    chat, model = trip.chat, parts.config.teacher.model
    headers = parts.teacher.headers(trip.incoming.headers)
    headers["content-type"] = "application/json"
    if (model is None or model == chat.model) and (chat.usage or not chat.stream):
        return trip.incoming.raw, headers
    body = teacher_body(chat, model)
    if chat.stream:
        options = body.get("stream_options") or {}
        body["stream_options"] = {**options, "include_usage": True}
    return orjson.dumps(body), headers


async def record(parts: Parts, trip: Trip, shadow: Shadow) -> None:
    """The teacher has answered: write it down before the client has the last byte."""
    lane = trip.lane
    if shadow is not None and trip.live is not None:
        await asyncio.wait({shadow}, timeout=SHADOW_WAIT_S)
        trip.draft = shadow.result() if shadow.done() else None
        if trip.draft is not None and trip.drafting is None:
            seen = score_after(trip, trip.live, trip.draft, trip.decision)
            never = seen.reason is Reason.INVALID or trip.check is not None
            trip.decision = replace(trip.decision, score=REJECTED if never else seen.score)
    lane.estimate.learn(len(trip.incoming.raw), trip.teacher_text or "", trip.teacher_usage)
    if trip.keeps_text:
        await parts.ledger.keep(lane, trip.exchange())


def route_headers(trip: Trip) -> Headers:
    decision = trip.decision
    headers: Headers = [
        (b"x-retort-route", decision.route.value.encode()),
        (b"x-retort-reason", decision.reason.value.encode()),
    ]
    if trip.live is not None:
        headers.append((b"x-retort-bundle", trip.live.bundle.id.encode()))
    if trip.check is not None and decision.reason not in UNSERVED:
        headers.append((b"x-retort-check", trip.check.encode()))
    if not trip.chat.stream and (cost := trip.cost_usd) is not None:
        headers.append((b"x-retort-cost-usd", number(cost)))
    return headers
