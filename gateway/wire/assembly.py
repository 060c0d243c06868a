"""A chat completion read back from the bytes a client received, whole or as a stream."""

from typing import Any

from gateway.wire.protocol import Body, json_object
from gateway.wire.streaming import event_data

#: these stand once in a stream, or again as they were; other texts come in pieces
_ONCE = frozenset({"id", "type", "role", "name"})


def read_whole(data: bytes) -> Body | None:
    """None where it is no completion."""
    answer = json_object(data)
    return answer if answer is not None and _chosen(answer) else None


def read_stream(data: bytes) -> Body | None:
    """The completion the chunks make up. None where the stream tells of an error, does not reach
    the end of every choice, or is made of something else."""
    try:
        return _joined(data)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None


def _joined(data: bytes) -> Body | None:
    made: Body = {}
    choices: dict[int, Body] = {}
    for text in event_data(data):
        if text == b"[DONE]":
            continue
        chunk = json_object(text)
        if chunk is None or chunk.get("error"):
            return None
        made |= {name: value for name, value in chunk.items() if value is not None}
        for choice in _chosen(chunk):
            _add(choices.setdefault(choice.get("index", 0), {}), choice)
    if not choices or any(choice.get("finish_reason") is None for choice in choices.values()):
        return None
    made["object"] = "chat.completion"
    made["choices"] = [_message(choices[index]) for index in sorted(choices)]
    return made


def _chosen(body: Body) -> list[Body]:
    choices = body.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _message(choice: Body) -> Body:
    delta = choice.pop("delta", None) or {}
    message = {"role": "assistant", "content": None, "refusal": None} | delta
    calls = message.pop("tool_calls", None)
    if calls:
        # the index only said which piece belonged where
        message["tool_calls"] = [{k: v for k, v in c.items() if k != "index"} for c in calls]
    return {"index": 0, "message": message, "logprobs": None} | choice


def _add(into: Body, piece: Body) -> None:
    """What is there already grows by the piece."""
    for name, value in piece.items():
        old = into.get(name)
        if isinstance(value, dict):
            if not isinstance(old, dict):
                old = into[name] = {}
            _add(old, value)
        elif isinstance(value, list):
            if not isinstance(old, list):
                old = into[name] = []
            _extend(old, value)
        elif isinstance(value, str) and isinstance(old, str) and name not in _ONCE:
            into[name] = value if name == "finish_reason" else old + value
        elif value is not None or name not in into:
            into[name] = value


def _extend(into: list[Any], pieces: list[Any]) -> None:
    """Items that carry an index are pieces of one another; others follow one another."""
    for piece in pieces:
        if not isinstance(piece, dict) or not isinstance(piece.get("index"), int):
            into.append(piece)
            continue
        for item in into:
            if item.get("index") == piece["index"]:
                _add(item, piece)
                break
        else:
            item = {}
            _add(item, piece)
            into.append(item)
