"""Tokens to dollars. What is unknown is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.config import Price

#: more tokens than any call has: a count above it is a mistake, and no database column holds it
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the upstream counted them. Of ``prompt``, ``cached`` were read from the provider's
    cache, ``cache_write`` written to it and ``audio_prompt`` are sound; of ``completion``,
    ``reasoning`` were thought and ``audio_completion`` are sound. ``tier``: the service tier that
    answered, empty for the ordinary one."""

    prompt: int
    completion: int
    cached: int = 0
    cache_write: int = 0
    audio_prompt: int = 0
    reasoning: int = 0
    audio_completion: int = 0
    tier: str = ""

    @property
    def audio(self) -> int:
        return self.audio_prompt + self.audio_completion


#: other names of the ordinary service tier
_ORDINARY = frozenset({"", "auto", "default", "standard"})


def read_usage(usage: Any, tier: Any = None) -> Usage | None:
    """The ``usage`` object of an answer, or None where it has none that can be read.

    Reads chat completions, completions and embeddings (``prompt_tokens``), Responses
    (``input_tokens``) and Anthropic's messages, whose ``input_tokens`` leave the cached ones out.
    ``tier`` is the answer's ``service_tier``.
    """
    if not isinstance(usage, Mapping):
        return None
    if "prompt_tokens" in usage:
        prompt, completion = usage["prompt_tokens"], usage.get("completion_tokens", 0)
        of_prompt = usage.get("prompt_tokens_details")
        of_completion = usage.get("completion_tokens_details")
    else:
        prompt, completion = usage.get("input_tokens"), usage.get("output_tokens", 0)
        of_prompt = usage.get("input_tokens_details")
        of_completion = usage.get("output_tokens_details")
    if not _count(prompt) or not _count(completion):
        return None
    cached = _part(of_prompt, "cached_tokens")
    written = _part(of_prompt, "cache_write_tokens") or _part(of_prompt, "cache_creation_tokens")
    if "input_tokens" in usage:
        cached_beside = _part(usage, "cache_read_input_tokens")
        written_beside = _part(usage, "cache_creation_input_tokens")
        prompt += cached_beside + written_beside
        cached, written = cached or cached_beside, written or written_beside
        if prompt > _MOST:
            return None
    reasoning = _part(of_completion, "reasoning_tokens")
    if reasoning and usage.get("total_tokens") == prompt + completion + reasoning:
        # some count what was thought beside the completion; it is billed all the same
        completion = min(completion + reasoning, _MOST)
    # parts beyond the whole are a mistake of the upstream: none of them may make a cost negative
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    reasoning = min(reasoning, completion)
    return Usage(
        prompt=prompt,
        completion=completion,
        cached=cached,
        cache_write=written,
        audio_prompt=min(_part(of_prompt, "audio_tokens"), prompt - cached - written),
        reasoning=reasoning,
        audio_completion=min(_part(of_completion, "audio_tokens"), completion - reasoning),
        tier=tier if isinstance(tier, str) and tier not in _ORDINARY else "",
    )


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _part(details: Any, name: str) -> int:
    value = details.get(name) if isinstance(details, Mapping) else None
    return value if _count(value) and value is not None else 0


def cost_usd(price: Price | None, usage: Usage | None) -> float | None:
    """Dollars for one call. None where a count or a price it needs is unknown."""
    if usage is None or price is None or price.input_usd is None:
        return None
    special_input = usage.cached + usage.cache_write + usage.audio_prompt
    special_output = usage.reasoning + usage.audio_completion
    dollars = (usage.prompt - special_input) * price.input_usd
    if usage.completion > special_output:
        if price.output_usd is None:
            return None
        dollars += (usage.completion - special_output) * price.output_usd
    if special_input or special_output:
        for tokens, usd in (
            (usage.cached, _else(price.cached_input_usd, price.input_usd)),
            (usage.cache_write, _else(price.cache_write_usd, price.input_usd)),
            (usage.audio_prompt, price.audio_input_usd),
            (usage.reasoning, _else(price.reasoning_usd, price.output_usd)),
            (usage.audio_completion, price.audio_output_usd),
        ):
            if tokens and usd is None:
                return None
            dollars += tokens * (usd or 0.0)
    return dollars / 1e6


def _else(price: float | None, other: float | None) -> float | None:
    return other if price is None else price


def add(*costs: float | None) -> float | None:
    """The sum, unknown as soon as one part is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


class TeacherEstimate:
    """What the teacher would have counted for a request the student answered.

    The teacher was not asked, so its counts are estimated from those of the task's earlier
    answers: tokens per byte of request, cached ones among them, and tokens per character of
    answer. None before the first.
    """

    def __init__(self) -> None:
        self._bytes = self._prompt = self._cached = self._chars = self._completion = 0

    def learn(self, body_bytes: int, text: str, usage: Usage | None) -> None:
        if usage is None or not text:
            return
        self._bytes += body_bytes
        self._prompt += usage.prompt
        self._cached += usage.cached
        self._chars += len(text)
        self._completion += usage.completion

    def of(self, body_bytes: int, text: str) -> Usage | None:
        if not self._bytes or not self._chars:
            return None
        return Usage(
            prompt=round(body_bytes * self._prompt / self._bytes),
            cached=round(body_bytes * self._cached / self._bytes),
            completion=max(1, round(len(text) * self._completion / self._chars)),
        )
