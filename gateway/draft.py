"""The student's draft: how it is asked for, read, and shown to the client as if nothing were."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import aiohttp
import orjson

from gateway.config import Task
from gateway.errors import UpstreamError
from gateway.money.pricing import Usage, read_usage
from gateway.prompt import student_messages
from gateway.wire.protocol import DONE, Body, Chat, event
from gateway.wire.streaming import check_streams, events, parse_chunk, payload
from router.decision import Answer, Token

#: alternatives per token the router reads
TOP_LOGPROBS = 5
#: keys that stand in every answer even where they are null; other nulls are vLLM's own
_REQUIRED = frozenset({"content", "refusal", "logprobs", "finish_reason", "usage"})
_first = itemgetter(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The student's answer: what the router reads, and the object or chunks it came in."""

    answer: Answer
    usage: Usage | None
    body: Body | None = None
    chunks: tuple[Body, ...] = ()
    raw_usage: Any = None


def student_body(
    task: Task, adapter: str, chat: Chat, *, stream: bool, watched: bool = False
) -> Body:
    """What the student is asked: the short prompt, most likely tokens first, as it was trained
    and calibrated. Of the client's own wishes only those that end or cut the answer are kept.
    ``watched``: the draft may be given up in the middle, and shall have told its usage by then."""
    body: Body = {
        "model": adapter,
        "messages": student_messages(task.prompt, chat.messages),
        "temperature": 0,
        "max_tokens": max_tokens(task, chat),
        "logprobs": True,
        "top_logprobs": max(TOP_LOGPROBS, chat.top_logprobs or 0),
    }
    if chat.body.get("stop") is not None:
        body["stop"] = chat.body["stop"]
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if watched:
            body["stream_options"]["continuous_usage_stats"] = True
    return body


def max_tokens(task: Task, chat: Chat) -> int:
    """How long a draft may be."""
    asked = (chat.body.get(name) for name in ("max_tokens", "max_completion_tokens"))
    limits = [limit for limit in asked if isinstance(limit, int) and limit > 0]
    return min([task.output.max_tokens, *limits])


def read_draft(body: Body) -> Draft:
    """Raises UpstreamError where the answer cannot be read."""
    try:
        choice = body["choices"][0]
        answer = Answer(
            text=_text(choice["message"]["content"]),
            tokens=tuple(_tokens(choice)),
            finish_reason=choice["finish_reason"] or "stop",
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UpstreamError("The student's answer cannot be read.") from None
    usage = body.get("usage")
    return Draft(answer=answer, usage=read_usage(usage), body=body, raw_usage=usage)


async def read_draft_whole(response: aiohttp.ClientResponse) -> Draft:
    """Raises UpstreamError where the answer cannot be read."""
    try:
        body = orjson.loads(await response.read())
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise UpstreamError("The student's answer is not a JSON object.")
    return read_draft(body)


class DraftStream:
    """A streamed draft as far as it has come."""

    def __init__(self) -> None:
        self.chunks: list[Body] = []
        self.tokens: list[Token] = []
        self.finish_reason: str | None = None
        self._texts: list[str] = []
        self._usage: Any = None

    @property
    def usage(self) -> Usage | None:
        """The last that was said of it."""
        return read_usage(self._usage)

    def take(self, raw: bytes) -> bool:
        """Whether the event holds a part of the answer. Raises UpstreamError where it cannot be
        read."""
        data = payload(raw)
        if data is None or data == b"[DONE]":
            return False
        chunk = parse_chunk(data, "student")
        self._usage = chunk.pop("usage", None) or self._usage
        if not chunk.get("choices"):
            return False
        self.chunks.append(chunk)
        try:
            choice = chunk["choices"][0]
            self._texts.append(_text(choice["delta"].get("content") or ""))
            self.tokens += _tokens(choice)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise UpstreamError("The student's stream cannot be read.") from None
        return True

    def draft(self) -> Draft:
        """The whole of it. Raises UpstreamError where it has no end."""
        if self.finish_reason is None:
            raise UpstreamError("The student's stream broke off.", code="upstream_broken")
        answer = Answer(
            text="".join(self._texts), tokens=tuple(self.tokens), finish_reason=self.finish_reason
        )
        return Draft(
            answer=answer, usage=self.usage, chunks=tuple(self.chunks), raw_usage=self._usage
        )


async def read_draft_stream(response: aiohttp.ClientResponse) -> Draft:
    """The whole stream. Raises UpstreamError where it cannot be read or has no end."""
    check_streams(response, "student")
    stream = DraftStream()
    async for raw in events(response):
        stream.take(raw)
    return stream.draft()


def _text(content: Any) -> str:
    if not isinstance(content, str):
        raise TypeError(content)
    return content


def _tokens(choice: Body) -> Iterable[Token]:
    logprobs = choice.get("logprobs") or {}
    for item in logprobs.get("content") or ():
        others = [(float(other["logprob"]), other["token"]) for other in item["top_logprobs"]]
        others.sort(key=_first, reverse=True)
        # more than the router asked for are the client's: its scores must not depend on them
        del others[TOP_LOGPROBS:]
        yield Token(
            text=item["token"],
            logprob=float(item["logprob"]),
            top=tuple([logprob for logprob, _ in others]),
            names=tuple([name for _, name in others]),
        )


def shown(draft: Draft, chat: Chat) -> Body:
    """The answer as the client sees it: under the model it named, without what only the gate
    needed."""
    assert draft.body is not None
    body = _clean(draft.body)
    body["model"] = chat.model
    body["choices"] = [_shown_choice(choice, "message", chat) for choice in body["choices"]]
    return body


def shown_stream(chunks: Sequence[Body], chat: Chat, *, since: int = 0) -> bytes:
    """The same as a stream, from its chunk number ``since`` on and without its end."""
    same = _same(chunks, chat)
    parts = []
    for chunk in chunks[since:]:
        out = _clean(chunk) | same
        out["choices"] = [_shown_choice(choice, "delta", chat) for choice in out["choices"]]
        if chat.usage:
            out["usage"] = None
        parts.append(event(out))
    return b"".join(parts)


def shown_end(draft: Draft, chat: Chat) -> bytes:
    """What follows the last chunk."""
    if not chat.usage or draft.raw_usage is None:
        return DONE
    last = {"object": "chat.completion.chunk", "choices": [], "usage": _clean(draft.raw_usage)}
    return event(_same(draft.chunks, chat) | last) + DONE


def _same(chunks: Sequence[Body], chat: Chat) -> Body:
    first = chunks[0]
    return {"id": first.get("id"), "created": first.get("created"), "model": chat.model}


def _shown_choice(choice: Body, part: str, chat: Chat) -> Body:
    out = _clean(choice)
    out["logprobs"] = _shown_logprobs(choice.get("logprobs"), chat.top_logprobs)
    out.setdefault("finish_reason", None)
    inner = _clean(choice[part])
    if part == "message":
        inner.setdefault("refusal", None)
    if not inner.get("tool_calls", True):
        del inner["tool_calls"]
    out[part] = inner
    return out


def _shown_logprobs(logprobs: Any, top: int | None) -> Any:
    if top is None or not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    if content is not None:
        content = [item | {"top_logprobs": item["top_logprobs"][:top]} for item in content]
    return {"refusal": None} | logprobs | {"content": content}


def _clean(data: Body) -> Body:
    return {key: value for key, value in data.items() if value is not None or key in _REQUIRED}
