"""Stored chat completions: what the application asked to keep, and OpenAI's endpoints for it.

They are the application's face of the queue: what it reads here is what it received, and what it
deletes here is erased in the queue as well.
"""

import asyncio
import json
import logging
import re
from typing import Any
from urllib.parse import parse_qsl, unquote

from sqlalchemy import Text, cast, func, or_
from sqlmodel import col, select
from starlette.types import Message, Send

from gateway import metrics
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    StoreAway,
    StoreError,
)
from gateway.parts import Parts
from gateway.storage import exchanges
from gateway.storage.rows import storable
from gateway.storage.stored_rows import asking, delete, find, place, relabel
from gateway.storage.tables import StoredCompletion, utcnow
from gateway.surfaces.passthrough import pass_through
from gateway.trip import Trip
from gateway.wire.assembly import read_stream, read_whole
from gateway.wire.protocol import Body, Incoming, Sink, read_json
from router.decision import Route

logger = logging.getLogger(__name__)

PATH = "/v1/chat/completions/"
PAGE = 20
LARGEST_PAGE = 100
#: OpenAI's limits of metadata
PAIRS, NAME, VALUE = 16, 64, 512
#: how long a deletion waits for the teacher's copy to go
TEACHER_S = 5.0
#: of the request, what OpenAI shows with a stored completion
_SHOWN = (
    *("tools", "tool_choice", "response_format", "seed", "temperature", "top_p"),
    *("presence_penalty", "frequency_penalty"),
)


def keep_answer(parts: Parts, trip: Trip, sink: Sink) -> None:
    """Have the answer stored as the client receives it, before its last byte leaves."""

    def around(send: Send) -> Send:
        received: list[bytes] = []
        status = 0

        async def keeping(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status == 200:
                received.append(message.get("body", b""))
                if not message.get("more_body", False):
                    await parts.ledger.outlive(_keep(parts, trip, b"".join(received)))
            await send(message)

        return keeping

    if trip.keeps_text:
        check_metadata(trip.chat.body.get("metadata"))
        sink.wrap(around)


async def _keep(parts: Parts, trip: Trip, data: bytes) -> None:
    """Never raises: an answer is not withheld because it cannot be written down."""
    answer = read_stream(data) if trip.chat.stream else read_whole(data)
    if answer is None or not isinstance(answer.get("id"), str):
        return  # an error within a stream, or nothing anybody could ask for again
    if answer.get("usage") is None and (usage := trip.usage) is not None:
        counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
        answer["usage"] = counts | {"total_tokens": usage.prompt + usage.completion}
    task = trip.lane.task.name
    row = StoredCompletion(
        id=trip.incoming.id,
        completion_id=answer["id"],
        caller=trip.incoming.caller.id,
        task=task,
        at=utcnow(),
        route=trip.decision.route.value,
        reason=trip.decision.reason.value,
        model=str(answer.get("model")),
        asked_model=trip.chat.model,
        dedupe_key=exchanges.dedupe_key(task, trip.incoming.raw),
        labels=trip.chat.body.get("metadata") or {},
        body=trip.chat.body,
        answer=answer,
    )
    outcome = "lost"
    try:
        outcome = await parts.store.append([row])
    except StoreError as error:
        logger.error("completion not stored", extra={"request_id": row.id, "error": str(error)})
    metrics.stored_total.labels(task, outcome).inc()


def check_metadata(metadata: Any) -> None:
    """OpenAI's limits. Raises InvalidRequest."""

    def refuse(what: str, code: str, param: str = "metadata") -> InvalidRequest:
        return InvalidRequest(f"Invalid '{param}': {what}.", param=param, code=code)

    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise refuse("expected an object of strings", "invalid_type")
    if len(metadata) > PAIRS:
        raise refuse(
            f"at most {PAIRS} pairs are kept, and it has {len(metadata)}",
            "object_above_max_properties",
        )
    for name, value in metadata.items():
        if len(name) > NAME:
            raise refuse(f"a key is longer than {NAME} characters", "string_above_max_length")
        if not isinstance(value, str):
            raise refuse("expected a string", "invalid_type", f"metadata.{name}")
        if len(value) > VALUE:
            what = f"it is longer than {VALUE} characters"
            raise refuse(what, "string_above_max_length", f"metadata.{name}")


async def list_completions(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """The caller's own, oldest first. Without a task there are none here: the teacher's."""
    if not parts.lanes:
        await pass_through(parts, incoming, sink)
        return
    query = dict(parse_qsl(incoming.query, keep_blank_values=True))
    after, limit, newest_first = _page(query)
    statement = select(StoredCompletion).where(
        StoredCompletion.caller == incoming.caller.id, col(StoredCompletion.deleted).is_(False)
    )
    if "model" in query:
        model = storable(query["model"])
        named = (StoredCompletion.model == model, StoredCompletion.asked_model == model)
        statement = statement.where(or_(*named))
    for name, value in query.items():
        if (key := re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL)) is not None:
            # the pair as it stands in the column's text: JSON paths cannot name every key, and
            # LIKE is blind to case on SQLite
            pair = f"{json.dumps(key[1])}: {json.dumps(value)}"
            labels = cast(StoredCompletion.labels, Text)
            statement = statement.where(func.replace(labels, pair, "") != labels)
    order = col(StoredCompletion.id)
    statement = statement.order_by(order.desc() if newest_first else order.asc())

    def read() -> list[StoredCompletion]:
        bounded = statement.limit(limit + 1)
        with asking(parts.store), parts.store.session() as session:
            if after is not None:
                start = place(session, incoming.caller.id, after, newest_first=newest_first)
                if start is None:
                    return []
                bounded = bounded.where(order < start if newest_first else order > start)
            return list(session.exec(bounded))

    rows = await asyncio.to_thread(read)
    await sink.json(200, _listed([shown(row) for row in rows], limit))


async def one_completion(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """One stored completion, its messages, its metadata, its end. What is not ours may be the
    teacher's own."""
    name, _, rest = incoming.path.removeprefix(PATH).partition("/")
    completion_id = storable(unquote(name))
    caller, store = incoming.caller.id, parts.store
    known = parts.lanes and rest in ("", "messages") and completion_id
    row = await asyncio.to_thread(find, store, caller, completion_id) if known else None
    if row is None:
        if incoming.method == "DELETE" and known and store.spool_rows:
            raise StoreAway("Some rows still wait on local disk: try again.")
        await pass_through(parts, incoming, sink)
    elif rest == "messages" and incoming.method == "GET":
        query = dict(parse_qsl(incoming.query, keep_blank_values=True))
        await sink.json(200, _messages(row, query))
    elif rest == "messages":
        raise MethodNotAllowed("Messages can only be read.", headers={"allow": "GET"})
    elif incoming.method == "GET":
        await sink.json(200, shown(row))
    elif incoming.method == "POST":
        body = read_json(incoming.raw)
        if "metadata" not in body:
            raise InvalidRequest("Missing required parameter: 'metadata'.", param="metadata")
        check_metadata(body["metadata"])
        row = await asyncio.to_thread(relabel, store, row, body["metadata"] or {})
        await sink.json(200, shown(row))
    else:
        await asyncio.to_thread(delete, store, row)
        if row.route == Route.TEACHER.value:
            await _delete_at_teacher(parts, incoming)
        gone = {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}
        await sink.json(200, gone)


async def _delete_at_teacher(parts: Parts, incoming: Incoming) -> None:
    """It was asked with ``store: true`` as well, and may hold a copy of its own. One that stores
    nothing says 404."""
    headers = parts.teacher.headers(incoming.headers)
    status: int | str
    try:
        async with (
            asyncio.timeout(TEACHER_S),
            parts.teacher.forward(
                "DELETE", incoming.path.removeprefix("/v1"), b"", headers
            ) as response,
        ):
            status = response.status
            await response.read()
    except (GatewayError, TimeoutError) as error:
        status = type(error).__name__
    if status not in (200, 204, 404, 405, 501):
        logger.warning(
            "the teacher may have kept its copy of a deleted completion",
            extra={"request_id": incoming.id, "status": status},
        )


def shown(row: StoredCompletion) -> Body:
    asked = {name: row.body[name] for name in _SHOWN if row.body.get(name) is not None}
    return asked | row.answer | {"metadata": row.labels, "request_id": row.id}


def _messages(row: StoredCompletion, query: dict[str, str]) -> Body:
    """What was sent: the answer is in the completion itself."""
    after, limit, newest_first = _page(query)
    messages = []
    for number, message in enumerate(row.body["messages"]):
        content = message.get("content")
        parts = content if isinstance(content, list) else None
        own = {"id": f"{row.completion_id}-{number}", "content_parts": parts}
        text = {"content": content if isinstance(content, str) else None}
        messages.append({"name": None, "refusal": None} | message | own | text)
    if newest_first:
        messages.reverse()
    if after is not None:
        ids = [message["id"] for message in messages]
        messages = messages[ids.index(after) + 1 :] if after in ids else []
    return _listed(messages[: limit + 1], limit)


def _listed(found: list[Body], limit: int) -> Body:
    """``found`` has one more than was asked for, where there is one."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


def _page(query: dict[str, str]) -> tuple[str | None, int, bool]:
    """After which id, how many, newest first. Raises InvalidRequest."""
    order, limit = query.get("order", "asc"), query.get("limit", str(PAGE))
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be asc or desc.", param="order")
    if not re.fullmatch(r"[0-9]{1,3}", limit) or int(limit) > LARGEST_PAGE:
        raise InvalidRequest(
            f"'limit' must be an integer between 0 and {LARGEST_PAGE}.", param="limit"
        )
    return query.get("after"), int(limit), order == "desc"
