"""A chat completion of a task, from its claim to its answer and its row. Read `answer()`."""

import asyncio
from dataclasses import replace

import orjson

from gateway.draft import Draft, shown, shown_end, shown_stream
from gateway.errors import GatewayError
from gateway.fallback import ask_teacher, route_headers
from gateway.first_try import (
    fails_check,
    fits,
    forget_verdict,
    score_after,
    score_before,
    settled,
)
from gateway.parts import Parts
from gateway.release import ask_watched, check_end, ends_well, wants_json
from gateway.trip import Trip
from gateway.wire.protocol import EVENTS, JSON, Sink, student_can
from router.decision import Decision, Reason, Route
from router.threshold import REJECTED


async def answer(parts: Parts, trip: Trip, sink: Sink) -> None:
    """Decide, ask the student, check its draft, fall back to the teacher, record. Raises
    GatewayError where nobody could answer."""
    trip.decision = before(trip)
    try:
        if trip.decision.route is Route.STUDENT:
            trip.draft = await ask_watched(parts, trip, sink)
            if trip.released:
                promise(parts, trip)
                check_end(trip)
            else:
                trip.decision = await settled(trip)
                if trip.decision.route is Route.STUDENT:
                    trip.decision = after(trip)
                if trip.decision.route is Route.STUDENT:
                    trip.decision = await checked(trip)
        if trip.decision.route is Route.TEACHER:
            try:
                await ask_teacher(parts, trip, sink)
                return
            except GatewayError as error:
                if sink.started or not may_degrade(trip, error) or await fails_check(trip):
                    raise
                trip.decision = replace(trip.decision, route=Route.STUDENT, reason=Reason.DEGRADED)
                if trip.keeps_text:
                    await parts.ledger.outlive(parts.ledger.keep(trip.lane, trip.exchange()))
        promise(parts, trip)
        await serve(trip, sink)
    except GatewayError as error:
        trip.status = trip.status or error.status
        raise
    except asyncio.CancelledError:
        trip.status = 499
        raise
    finally:
        forget_verdict(trip)
        if trip.drafting is not None:
            trip.drafting.cancel()
        parts.ledger.close(trip, sink)


def before(trip: Trip) -> Decision:
    """Who is asked first. Route STUDENT means: ask it and look at its draft."""
    task, live, chat = trip.lane.task, trip.live, trip.chat
    if chat.forced is Route.TEACHER:
        return Decision(route=Route.TEACHER, reason=Reason.FORCED)
    if task.mode == "collect" and chat.forced is None:
        return Decision(route=Route.TEACHER, reason=Reason.COLLECT)
    if live is None:
        return Decision(route=Route.TEACHER, reason=Reason.NO_BUNDLE)
    if not (student_can(chat) and fits(trip)):
        return Decision(route=Route.TEACHER, reason=Reason.UNSUPPORTED)
    decision = score_before(trip, live)
    if chat.forced is Route.STUDENT:
        return replace(decision, route=Route.STUDENT, reason=Reason.FORCED)
    if task.mode == "shadow":
        return replace(decision, route=Route.TEACHER, reason=Reason.SHADOW)
    return decision


def after(trip: Trip) -> Decision:
    """Whether the draft is served."""
    first, live, draft = trip.decision, trip.live, trip.draft
    if trip.drafting is not None:
        return first  # the window has decided
    if live is None or draft is None:
        # a draft that was stopped can be served under no threshold
        score = REJECTED if trip.student_failed is Reason.UNSURE_EARLY else None
        return replace(first, route=Route.TEACHER, reason=trip.student_failed, score=score)
    decision = score_after(trip, live, draft, first)
    if trip.chat.forced is Route.STUDENT:
        return replace(decision, route=Route.STUDENT, reason=Reason.FORCED)
    if decision.route is Route.STUDENT and not (keeps_format(trip, draft) and ends_well(trip)):
        return replace(decision, route=Route.TEACHER, reason=Reason.INVALID)
    return decision


async def checked(trip: Trip) -> Decision:
    """The task's own checks of a draft that would be served, also where it was forced: whoever may
    choose the route may not switch off what keeps answers safe."""
    reason = await fails_check(trip)
    if reason is None:
        return trip.decision
    return replace(trip.decision, route=Route.TEACHER, reason=reason)


def keeps_format(trip: Trip, draft: Draft) -> bool:
    """A request that demands JSON gets JSON, whatever the task's output rules say."""
    if not wants_json(trip.chat):
        return True
    try:
        orjson.loads(draft.answer.text)
    except orjson.JSONDecodeError:
        return False
    return True


def may_degrade(trip: Trip, error: GatewayError) -> bool:
    """A draft the gates only doubted may stand in for a teacher that is down. Not one that breaks
    the output rules or fails a check, and not for a request the teacher refused."""
    return (
        trip.lane.task.on_teacher_down == "degraded"
        and trip.draft is not None
        and trip.decision.reason is Reason.UNSURE
        and (error.status >= 500 or error.status == 429)
    )


def promise(parts: Parts, trip: Trip) -> None:
    """The audit of a sampled answer, before it leaves: a promise must not depend on how its client
    behaves."""
    if trip.sampled:
        parts.auditor.submit(trip)


async def serve(trip: Trip, sink: Sink) -> None:
    """The student's draft becomes the answer, or the rest of the one that was released."""
    draft, chat = trip.draft, trip.chat
    assert draft is not None
    if trip.released:
        rest = shown_stream(draft.chunks, chat, since=trip.released)
        await sink.end(rest + shown_end(draft, chat))
        return
    headers = route_headers(trip)
    if trip.decision.reason is Reason.DEGRADED:
        headers.append((b"x-retort-degraded", b"true"))
    if chat.stream:
        await sink.start(200, [*EVENTS, *headers])
        await sink.end(shown_stream(draft.chunks, chat) + shown_end(draft, chat))
    else:
        await sink.whole(200, orjson.dumps(shown(draft, chat)), [JSON, *headers])
