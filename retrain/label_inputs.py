"""Raw inputs of a task, as the requests its application would send to the teacher.

A line of the file is one of

    {"messages": [{"role": "user", …}], "metadata": {…}}
    {"text": "…", "gold": "…"}

and a file that does not end in .jsonl or .jsonl.gz is plain text, an input per line. The teacher's
prompt goes before whatever has no system message of its own.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrain.errors import TrafficError

#: Bad lines named in one error.
MOST_NAMED = 5

Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What is asked of the teacher beside the messages. ``json``: `response_format` is an object;
    ``logprobs``: the likeliest alternatives of each token, where the teacher offers them."""

    model: str
    system: str | None = None
    temperature: float | None = 0.0
    max_tokens: int | None = None
    json: bool = False
    logprobs: int | None = None


def read_inputs(path: Path, asking: Asking) -> list[Body]:
    """A request per input, in their order. Raises TrafficError with file:line of what is wrong."""
    found: list[Body] = []
    bad: list[tuple[int, str]] = []
    plain = not path.name.endswith((".jsonl", ".jsonl.gz"))
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            data = {"text": line.strip()} if plain else _object(line)
            found.append(_request(data, asking))
        except ValueError as error:
            bad.append((number, str(error)))
    if bad:
        (number, why), others = bad[0], [str(n) for n, _ in bad[1:MOST_NAMED]]
        more = f" (and {len(bad) - 1} more: {', '.join(others)})" if others else ""
        raise TrafficError(f"{path}:{number}: {why}{more}")
    if not found:
        raise TrafficError(f"{path}: no inputs in it")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
    except (OSError, EOFError) as error:
        raise TrafficError(f"{path}: cannot be read ({error})") from None


def _object(line: str) -> Body:
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def _request(data: Body, asking: Asking) -> Body:
    if "messages" in data:
        messages = _messages(data["messages"])
    elif isinstance(data.get("text"), str) and data["text"].strip():
        messages = [{"role": "user", "content": data["text"]}]
    else:
        raise ValueError("neither messages nor text")
    if asking.system is not None and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": asking.system}, *messages]
    metadata = data.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError("metadata is not an object")
    if "gold" in data:
        gold = data["gold"]
        text = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)
        metadata = {**metadata, "gold": text}
    body: Body = {"model": asking.model, "messages": messages}
    if metadata:
        body["metadata"] = metadata
    if asking.temperature is not None:
        body["temperature"] = asking.temperature
    if asking.max_tokens is not None:
        body["max_tokens"] = asking.max_tokens
    if asking.json:
        body["response_format"] = {"type": "json_object"}
    if asking.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": asking.logprobs}
    return body


def _messages(value: Any) -> list[Body]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages is empty")
    for at, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{at}] is not a message with a role")
    if value[-1]["role"] == "assistant":
        raise ValueError("it has an answer already: use `retort queue import`")
    if not any(message["role"] == "user" for message in value):
        raise ValueError("there is no user message")
    return value
