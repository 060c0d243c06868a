"""The student's part of a request: the router's word before and after, and the draft between."""

import logging
import time
from collections.abc import Callable
from functools import partial

import orjson

from gateway.draft import Draft, read_draft, read_draft_stream, student_body
from gateway.errors import GatewayError, UpstreamRefused
from gateway.lane import Live
from gateway.parts import Parts
from gateway.trip import Trip
from router.decision import Decision, Reason, Route

logger = logging.getLogger(__name__)


def score_before(trip: Trip, live: Live) -> Decision:
    started = time.perf_counter()
    decision = guarded(partial(live.router.before, trip.prompt), trip)
    trip.lane.metrics.before.observe(time.perf_counter() - started)
    return decision


def score_after(trip: Trip, live: Live, draft: Draft, first: Decision) -> Decision:
    started = time.perf_counter()
    decision = guarded(partial(live.router.after, trip.prompt, draft.answer, first.p_ood), trip)
    trip.lane.metrics.after.observe(time.perf_counter() - started)
    return decision


async def fails_check(trip: Trip, draft: Draft | None = None) -> Reason | None:
    """Why a draft (default: the trip's) must not be served, whatever its score."""
    lane, draft = trip.lane, draft or trip.draft
    if not lane.checks or draft is None:
        return None
    started = time.perf_counter()
    failed = await lane.checks.first_failed(draft, trip.chat)
    if lane.checks.waits:
        trip.incoming.waited_s += time.perf_counter() - started
    if failed is None:
        return None
    trip.check = failed.check
    lane.metrics.checks_failed[(failed.check,)].inc()
    return failed.reason


def guarded(decide: Callable[[], Decision], trip: Trip) -> Decision:
    """The router's word. A router that breaks has no say: the teacher answers, whatever the
    error was (fail open, docs/design.md), so this is one of the few places that catch them all."""
    try:
        return decide()
    except Exception:
        logger.exception("router failed", extra={"request_id": trip.incoming.id})
        return Decision(route=Route.TEACHER, reason=Reason.STUDENT_ERROR)


async def ask_student(parts: Parts, trip: Trip, *, stream: bool) -> Draft | None:
    """Its whole draft; None where it could not answer."""
    live = trip.live
    if live is None:
        return None
    student = parts.student
    body = student_body(trip.lane.task, live.bundle.adapter, trip.chat, stream=stream)
    data, headers = orjson.dumps(body), {"content-type": "application/json"}
    started = time.perf_counter()
    try:
        if stream:
            async with student.stream(data, headers, read_draft_stream) as draft:
                return draft
        return read_draft((await student.ask(data, headers)).body)
    except GatewayError as error:
        if isinstance(error, UpstreamRefused) and error.status == 404:
            # it has lost the adapter, by a restart perhaps: have it loaded again
            trip.lane.suspect = True
        logger.warning(
            "student failed",
            extra={"request_id": trip.incoming.id, "status": error.status, "error": str(error)},
        )
        return None
    finally:
        trip.student_s = time.perf_counter() - started
        trip.incoming.waited_s += trip.student_s


async def ask_in_shadow(parts: Parts, trip: Trip) -> Draft | None:
    """The draft of a request that the teacher answers, its checks included."""
    draft = await ask_student(parts, trip, stream=False)
    if draft is not None:
        await fails_check(trip, draft)
    return draft
