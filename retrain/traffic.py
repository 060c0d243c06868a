"""Recorded chats as traffic: OpenAI chat JSONL in, exchanges out. Gzip is read as it is.

Two forms of a line, mixed as you like:

    {"messages": [{"role": "user", …}, {"role": "assistant", "content": "…"}], "metadata": {…}}
    {"request": {"messages": […], …}, "response": {"choices": [{"message": …}], …}}

A line may carry `gold`, the right answer as far as it is known; it is kept in the request's
metadata and used for evaluation only.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import Task
from gateway.ids import new_id
from gateway.prompt import prompt_hash, user_text
from gateway.redaction import Redaction
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, utcnow
from retrain.errors import TrafficError
from router.decision import Reason, Route

#: Bad lines named in one error.
MOST_NAMED = 5
#: Rows stored in one transaction.
CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One recorded exchange. ``body`` is the request as the application would send it."""

    body: dict[str, Any]
    answer: str
    model: str | None = None


def read_traffic(path: Path) -> list[Recorded]:
    """All exchanges of the file. Raises TrafficError with file:line of what is wrong; nothing is
    skipped but empty lines."""
    found: list[Recorded] = []
    bad: list[tuple[int, str]] = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            found.append(_read(line))
        except ValueError as error:
            bad.append((number, str(error)))
    if bad:
        (number, why), others = bad[0], bad[1:]
        more = ", ".join(str(n) for n, _ in others[: MOST_NAMED - 1])
        dots = ", …" if len(others) >= MOST_NAMED else ""
        tail = f" ({len(others)} more bad lines: {more}{dots})" if others else ""
        raise TrafficError(f"{path}:{number}: {why}{tail}")
    if not found:
        raise TrafficError(f"{path}: no exchanges in it")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    yield number, "\x00"  # not JSON: reported with its number
    except (OSError, EOFError) as error:
        raise TrafficError(f"{path}: cannot be read ({error})") from None


def _read(line: str) -> Recorded:
    """Raises ValueError with what is wrong."""
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    recorded = _pair(data) if "request" in data or "response" in data else _chat(data)
    if "gold" in data:
        gold = data["gold"]
        text = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)
        metadata = recorded.body.get("metadata") or {}
        return Recorded(
            body={**recorded.body, "metadata": {**metadata, "gold": text}},
            answer=recorded.answer,
            model=recorded.model,
        )
    return recorded


def _chat(data: Mapping[str, Any]) -> Recorded:
    messages = _messages(data.get("messages"), "messages")
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError("the last message is not the assistant's: there is no answer to learn")
    body = {key: data[key] for key in ("model", "metadata", "tools") if key in data}
    body["messages"] = messages[:-1]
    _check_asked(body)
    return Recorded(body=body, answer=_text(last), model=_string(data.get("model")))


def _pair(data: Mapping[str, Any]) -> Recorded:
    request, response = data.get("request"), data.get("response")
    if not isinstance(request, dict):
        raise ValueError("request is missing or not an object")
    if not isinstance(response, dict):
        raise ValueError("response is missing or not an object")
    _messages(request.get("messages"), "request.messages")
    _check_asked(request)
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("response.choices is missing or empty")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("response.choices[0].message is missing")
    return Recorded(body=request, answer=_text(message), model=_string(response.get("model")))


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is missing or empty")
    for at, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{name}[{at}] is not a message with a role")
    return value


def _check_asked(body: Mapping[str, Any]) -> None:
    if not any(message["role"] == "user" for message in body["messages"]):
        raise ValueError("there is no user message")
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise ValueError("metadata is not an object")


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise ValueError("the assistant's answer has no text")
    return content


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """``repeated``: requests that are in the store already, or twice in the file."""

    stored: int
    repeated: int


def import_traffic(store: Store, task: Task, recorded: Sequence[Recorded]) -> Imported:
    """Put recorded exchanges into the queue, as if the gateway had collected them now: the
    teacher answered all of them, so all are sampled. Importing a file twice changes nothing but
    the count of repeats. Raises StoreError."""
    stored = 0
    for start in range(0, len(recorded), CHUNK):
        rows = [_exchange(task, item) for item in recorded[start : start + CHUNK]]
        stored += store.insert(rows).count("stored")
    return Imported(stored=stored, repeated=len(recorded) - stored)


def _exchange(task: Task, recorded: Recorded) -> Exchange:
    canonical = json.dumps(recorded.body, sort_keys=True, ensure_ascii=False)
    key = exchanges.dedupe_key(task.name, canonical.encode("utf-8", "replace"))
    return collected(task, recorded.body, recorded.answer, recorded.model, key)


def collected(
    task: Task, said: Mapping[str, Any], answer: str | None, model: str | None, key: str
) -> Exchange:
    """A row as if the gateway had collected the request now, redacted. ``key`` tells repeats."""
    redaction = Redaction(task.redact)
    body = redaction.json(said)
    prompt = user_text(task.prompt, body["messages"])
    return Exchange(
        id=new_id("req"),
        dedupe_key=key,
        at=utcnow(),
        task=task.name,
        group_key=exchanges.group_key(prompt, body),
        prompt=prompt,
        body=body,
        teacher_text=redaction.optional(answer),
        teacher_model=model,
        route=Route.TEACHER.value,
        reason=Reason.COLLECT.value,
        sampled=True,
        propensity=1.0,
        prompt_hash=prompt_hash(task.prompt),
        subject=exchanges.subject(said),
    )
