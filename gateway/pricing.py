"""Tokens to dollars. What is unknown is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.config import Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the upstream counted them; ``cached`` are those of ``prompt`` read from cache."""

    prompt: int
    completion: int
    cached: int = 0


def read_usage(usage: Any) -> Usage | None:
    """The ``usage`` object of an answer, or None where it has none that can be read."""
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(
        prompt=prompt, completion=completion, cached=cached if isinstance(cached, int) else 0
    )


def cost_usd(price: Price, usage: Usage | None) -> float | None:
    """Dollars for one call. None where a count or a price it needs is unknown."""
    if usage is None or price.input_usd is None or price.output_usd is None:
        return None
    cached_usd = price.input_usd if price.cached_input_usd is None else price.cached_input_usd
    fresh = usage.prompt - usage.cached
    dollars = (
        fresh * price.input_usd + usage.cached * cached_usd + usage.completion * price.output_usd
    )
    return dollars / 1e6


def add(*costs: float | None) -> float | None:
    """The sum, unknown as soon as one part is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


class TeacherEstimate:
    """What the teacher would have counted for a request the student answered.

    The teacher was not asked, so its counts are estimated from those of the task's earlier
    answers: tokens per byte of request, and tokens per character of answer. None before the first.
    """

    def __init__(self) -> None:
        self._bytes = self._prompt = self._chars = self._completion = 0

    def learn(self, body_bytes: int, text: str, usage: Usage | None) -> None:
        if usage is None or not text:
            return
        self._bytes += body_bytes
        self._prompt += usage.prompt
        self._chars += len(text)
        self._completion += usage.completion

    def of(self, body_bytes: int, text: str) -> Usage | None:
        if not self._bytes or not self._chars:
            return None
        return Usage(
            prompt=round(body_bytes * self._prompt / self._bytes),
            completion=max(1, round(len(text) * self._completion / self._chars)),
        )
