"""The Responses API: a task's requests become chat completions and come back as responses; other
traffic is the teacher's own, byte for byte, where it serves this API."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs

from gateway.config import Task
from gateway.errors import InvalidRequest, StoreError, UnknownEndpoint, UpstreamUnavailable
from gateway.parts import Parts
from gateway.storage import response_store
from gateway.storage.store import Store
from gateway.storage.tables import StoredResponse, utcnow
from gateway.surfaces.passthrough import pass_through
from gateway.surfaces.responses_request import read_request, system_texts, unknown_previous
from gateway.surfaces.responses_stream import ResponseSpeech
from gateway.surfaces.translated import Ask, Inexpressible, ask_chat, claiming, served_natively
from gateway.wire.protocol import Body, Incoming, Sink, read_json
from gateway.wire.wanted import wrong

logger = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")

#: parameters a response repeats, with what they are where the request does not say
_ECHOED: Body = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


async def create_response(ask: Ask, parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """POST /v1/responses, with whatever answers chat completions. Raises GatewayError."""
    body = read_json(incoming.raw)
    native = served_natively(parts, "responses")
    previous = await _previous(parts, incoming, body)
    history = [] if previous is None else response_store.conversation(previous)
    body, referred = await _with_items(parts, incoming, body)
    # the teacher knows nothing of a conversation that is kept here
    ours = previous is not None or referred
    texts = system_texts(body, history)
    task = claiming(parts, incoming, body.get("model"), texts, body.get("metadata"))
    theirs = previous is None and body.get("previous_response_id") is not None
    if native and not ours and (task is None or theirs):
        await pass_through(parts, incoming, sink, stream=body.get("stream") is True)
        return
    if theirs:
        raise unknown_previous(body["previous_response_id"])
    try:
        wanted = read_request(body, history)
    except Inexpressible:
        if not native or ours:
            raise
        await pass_through(parts, incoming, sink, stream=body.get("stream") is True)
        return
    if body.get("store") is False and wanted.chat.get("metadata"):
        _drop_metadata(parts, incoming, wanted.chat, texts, task)
    kept = keeps(incoming, body, task)
    speech = ResponseSpeech(_begin(body, kept=kept))
    sink.error_event = speech.failed
    keep = partial(_keep, parts, incoming, previous, wanted.items, kept)
    await ask_chat(ask, parts, incoming, wanted.chat, sink, speech, keep)


async def stored_response(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """/v1/responses/{id}, its input_items and its cancelling: of ours here, else the teacher's."""
    response_id, _, part = incoming.path.removeprefix("/v1/responses/").partition("/")
    if not response_store.is_ours(response_id):
        if not served_natively(parts, "responses"):
            raise _unknown(response_id)
        await pass_through(parts, incoming, sink)
        return
    caller = incoming.caller.id
    if (incoming.method, part) == ("DELETE", ""):
        if not await _look(response_store.remove, parts, response_id, caller):
            raise _unknown(response_id)
        await sink.json(200, {"id": response_id, "object": "response", "deleted": True})
        return
    row = await _look(response_store.find, parts, response_id, caller)
    if row is None:
        raise _unknown(response_id)
    if (incoming.method, part) == ("GET", ""):
        if parse_qs(incoming.query).get("stream") == ["true"]:
            raise wrong("stream", "is possible for background responses only")
        await sink.json(200, row.body)
    elif (incoming.method, part) == ("GET", "input_items"):
        await sink.json(200, _page(row, parse_qs(incoming.query)))
    elif (incoming.method, part) == ("POST", "cancel"):
        raise InvalidRequest("Only background responses can be cancelled.", param="response_id")
    else:
        raise UnknownEndpoint(f"Unknown request URL: {incoming.method} {incoming.path}.")


def keeps(incoming: Incoming, body: Body, task: Task | None) -> bool:
    """Whether the response may be kept: the client and the task's owner both have a say."""
    return (
        body.get("store") is not False
        and "x-retort-no-store" not in incoming.headers
        and (task is None or task.store_payloads)
    )


async def _previous(parts: Parts, incoming: Incoming, body: Body) -> StoredResponse | None:
    """The response of ours that the request goes on from. Raises InvalidRequest where it is gone,
    or never was this caller's."""
    previous = body.get("previous_response_id")
    if not response_store.is_ours(previous):
        return None
    row = await _look(response_store.find, parts, str(previous), incoming.caller.id)
    if row is None:
        raise unknown_previous(previous)
    return row


async def _with_items(parts: Parts, incoming: Incoming, body: Body) -> tuple[Body, bool]:
    """The body with the items its references mean, and whether any were ours. Raises
    InvalidRequest where one is gone, or never was this caller's."""
    asked = body.get("input")
    if not isinstance(asked, list):
        return body, False
    ids = [
        item["id"]
        for item in asked
        if _is_reference(item) and response_store.response_of(item["id"]) is not None
    ]
    if not ids:
        return body, False
    found = await _look(response_store.find_items, parts, ids, incoming.caller.id)
    for item_id in ids:
        if item_id not in found:
            raise InvalidRequest(
                f"Item with id '{item_id}' not found.",
                param="input",
                code="item_not_found",
                status=404,
            )
    items = [found.get(item["id"], item) if _is_reference(item) else item for item in asked]
    return body | {"input": items}, True


def _is_reference(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return False
    return item.get("type") == "item_reference" or (item.get("type") is None and len(item) == 1)


async def _look(how: Callable[[Store, K, str], T], parts: Parts, what: K, caller: str) -> T:
    """Raises UpstreamUnavailable while the database is away: what it holds is not gone."""
    try:
        return await asyncio.to_thread(how, parts.store, what, caller)
    except StoreError as error:
        logger.error("stored responses away", extra={"error": str(error)})
        raise UpstreamUnavailable(
            "Stored responses cannot be read at the moment.", code="store_unavailable"
        ) from None


def _drop_metadata(
    parts: Parts, incoming: Incoming, chat: Body, texts: list[str], task: Task | None
) -> None:
    """Metadata labels what is stored, and nothing is; OpenAI would refuse it in a chat completion.
    It stays where the task is claimed by it."""
    if claiming(parts, incoming, chat["model"], texts, None) is task:
        del chat["metadata"]


def _begin(body: Body, *, kept: bool) -> Body:
    """The response before anything is answered."""
    echoed = {
        name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()
    }
    text = echoed["text"]
    return {
        "id": response_store.new_response_id(),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": body["model"],
        "output": [],
        **echoed,
        "text": text if text.get("format") else {**text, "format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "service_tier": body.get("service_tier") or "auto",
        "store": kept,
        "usage": None,
    }


async def _keep(
    parts: Parts,
    incoming: Incoming,
    previous: StoredResponse | None,
    items: list[Body],
    kept: bool,
    response: Body,
) -> None:
    """Returns when the response is durable. An answer is not withheld because it cannot be
    kept."""
    if not kept:
        return
    row = StoredResponse(
        id=response["id"],
        caller=incoming.caller.id,
        at=utcnow(),
        request_id=incoming.id,
        thread=response["id"] if previous is None else previous.thread,
        items=response_store.with_ids(items, response["id"]),
        body=response,
    )
    try:
        await parts.store.append([row])
    except StoreError as error:
        logger.error("response lost", extra={"request_id": incoming.id, "error": str(error)})


def _page(row: StoredResponse, query: dict[str, list[str]]) -> Body:
    """A page of a response's input items, newest first unless asked otherwise."""
    asked = {name: values[-1] for name, values in query.items()}
    text, order = asked.get("limit", "20"), asked.get("order", "desc")
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise wrong("limit", "must be between 1 and 100")
    if order not in ("asc", "desc"):
        raise wrong("order", "must be asc or desc")
    limit = int(text)
    items = row.items if order == "asc" else row.items[::-1]
    if "after" in asked:
        ids = [item["id"] for item in items]
        if asked["after"] not in ids:
            raise wrong("after", "is the id of no item")
        items = items[ids.index(asked["after"]) + 1 :]
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }


def _unknown(response_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Response with id '{response_id}' not found.",
        param="response_id",
        code="not_found",
        status=404,
    )
