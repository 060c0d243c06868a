"""A draft while it is made: stopped where it is hopeless, passed on where its window allows it.

What decides is the bundle's (`router/prefix.py`): heads that look at the first 1, 4, 16 and 64
value tokens, and the score of the first W tokens where the task releases by window. Until a draft
is released nothing of it was shown, and every failure is still the teacher's turn. Once it is, no
other model may go on with it: what then fails ends the stream with an error.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import aiohttp

from gateway.draft import Draft, DraftStream, max_tokens, shown_stream
from gateway.errors import UpstreamError
from gateway.fallback import route_headers
from gateway.first_try import ask_student, score_after, settled
from gateway.parts import Parts
from gateway.trip import Spent, Trip
from gateway.wire.protocol import EVENTS, Chat, Sink
from gateway.wire.streaming import check_streams, events
from router.decision import Reason, Route
from router.output import check
from router.prefix import Prefix, Walk, begun, cut

logger = logging.getLogger(__name__)


async def ask_watched(parts: Parts, trip: Trip, sink: Sink) -> Draft | None:
    """The student's draft, released meanwhile where it may be (``trip.released``). None where
    there is none to serve: it failed, was stopped, or its window was not good enough; the teacher
    then need not wait for the rest (``trip.drafting``). Raises GatewayError where the student
    fails after the release."""
    watch = watch_over(trip, sink)
    if watch is None:
        return await ask_student(parts, trip, stream=trip.chat.stream)
    if watch.refused is None:
        return await ask_student(parts, trip, stream=True, read=watch.read)
    asking = asyncio.create_task(ask_student(parts, trip, stream=True, read=watch.read))
    either: set[asyncio.Future[Any]] = {asking, watch.refused}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        raise
    if asking.done():
        return asking.result()
    trip.drafting = asking
    return None


def watch_over(trip: Trip, sink: Sink) -> "Watch | None":
    """None where the draft is read to its end before anything is decided."""
    task, live = trip.lane.task, trip.live
    if live is None or not trip.chat.stream or trip.decision.reason is Reason.FORCED:
        return None
    prefix = live.router.prefix if task.cancels_early else None
    window = None
    if task.release.mode == "window" and may_flow(trip):
        # the bundle's: its certificate speaks of the score of so many tokens, and of no other
        window = live.router.window
    if prefix is None and window is None:
        return None
    return Watch(trip, sink, prefix, window)


def may_flow(trip: Trip) -> bool:
    """False for a request whose answer has to be whole to be judged: one that demands JSON, or
    that may end before the task's own limit and would then be taken for a broken one."""
    task, chat = trip.lane.task, trip.chat
    return not wants_json(chat) and max_tokens(task, chat) == task.output.max_tokens


def wants_json(chat: Chat) -> bool:
    """Whether the request demands JSON, which only a whole answer can be seen to be."""
    wanted = chat.body.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")


def ends_well(trip: Trip) -> bool:
    """False where a draft breaks the output rules behind the window that its router has seen: it
    was too long, say."""
    live, draft = trip.live, trip.draft
    if live is None or draft is None or live.router.window is None:
        return True
    return check(live.router.spec, draft.answer) is None


def check_end(trip: Trip) -> None:
    """Raises UpstreamError where a released draft does not end well. The client has most of it,
    and must not take it for an answer; its row counts it as one, and as a full loss."""
    if not ends_well(trip):
        trip.broken, trip.status = True, 200
        raise UpstreamError("The student's answer breaks the output rules at its end.")


class Watch:
    """Reads the student's stream for one request. ``prefix`` None: nothing is stopped early;
    ``window`` None: nothing is released before its end."""

    def __init__(self, trip: Trip, sink: Sink, prefix: Prefix | None, window: int | None) -> None:
        self._trip = trip
        self._sink = sink
        self._prefix = prefix
        self._window = window
        #: done once the window was not good enough. None: the draft is awaited all the same,
        #: because there is no window, or because it may have to stand in for the teacher
        self.refused: asyncio.Future[None] | None = None
        if window is not None and trip.lane.task.on_teacher_down != "degraded":
            self.refused = asyncio.get_running_loop().create_future()

    async def read(self, response: aiohttp.ClientResponse) -> Draft | None:
        """The draft; None where it was stopped, and the trip then knows why. Raises UpstreamError
        where the stream cannot be read or has no end."""
        check_streams(response, "student")
        trip, window = self._trip, self._window
        stream, walk, complete = DraftStream(), self._new_walk(), False
        try:
            async for raw in events(response):
                if not stream.take(raw) or stream.finish_reason is not None:
                    continue  # the end is shown when it has been looked at
                if trip.released:
                    await self._pass_on(stream)
                    continue
                if (k := self._hopeless(walk, stream)) is not None:
                    response.close()  # the server sees it and generates no further
                    trip.student_failed = Reason.UNSURE_EARLY
                    trip.lane.metrics.early_cancels[(str(k),)].inc()
                    return None
                if window is not None and len(stream.tokens) >= window:
                    if await self._may_go(stream, window):
                        await self._sink.start(200, [*EVENTS, *route_headers(trip)])
                        await self._pass_on(stream)
                    # asked once: what may not go is read to its end, for its loss is a label
                    window = None
            draft = stream.draft()
            complete = True
            return draft
        finally:
            if not complete:
                trip.spent = Spent(tokens=len(stream.tokens), usage=stream.usage)

    def _new_walk(self) -> Walk | None:
        live = self._trip.live
        if self._prefix is None or live is None:
            return None
        spec = live.router.spec
        return Walk(kind=spec.kind, fields=tuple(spec.fields), checkpoints=self._prefix.at)

    def _hopeless(self, walk: Walk | None, stream: DraftStream) -> int | None:
        """The checkpoint at which the draft is to be stopped."""
        if walk is None or self._prefix is None:
            return None
        try:
            while walk.checkpoints and len(walk.tokens) < len(stream.tokens):
                found = walk.add(stream.tokens[len(walk.tokens)])
                if found is not None and self._prefix.hopeless(*found):
                    return found[0]
        except Exception:
            # as any router that breaks (gateway/first_try.py: guarded): it has no say
            logger.exception("prefix head failed", extra={"request_id": self._trip.incoming.id})
            self._prefix = None
        return None

    async def _may_go(self, stream: DraftStream, window: int) -> bool:
        """Whether the prompt is not strange, and the score of the window good enough."""
        trip = self._trip
        if trip.live is None:
            return False
        decision = await settled(trip)
        if decision.route is Route.STUDENT:
            seen = Draft(answer=cut(begun(stream.tokens), window), usage=None)
            decision = score_after(trip, trip.live, seen, decision)
        if decision.route is Route.STUDENT:
            trip.decision, trip.answer_id = decision, stream.chunks[0].get("id")
            return True
        if self.refused is not None and not self.refused.done():
            trip.decision = decision
            self.refused.set_result(None)
        return False

    async def _pass_on(self, stream: DraftStream) -> None:
        """All that has come and was not shown yet."""
        trip = self._trip
        data = shown_stream(stream.chunks, trip.chat, since=trip.released)
        trip.released = len(stream.chunks)
        await self._sink.write(data)
