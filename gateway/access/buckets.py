"""One minute's worth of requests or tokens as a bucket: what is taken of it, and what the caller is
told. Pure: the clock and the state are arguments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.access.estimate import guess
from gateway.access.keys import Caller
from gateway.errors import RateLimited

MINUTE_S = 60.0
#: times are kept in the database as Unix time, whose last digit is near this
_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a request takes of one limit; ``kind`` is requests or tokens."""

    kind: str
    bucket: str
    limit: int
    amount: int

    @property
    def seconds(self) -> float:
        """How long the bucket takes to refill it."""
        return seconds(self.amount, self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """``owed``: seconds by bucket that are charged whether or not there is room; negative where
    an estimate was too high."""

    wants: tuple[Want, ...] = ()
    owed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``refused``: the limit in the way; nothing was taken from any then. ``full_in_s``: by
    bucket, in how many seconds all of it will be free."""

    refused: Want | None
    full_in_s: Mapping[str, float]


def seconds(amount: int, limit: int) -> float:
    return amount * MINUTE_S / limit


def decide(full_at: dict[str, float], now: float, ask: Ask) -> Verdict:
    """Charge what is asked to the buckets, or say which of them has no room for it."""
    for bucket, owed in ask.owed.items():
        full_at[bucket] = max(full_at.get(bucket, 0.0), now) + owed
    after = {
        want.bucket: max(full_at.get(want.bucket, 0.0), now) + want.seconds for want in ask.wants
    }
    refused = next(
        (w for w in ask.wants if w.amount and after[w.bucket] - now > MINUTE_S + _ROUNDING_S),
        None,
    )
    if refused is None:
        full_at.update(after)
    left = {want.bucket: full_at.get(want.bucket, 0.0) - now for want in ask.wants}
    return Verdict(refused=refused, full_in_s=left)


def wanted(caller: Caller, raw: bytes) -> tuple[Want, ...]:
    wants = []
    if caller.rpm is not None:
        name = bucket_name("requests", caller)
        wants.append(Want(kind="requests", bucket=name, limit=caller.rpm, amount=1))
    if caller.tpm is not None:
        used = guess(raw)
        tokens = max(1, used.prompt + used.completion) if raw else 0
        name = bucket_name("tokens", caller)
        wants.append(Want(kind="tokens", bucket=name, limit=caller.tpm, amount=tokens))
    return tuple(wants)


def bucket_name(kind: str, caller: Caller) -> str:
    return f"{kind}:{caller.id}"


def headers(wants: Sequence[Want], verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Where the caller stands, as OpenAI says it."""
    made = []
    for want in wants:
        full_in_s = max(0.0, verdict.full_in_s[want.bucket])
        left = max(0, math.floor((MINUTE_S - full_in_s) * want.limit / MINUTE_S + _ROUNDING_S))
        for what, value in (
            ("limit", str(want.limit)),
            ("remaining", str(left)),
            ("reset", duration(full_in_s)),
        ):
            made.append((f"x-ratelimit-{what}-{want.kind}".encode(), value.encode()))
    return made


def refusal(want: Want, verdict: Verdict) -> RateLimited:
    if want.amount > want.limit:
        error = RateLimited(
            f"The request needs about {want.amount} tokens, and this API key may use"
            f" {want.limit} a minute: shorten it, or lower max_tokens."
        )
        error.retry = False
        return error
    wait_s = max(0.0, verdict.full_in_s[want.bucket]) + want.seconds - MINUTE_S
    return RateLimited(
        f"Rate limit reached: {want.limit} {want.kind} a minute. Try again in {duration(wait_s)}.",
        headers={"retry-after": str(max(1, math.ceil(wait_s)))},
    )


def duration(value_s: float) -> str:
    """As Go writes it, and OpenAI after it: 12ms, 8.64s, 6m0s."""
    if value_s < 1:
        return f"{math.ceil(value_s * 1000)}ms" if value_s > 0 else "0s"
    minutes, rest = divmod(round(value_s, 2), 60)
    short = f"{rest:.2f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{short}s" if minutes else f"{short}s"
