"""A chat completion told as a message of Anthropic's API: its blocks, and the events of its
stream."""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.errors import UpstreamError
from gateway.money.pricing import read_usage
from gateway.surfaces.translated import sse
from gateway.wire.protocol import Body

_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class MessageSpeech:
    """Blocks follow one another, and only the last is open. ``stop`` are the request's stop
    sequences."""

    def __init__(self, message_id: str, model: str, stop: Sequence[str]) -> None:
        self._message: Body = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._stop = stop
        self._told = bytearray()
        self._begun = False
        self._open: Body | None = None
        self._pieces: list[str] = []
        self._call: int | None = None
        self._called: set[int] = set()
        self._refused = False

    @property
    def body(self) -> Body:
        return self._message

    def chunk(self, chunk: Body) -> bytes:
        if not self._begun:
            self._begin(chunk)
        if (usage := read_usage(chunk.get("usage"))) is not None:
            self._message["usage"] = {
                "input_tokens": usage.prompt - usage.cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": usage.cached,
                "output_tokens": usage.completion,
            }
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._hear(choice)
        return self._take()

    def end(self) -> bytes:
        message = self._message
        if message["stop_reason"] is None:
            raise UpstreamError("The answer broke off.", code="upstream_broken")
        delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
        self._tell("message_delta", delta=delta, usage=message["usage"])
        self._tell("message_stop")
        return self._take()

    def _begin(self, chunk: Body) -> None:
        self._begun = True
        if isinstance(chunk.get("model"), str):
            self._message["model"] = chunk["model"]
        self._tell("message_start", message=self._message)

    def _hear(self, choice: Body) -> None:
        delta = choice.get("delta") or {}
        for name in ("content", "refusal"):
            if text := delta.get(name):
                self._refused = self._refused or name == "refusal"
                self._say(text)
        for place, call in enumerate(delta.get("tool_calls") or ()):
            self._use(call.get("index", place), call)
        if choice.get("finish_reason") is not None:
            self._close(cut=choice["finish_reason"] == "length")
            self._finish(choice)

    def _say(self, text: str) -> None:
        if self._open is None or self._open["type"] != "text":
            self._block({"type": "text", "text": ""})
        self._piece("text_delta", "text", text)

    def _use(self, index: int, call: Body) -> None:
        function = call.get("function") or {}
        if index != self._call:
            if index in self._called:
                raise UpstreamError("The answer's tool calls are interleaved.")
            self._block(
                {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
            )
            self._called.add(index)
            self._call = index
        if piece := function.get("arguments"):
            self._piece("input_json_delta", "partial_json", piece)

    def _block(self, block: Body) -> None:
        self._close()
        self._open = block
        content: list[Body] = self._message["content"]
        content.append(block)
        self._tell("content_block_start", index=len(content) - 1, content_block=block)

    def _piece(self, kind: str, name: str, piece: str) -> None:
        self._pieces.append(piece)
        delta = {"type": kind, name: piece}
        self._tell("content_block_delta", index=len(self._message["content"]) - 1, delta=delta)

    def _close(self, *, cut: bool = False) -> None:
        block, said = self._open, "".join(self._pieces)
        if block is None:
            return
        if block["type"] == "text":
            block["text"] = said
        else:
            block["input"] = _object(said, cut)
        self._tell("content_block_stop", index=len(self._message["content"]) - 1)
        self._open = self._call = None
        self._pieces.clear()

    def _finish(self, choice: Body) -> None:
        message = self._message
        message["stop_reason"] = _STOPS.get(choice["finish_reason"], "end_turn")
        # vLLM says which one it was; OpenAI does not
        matched = choice.get("stop_reason")
        if self._refused:
            message["stop_reason"] = "refusal"
        elif choice["finish_reason"] == "stop" and matched in self._stop:
            message["stop_reason"], message["stop_sequence"] = "stop_sequence", matched

    def _tell(self, kind: str, **fields: Any) -> None:
        """Written out at once: the objects told of go on changing."""
        self._told += sse(kind, fields)

    def _take(self) -> bytes:
        told = bytes(self._told)
        self._told.clear()
        return told


def _object(arguments: str, cut: bool) -> Body:
    """A tool's input; empty where the token limit cut it. Raises UpstreamError where the model
    wrote something else."""
    try:
        made = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        made = None
    if not isinstance(made, dict):
        if cut:
            return {}
        raise UpstreamError("The arguments of a tool call are not a JSON object.")
    return made
