"""Which requests are audited: with what probability, and by which coin.

The probability (the *propensity*) of a request depends only on what is known before its loss: how
many audits there were, and, where drafts are sampled by their doubt, the loss expected of this one.
The coin is a hash of the request's id. Both are in the ledger, so anybody can throw it again, and
an audit that comes home changes no propensity that was given before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from router.output import Kind

#: No request's propensity is under this share of the rate, however sure its draft is: weights of
#: 1/propensity stay within five times those of uniform sampling.
SPREAD = 0.2
#: Guesses from which the shape of sampling by doubt is worked out; with fewer it is uniform.
SHAPE_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``rate``: the steady share, 0 for no audits at all. ``first_rate``: at least this of the
    first ``first_requests`` of a bundle. ``per_day``: audits wanted in a day."""

    rate: float
    first_rate: float = 0.0
    first_requests: int = 0
    per_day: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What was known before a request. ``requests``: of the live bundle. ``served``: by the student
    in the last 24 hours. ``promised``: audits of this day, pending ones too. ``day_left``: the
    share of this day that is still to come."""

    requests: int = 0
    served: int = 0
    promised: int = 0
    day_left: float = 1.0


def rate(plan: Plan, counts: Counts) -> float:
    """The probability of the next request: the plan's, raised where a new bundle has had few
    requests, or where this day's audits are behind. What is missing is spread over the served
    requests still expected today, so a quiet day ends with all of them audited."""
    if plan.rate <= 0.0:
        return 0.0
    first = plan.first_rate if counts.requests < plan.first_requests else 0.0
    missing = plan.per_day - counts.promised
    floor = missing / max(1.0, counts.served * counts.day_left) if missing > 0 else 0.0
    return min(1.0, max(plan.rate, first, floor))


def least(plan: Plan, *, by_doubt: bool) -> float:
    """The smallest propensity the plan ever gives, budgets aside: it bounds the weights of a
    certificate."""
    return plan.rate * (SPREAD if by_doubt else 1.0)


def shape(guesses: Sequence[float] | NDArray[np.float64]) -> float | None:
    """The factor k for which `by_doubt` samples drafts like these at the rate on average.
    ``guesses``: expected losses of recent served drafts. None where they say too little: sample
    uniformly."""
    u = np.clip(np.asarray(guesses, dtype=np.float64), 0.0, 1.0)
    doubt = np.sqrt(u * (1.0 - u))
    if len(doubt) < SHAPE_ROWS or not (doubt > 0.0).any():
        return None
    # the floor only adds: without it the mean would be 1 at the upper end
    low, high = 0.0, 1.0 / float(doubt.mean())
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _mean(middle, doubt) < 1.0 else (low, middle)
    return (low + high) / 2.0


def by_doubt(rate: float, guess: float, k: float | None) -> float:
    """The propensity of a draft with this expected loss: like the loss's standard deviation, which
    is where an audit says most, and never under SPREAD of the rate. Neyman's allocation; the square
    root of u(1-u) for a loss of 0 or 1."""
    if k is None or rate >= 1.0:
        return rate
    u = min(1.0, max(0.0, guess))
    return min(1.0, rate * max(SPREAD, k * sqrt(u * (1.0 - u))))


def _mean(k: float, doubt: NDArray[np.float64]) -> float:
    return float(np.maximum(k * doubt, SPREAD).mean())


def expected_loss(kind: Kind, score: float, *, learned: bool, typical: float) -> float:
    """The loss to expect of a draft with this score, in [0, 1]. Where the score is a probability
    (of the answer's values, or a head's word) what it leaves; else ``typical``, the mean of losses
    known before. A poor guess costs audits, never the promise."""
    guess = 1.0 - score if learned or kind != "text" else typical
    return min(1.0, max(0.0, guess))


def coin(request_id: str, seed: str = "") -> float:
    """Uniform in [0, 1), by the id and nothing else; another ``seed`` is another coin."""
    return int.from_bytes(sha256((seed + request_id).encode()).digest()[:8], "big") / 2**64


def sampled(request_id: str, propensity: float) -> bool:
    """Whether the request with this propensity was drawn."""
    return coin(request_id) < propensity
