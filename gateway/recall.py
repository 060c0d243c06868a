"""Exact repeats: which requests may be answered from the cache, what is kept, how it is given
again. The reasons for each rule are in docs/cache.md."""

import asyncio
from typing import Any

import orjson

from gateway.cache import Entry, key_of
from gateway.fallback import route_headers
from gateway.money.pricing import Usage
from gateway.parts import Parts
from gateway.trip import Trip
from gateway.wire.protocol import DONE, EVENTS, JSON, Body, Chat, Headers, Incoming, Sink, event
from gateway.wire.streaming import event_data
from router.decision import Decision, Reason

#: with one of these an answer depends on more than the request, or is more than a text
_BEYOND = (
    "tools",
    "functions",
    "web_search_options",
    "audio",
    "logprobs",
    "top_logprobs",
    "prediction",
    "moderation",
)
#: keys of an answer or chunk that belong to the one it came in
_OWN = frozenset({"id", "object", "choices", "usage", "obfuscation"})
#: who must not get each other's answers, where the gateway has no keys of its own
_WHOSE = ("authorization", "x-api-key")
_ACCOUNT = ("openai-organization", "openai-project")


async def recalled(parts: Parts, trip: Trip, sink: Sink) -> bool:
    """Whether the request was answered from the cache. If not, the answer that it gets can be
    remembered where ``trip.cache_key`` is set."""
    cache = trip.lane.cache
    if cache is None:
        return False
    results = trip.lane.metrics.cache
    wishes = cache_control(trip.incoming)
    if "no-store" in wishes or trip.sampled or not repeats(trip.chat):
        results[("bypass",)].inc()
        return False
    trip.cache_key = key = _key(trip)
    found = None if key is None or "no-cache" in wishes else cache.get(key)
    if found is None:
        result = "bypass" if key is None or "no-cache" in wishes else "miss"
        results[(result,)].inc()
        sink.more.append((b"x-retort-cache", result.encode()))
        sink.copy = []
        return False
    results[("hit",)].inc()
    trip.cached, age_s = found
    trip.decision = Decision(route=trip.cached.route, reason=Reason.CACHED)
    try:
        await _give(trip, trip.cached, age_s, sink)
    except asyncio.CancelledError:
        trip.status = 499
        raise
    finally:
        parts.ledger.close(trip, sink)
    return True


def repeats(chat: Chat) -> bool:
    """Whether the same request again should have the same answer: plain text in and out, without
    chance, and nobody wants it filed or left unkept."""
    body = chat.body
    if chat.forced is not None or not chat.keep or body.get("store"):
        return False
    if any(body.get(name) for name in _BEYOND) or body.get("n") not in (None, 1):
        return False
    if body.get("modalities") not in (None, ["text"]):
        return False
    temperature, seed = body.get("temperature"), body.get("seed")
    chosen = isinstance(seed, int) and not isinstance(seed, bool)
    if not chosen and (isinstance(temperature, bool) or temperature != 0):
        return False
    return all(_is_text(message) for message in chat.messages)


def _is_text(message: Any) -> bool:
    """A picture behind a URL may be another one tomorrow; a tool's result is a step of an agent."""
    if message["role"] in ("tool", "function") or message.get("tool_calls"):
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str)


def cache_control(incoming: Incoming) -> frozenset[str]:
    header = incoming.headers.get("cache-control", "")
    return frozenset(word.strip().lower() for word in header.split(","))


def _key(trip: Trip) -> bytes | None:
    incoming, live = trip.incoming, trip.live
    # without keys of the gateway's the client's own key tells accounts apart
    own = () if incoming.caller.id else tuple(incoming.headers.get(name) for name in _WHOSE)
    account = tuple(incoming.headers.get(name) for name in _ACCOUNT)
    return key_of(
        trip.chat.body,
        whose=(incoming.caller.id, *own, *account),
        task=trip.lane.task.name,
        bundle=None if live is None else live.bundle.id,
        epoch=None if live is None else live.standing.epoch,
    )


def remember(trip: Trip, sink: Sink) -> None:
    """Keep the answer the client has just got, if it is whole and nothing to make do with."""
    cache, key, copy = trip.lane.cache, trip.cache_key, sink.copy
    if cache is None or key is None or copy is None or sink.status != 200:
        return
    if trip.decision.reason is Reason.DEGRADED:
        return
    raw = b"".join(copy)
    read = _read_stream(raw) if trip.chat.stream else _read_whole(raw)
    if read is None:
        return
    head, message, usage = read
    usage = usage or _usage(trip.usage)
    try:
        data = orjson.dumps({"head": head, "message": message, "usage": usage})
    except TypeError:  # nested too deeply
        return
    entry = Entry(
        # a copy: what orjson returns holds on to the 4 kB it was written in
        data=bytes(memoryview(data)),
        usage=trip.usage,
        route=trip.decision.route,
        teacher_usd=trip.teacher_usd,
    )
    cache.put(key, entry)


_Read = tuple[Body, Body, Any]


def _read_whole(raw: bytes) -> _Read | None:
    """Head, message and usage of an answer that ended by itself; None for any other."""
    try:
        body = orjson.loads(raw)
        (choice,) = body["choices"]
        message = choice["message"]
        if choice["finish_reason"] != "stop" or not _is_answer(message):
            return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return _head(body), message, body.get("usage")


def _read_stream(raw: bytes) -> _Read | None:
    """The same of a stream, put together."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    head: Body | None = None
    usage, finish_reason, done = None, None, False
    try:
        for data in event_data(raw):
            if data == b"[DONE]":
                done = True
                continue
            chunk = orjson.loads(data)
            head = head or _head(chunk)
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                for name, value in choice["delta"].items():
                    if name != "role" and value:
                        message[name] = (message.get(name) or "") + value
                finish_reason = choice.get("finish_reason") or finish_reason
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    if not done or head is None or finish_reason != "stop" or not _is_answer(message):
        return None
    return head, message, usage


def _is_answer(message: Any) -> bool:
    """Text and nothing but text."""
    return (
        isinstance(message["content"], str)
        and message["content"] != ""
        and not message.get("refusal")
        and all(isinstance(value, str) or not value for value in message.values())
    )


def _head(body: Body) -> Body:
    return {name: value for name, value in body.items() if name not in _OWN}


def _usage(usage: Usage | None) -> Body | None:
    """As an answer shows it."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


async def _give(trip: Trip, entry: Entry, age_s: float, sink: Sink) -> None:
    """The answer again, whichever way it came, in the way that is asked for now. Its id is new:
    every call is one of its own to whoever keeps logs; ``created`` stays the truth."""
    kept = orjson.loads(entry.data)
    same = {"id": f"chatcmpl-{trip.incoming.id.removeprefix('req-')}", **kept["head"]}
    trip.answer_id = same["id"]
    headers: Headers = [
        *route_headers(trip),
        (b"x-retort-cache", b"hit"),
        (b"age", b"%d" % age_s),
    ]
    if trip.chat.stream:
        await sink.start(200, [*EVENTS, *headers])
        await sink.end(_chunks(same, kept["message"], kept["usage"], trip.chat))
        return
    choice = {"index": 0, "message": kept["message"], "logprobs": None, "finish_reason": "stop"}
    body = {**same, "object": "chat.completion", "choices": [choice]}
    if kept["usage"] is not None:
        body["usage"] = kept["usage"]
    await sink.whole(200, orjson.dumps(body), [JSON, *headers])


def _chunks(same: Body, message: Body, usage: Any, chat: Chat) -> bytes:
    same = {**same, "object": "chat.completion.chunk"}
    texts = {name: value for name, value in message.items() if value and name != "role"}
    content = texts.pop("content")
    deltas: list[Body] = [
        {"role": "assistant", "content": "", "refusal": None},
        *({name: value} for name, value in texts.items()),
        {"content": content},
        {},
    ]
    parts = []
    for delta in deltas:
        reason = None if delta else "stop"
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = {**same, "choices": [choice]}
        if chat.usage:
            chunk["usage"] = None
        parts.append(event(chunk))
    if chat.usage and usage is not None:
        parts.append(event({**same, "choices": [], "usage": usage}))
    return b"".join(parts) + DONE
