"""A chat completion told as a response: its output items, and the events of its stream."""

import time
from typing import Any

from gateway.errors import GatewayError, UpstreamError
from gateway.surfaces.translated import sse
from gateway.wire.protocol import Body

#: finish reasons that leave a response incomplete, in its own words
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseSpeech:
    """``response`` is the object as the request alone determines it: its id, what is echoed.

    Items are numbered in the order they begin. A message is closed when a tool call begins, as
    OpenAI does; tool calls stay open to the end, for their pieces may come interleaved.
    """

    def __init__(self, response: Body) -> None:
        self._response = response
        self._told = bytearray()
        self._sequence = 0
        self._begun = False
        self._finish: str | None = None
        self._message: Body | None = None
        self._texts: list[str] = []
        self._calls: dict[int, tuple[Body, list[str]]] = {}

    @property
    def body(self) -> Body:
        return self._response

    def chunk(self, chunk: Body) -> bytes:
        if not self._begun:
            self._begin(chunk)
        if chunk.get("usage") is not None:
            self._response["usage"] = _usage(chunk["usage"])
        if chunk.get("service_tier") is not None:
            self._response["service_tier"] = chunk["service_tier"]
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._hear(choice)
        return self._take()

    def end(self) -> bytes:
        if self._finish is None:
            raise UpstreamError("The answer broke off.", code="upstream_broken")
        response = self._response
        reason = _INCOMPLETE.get(self._finish)
        response["status"] = "completed" if reason is None else "incomplete"
        if reason is None:
            response["completed_at"] = int(time.time())
        else:
            response["incomplete_details"] = {"reason": reason}
        self._tell(f"response.{response['status']}", response=response)
        return self._take()

    def failed(self, error: GatewayError) -> bytes:
        """The end of a stream that goes wrong. The `error` event has its fields also under
        ``error``, where the official client looks for them."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        told = {"code": code, "message": error.message}
        response = self._response | {"status": "failed", "error": told}
        self._tell("response.failed", response=response)
        inner = error.envelope()["error"]
        flat = {name: inner[name] for name in ("code", "message", "param")}
        self._tell("error", **flat, error=inner)
        return self._take()

    def _begin(self, chunk: Body) -> None:
        self._begun = True
        if isinstance(chunk.get("model"), str):
            self._response["model"] = chunk["model"]
        self._tell("response.created", response=self._response)
        self._tell("response.in_progress", response=self._response)

    def _hear(self, choice: Body) -> None:
        delta = choice.get("delta") or {}
        logprobs = [_token(t) for t in (choice.get("logprobs") or {}).get("content") or ()]
        if text := delta.get("content"):
            self._say("output_text", text, logprobs)
        if text := delta.get("refusal"):
            self._say("refusal", text, [])
        for place, call in enumerate(delta.get("tool_calls") or ()):
            self._call(call.get("index", place), call)
        if choice.get("finish_reason") is not None:
            self._finish = choice["finish_reason"]
            self._close()

    def _say(self, kind: str, text: str, logprobs: list[Body]) -> None:
        part = self._part(kind)
        self._texts.append(text)
        place = self._place(part)
        if kind == "refusal":
            self._tell("response.refusal.delta", **place, delta=text)
        else:
            part["logprobs"] += logprobs
            self._tell("response.output_text.delta", **place, delta=text, logprobs=logprobs)

    def _part(self, kind: str) -> Body:
        """The open content part of this kind, in the open message."""
        output: list[Body] = self._response["output"]
        if self._message is None:
            self._message = item = self._item("msg", "message", role="assistant", content=[])
            self._tell("response.output_item.added", output_index=len(output) - 1, item=item)
        parts: list[Body] = self._message["content"]
        if parts and parts[-1]["type"] == kind:
            return parts[-1]
        if parts:
            self._close_part()
        part: Body = {"type": kind, "refusal": ""}
        if kind == "output_text":
            part = {"type": kind, "text": "", "annotations": [], "logprobs": []}
        parts.append(part)
        self._tell("response.content_part.added", **self._place(part), part=part)
        return part

    def _call(self, index: int, call: Body) -> None:
        function = call.get("function") or {}
        if index not in self._calls:
            self._close_message()
            item = self._item(
                "fc", "function_call", call_id=call["id"], name=function["name"], arguments=""
            )
            self._calls[index] = (item, [])
            self._tell("response.output_item.added", output_index=self._index(item), item=item)
        item, pieces = self._calls[index]
        if piece := function.get("arguments"):
            pieces.append(piece)
            place = {"item_id": item["id"], "output_index": self._index(item)}
            self._tell("response.function_call_arguments.delta", **place, delta=piece)

    def _item(self, prefix: str, kind: str, **fields: Any) -> Body:
        output: list[Body] = self._response["output"]
        own = f"{prefix}_{self._response['id'].removeprefix('resp_')}{len(output):02x}"
        item = {"id": own, "type": kind, "status": "in_progress", **fields}
        output.append(item)
        return item

    def _index(self, item: Body) -> int:
        return next(i for i, other in enumerate(self._response["output"]) if other is item)

    def _place(self, part: Body) -> Body:
        """Where a content part of the open message stands."""
        message = self._message
        assert message is not None
        return {
            "item_id": message["id"],
            "output_index": self._index(message),
            "content_index": len(message["content"]) - 1,
        }

    def _close(self) -> None:
        if not self._response["output"]:
            self._part("output_text")  # an empty answer is an answer
        self._close_message()
        for item, pieces in self._calls.values():
            item["arguments"] = "".join(pieces)
            place = {"item_id": item["id"], "output_index": self._index(item)}
            self._tell(
                "response.function_call_arguments.done",
                **place,
                name=item["name"],
                arguments=item["arguments"],
            )
            self._done(item)
        self._calls.clear()

    def _close_message(self) -> None:
        if self._message is not None:
            self._close_part()
            self._done(self._message)
            self._message = None

    def _close_part(self) -> None:
        assert self._message is not None
        part = self._message["content"][-1]
        place = self._place(part)
        text = "".join(self._texts)
        self._texts.clear()
        if part["type"] == "refusal":
            part["refusal"] = text
            self._tell("response.refusal.done", **place, refusal=text)
        else:
            part["text"] = text
            self._tell("response.output_text.done", **place, text=text, logprobs=part["logprobs"])
        self._tell("response.content_part.done", **place, part=part)

    def _done(self, item: Body) -> None:
        item["status"] = "incomplete" if self._finish in _INCOMPLETE else "completed"
        self._tell("response.output_item.done", output_index=self._index(item), item=item)

    def _tell(self, kind: str, **fields: Any) -> None:
        """Written out at once: the objects told of go on changing."""
        self._told += sse(kind, {"sequence_number": self._sequence, **fields})
        self._sequence += 1

    def _take(self) -> bytes:
        told = bytes(self._told)
        self._told.clear()
        return told


def _token(token: Body) -> Body:
    """One token's log-probability; here its bytes must be there, in a chat completion they need
    not."""
    top = [_with_bytes(other) for other in token.get("top_logprobs") or ()]
    return {**_with_bytes(token), "top_logprobs": top}


def _with_bytes(token: Body) -> Body:
    return token if token.get("bytes") else {**token, "bytes": list(token["token"].encode())}


def _usage(usage: Body) -> Body:
    """In the Responses API's names; counts the upstream did not give are 0, as the API has them
    required."""
    asked = usage.get("prompt_tokens_details") or {}
    answered = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": asked.get("cached_tokens") or 0,
            "cache_write_tokens": asked.get("cache_write_tokens") or 0,
        },
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": answered.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens")
        or usage["prompt_tokens"] + usage.get("completion_tokens", 0),
    }
