"""What unclaimed traffic uses, for callers with limits or budgets: read from its answers as they
pass. Nobody else's answers are looked at."""

from collections.abc import Mapping
from typing import Any

from gateway.access.budgets import Budgets, Cost
from gateway.access.estimate import guess, model_named
from gateway.access.purses import Hold
from gateway.money.pricing import Usage, read_usage
from gateway.wire.protocol import Incoming, json_object

#: an answer longer than this is not read for its usage
MOST_BYTES = 16_000_000


async def metered(budgets: Budgets, cost: Cost, incoming: Incoming) -> "Meter | None":
    """None where nobody wants to know. ``cost`` is that of unclaimed traffic. Raises
    InsufficientQuota."""
    caller = incoming.caller
    if incoming.method != "POST" or (caller.tpm is None and not caller.budgeted):
        return None
    hold = await budgets.hold(incoming.raw, caller=caller)
    return Meter(cost, guess(incoming.raw), hold)


class Meter:
    """``feed`` it the answer, ``settle`` at its end. A stream that tells no usage is counted,
    about one token an event: it was not asked for usage, and must not be free for that."""

    def __init__(self, cost: Cost, guessed: Usage, hold: Hold | None) -> None:
        self._cost_of = cost
        self._guessed = guessed
        self._hold = hold
        self._rest = bytearray()
        self._told: Usage | None = None
        self._events = 0
        self._too_long = False

    def feed(self, part: bytes, *, events: bool) -> None:
        if self._too_long:
            return
        self._rest += part
        if events:
            *lines, last = self._rest.split(b"\n")
            self._rest = last
            for line in lines:
                self._read(line)
        if len(self._rest) > MOST_BYTES:
            self._too_long = True
            self._rest.clear()

    def settle(self, incoming: Incoming, status: int) -> None:
        """``status`` as it is counted: 499 where the client left."""
        usage = self.usage()
        if usage is not None:
            incoming.tokens = usage.prompt + usage.completion
        if self._hold is not None:
            # an error costs nothing; the teacher may have gone on working after a timeout
            free = status >= 400 and status not in (499, 504) and usage is None
            self._hold.settle(0.0 if free else self._cost(usage, incoming.raw))

    def _cost(self, usage: Usage | None, raw: bytes) -> float | None:
        return None if usage is None else self._cost_of(usage, model_named(raw))

    def usage(self) -> Usage | None:
        """None where it is not told."""
        if self._told is not None:
            return self._told
        if self._events:
            return Usage(prompt=self._guessed.prompt, completion=self._events)
        return None if self._too_long else any_usage(json_object(self._rest))

    def _read(self, line: bytearray) -> None:
        if not line.startswith(b"data:"):
            return
        self._events += 1
        if b'"usage"' in line:
            self._told = any_usage(json_object(line[5:])) or self._told


def any_usage(body: Any) -> Usage | None:
    """The usage in an answer, or event, of any endpoint: chat, completions, embeddings,
    responses."""
    if not isinstance(body, Mapping):
        return None
    if body.get("usage") is None and isinstance(inner := body.get("response"), Mapping):
        body = inner
    return read_usage(body.get("usage"), body.get("service_tier"))
