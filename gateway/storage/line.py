"""A row of the ledger before it is in the database.

The same columns as `tables.Request`, without the mapping: a mapped object of this size takes
seventy times as long to build (measured), and would be built for every request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from sqlmodel import SQLModel

from gateway.money.pricing import Usage
from gateway.storage.promise import Promise
from gateway.storage.tables import utcnow

#: the task of traffic that no task claims
UNCLAIMED = "-"
_ENDPOINTS = frozenset({"chat/completions", "completions", "embeddings", "responses", "messages"})
_LONGEST_NAME = 200


@dataclass(slots=True, kw_only=True)
class Line:
    """See `tables.Request` for what the fields mean."""

    __tablename__: ClassVar[str] = "request"

    id: str
    task: str
    route: str
    reason: str
    status: int
    duration_ms: float
    at: datetime = field(default_factory=utcnow)
    kind: str = "answer"
    parent: str | None = None
    endpoint: str = "chat/completions"
    caller: str = ""
    bundle: str | None = None
    model: str | None = None
    completion_id: str | None = None
    stream: bool = False
    retries: int = 0
    score: float | None = None
    p_ood: float | None = None
    sampled: bool = False
    propensity: float | None = None
    guess: float | None = None
    loss: float | None = None
    least: float | None = None
    written_at: datetime | None = None
    heard: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    student_usd: float | None = None
    teacher_usd: float | None = None
    cost_usd: float | None = None
    teacher_cost_usd: float | None = None
    estimated: bool = False
    first_token_ms: float | None = None
    queue_ms: float | None = None
    student_ms: float | None = None
    teacher_ms: float | None = None
    overhead_ms: float | None = None

    def count(self, usage: Usage | None) -> None:
        """The tokens of whoever answered."""
        if usage is None:
            return
        self.prompt_tokens, self.completion_tokens = usage.prompt, usage.completion
        self.cached_tokens, self.cache_write_tokens = usage.cached, usage.cache_write
        self.reasoning_tokens, self.audio_tokens = usage.reasoning, usage.audio


#: what the store takes
Row = SQLModel | Line | Promise


def endpoint_of(path: str) -> str:
    """From a closed set."""
    name = path.removeprefix("/v1/")
    return name if name in _ENDPOINTS else "other"


def retries_of(headers: Mapping[str, str]) -> int:
    """How often the official clients say they have sent this request before."""
    value = headers.get("x-stainless-retry-count", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0


def name_of(model: object) -> str | None:
    """The name an answer gives its model, where it is one."""
    return model if isinstance(model, str) and len(model) <= _LONGEST_NAME else None


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
