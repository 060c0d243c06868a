"""The student's part of a request: the router's word before and after, and the draft between."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import aiohttp
import orjson

from gateway.draft import Draft, max_tokens, read_draft_stream, read_draft_whole, student_body
from gateway.errors import GatewayError
from gateway.lane import Live
from gateway.parts import Parts
from gateway.prompt import student_messages
from gateway.trip import Trip
from gateway.upstreams.pool import affinity_key
from gateway.vectors import Vectors
from router.decision import Decision, Reason, Route
from router.threshold import NEVER

logger = logging.getLogger(__name__)

Read = Callable[[aiohttp.ClientResponse], Awaitable[Draft | None]]

#: hardly any text has fewer tokens than this; English has one for about four bytes
BYTES_PER_TOKEN = 6
_TOO_LONG = re.compile(r"maximum (context|model) length", re.IGNORECASE)


def score_before(trip: Trip, live: Live) -> Decision:
    """The router's word on the prompt. An embedder that takes its time is asked beside the student
    and never waited for first: the word is then "go on" until `settled`."""
    vectors = trip.lane.vectors
    if vectors is None:
        return _judge(trip, live)
    certified = live.threshold < NEVER
    if certified or trip.sampled or trip.lane.task.mode == "shadow":
        trip.verdict = asyncio.create_task(_judge_beside(trip, live, vectors))
    if certified:
        return Decision(route=Route.STUDENT, reason=Reason.TRUSTED)
    return Decision(route=Route.TEACHER, reason=_uncertified(live))


def _uncertified(live: Live) -> Reason:
    return Reason.NOT_CERTIFIED if live.standing.alarm is None else Reason.ALARM


async def settled(trip: Trip) -> Decision:
    """The decision so far, with what was found out about the prompt beside the student. To be
    called before anything of a draft is released; any further call changes nothing."""
    if trip.verdict is None:
        return trip.decision
    started = time.perf_counter()
    verdict = await trip.verdict
    trip.verdict = None
    trip.incoming.waited_s += time.perf_counter() - started
    if trip.decision.reason in (Reason.FORCED, Reason.SHADOW):
        return replace(trip.decision, p_ood=verdict.p_ood)
    return verdict


def forget_verdict(trip: Trip) -> None:
    """Whatever is still asked about the prompt is of no use any more."""
    if trip.verdict is not None:
        trip.verdict.cancel()


async def _judge_beside(trip: Trip, live: Live, vectors: Vectors) -> Decision:
    """A vector that fails or is late is a doubt: teacher."""
    try:
        async with asyncio.timeout(vectors.timeout_s):
            trip.vector = await vectors.of(trip.prompt)
    except Exception as error:
        trip.lane.metrics.embedder_failed.inc()
        extra = {"request_id": trip.incoming.id, "error": str(error) or type(error).__name__}
        logger.warning("embedder failed", extra=extra)
        return Decision(route=Route.TEACHER, reason=Reason.OOD)
    return _judge(trip, live)


def _judge(trip: Trip, live: Live) -> Decision:
    started = time.perf_counter()
    judge = partial(live.router.before, trip.prompt, live.threshold, trip.vector)
    decision = guarded(judge, trip)
    if decision.reason is Reason.NOT_CERTIFIED:
        decision = replace(decision, reason=_uncertified(live))
    trip.lane.metrics.before.observe(time.perf_counter() - started)
    return decision


def score_after(trip: Trip, live: Live, draft: Draft, first: Decision) -> Decision:
    started = time.perf_counter()
    decide = partial(
        live.router.after, trip.prompt, draft.answer, first.p_ood, live.threshold, trip.vector
    )
    decision = guarded(decide, trip)
    trip.lane.metrics.after.observe(time.perf_counter() - started)
    trip.scored(decision.score)
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


async def ask_student(
    parts: Parts, trip: Trip, *, stream: bool, read: Read | None = None
) -> Draft | None:
    """Its whole draft; None where it could not answer or was stopped, and the trip then knows
    why. ``read`` watches over a stream. Raises GatewayError where the student fails after some of
    its draft was released."""
    live = trip.live
    if live is None:
        return None
    body = student_body(
        trip.lane.task, live.bundle.adapter, trip.chat, stream=stream, watched=read is not None
    )
    key = affinity_key(parts.config.student.affinity, trip.chat.body, body["messages"])
    how: Read = read or (read_draft_stream if stream else read_draft_whole)
    started = time.perf_counter()
    try:
        return await parts.student.ask(
            live.bundle.adapter, orjson.dumps(body), how, key, lambda: not trip.released
        )
    except GatewayError as error:
        if too_long(error):
            trip.student_failed = Reason.UNSUPPORTED
        logger.warning(
            "student failed",
            extra={"request_id": trip.incoming.id, "status": error.status, "error": str(error)},
        )
        if trip.released:
            trip.decision = replace(trip.decision, reason=Reason.STUDENT_ERROR)
            raise
        return None
    finally:
        trip.student_s = time.perf_counter() - started
        trip.incoming.waited_s += trip.student_s


async def ask_in_shadow(parts: Parts, trip: Trip) -> Draft | None:
    """The draft of a request that the teacher answers, its checks included."""
    draft = await ask_student(parts, trip, stream=False)
    if draft is not None:
        await fails_check(trip, draft)
    trip.decision = await settled(trip)
    return draft


def fits(trip: Trip) -> bool:
    """False where prompt and answer are surely too long for the student. Where that is not sure
    its server has the last word, and says it at once."""
    longest, raw = trip.lane.max_model_len, trip.incoming.raw
    if longest is None:
        return True
    left = longest - max_tokens(trip.lane.task, trip.chat)
    if len(raw) <= left * BYTES_PER_TOKEN:
        # the student's prompt is hardly ever longer than the whole request
        return True
    messages = student_messages(trip.lane.task.prompt, trip.chat.messages)
    size = sum(len(str(message["content"]).encode("utf-8", "replace")) for message in messages)
    return size <= left * BYTES_PER_TOKEN


def too_long(error: GatewayError) -> bool:
    """vLLM's answer to a prompt over its --max-model-len."""
    return error.status == 400 and (
        error.code == "context_length_exceeded" or _TOO_LONG.search(error.message) is not None
    )
