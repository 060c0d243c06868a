"""A label task's labels as fixed positions: what the student gave each of them at its first token.

The probability of the answer alone does not show a student that leans to one label whatever it is
asked; those of all labels, by name, do. Only first tokens are compared, because the server returns
alternatives for one token at a time: labels that begin alike share a value.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from router.decision import Token
from router.output import bare

#: The least probability of a label whose name was not among the alternatives.
LEAST = 1e-12


def option_logs(tokens: Sequence[Token], labels: tuple[str, ...]) -> tuple[float, ...]:
    """The log-probability that the first token with text begins each label; last, that it begins
    none of them. A label that was not returned has what the alternatives left over, and at most
    the least of them."""
    token = next((token for token in tokens if bare(token.text)), tokens[0])
    names = token.names if len(token.names) == len(token.top) > 0 else (token.text,)
    tops = token.top if names is token.names else (token.logprob,)
    shares = [0.0] * len(labels)
    total = none = 0.0
    least = 1.0
    for name, logprob in zip(names, tops, strict=True):
        share = math.exp(logprob) if -50.0 <= logprob <= 0.0 else float(logprob > 0.0)
        total += share
        least = min(least, share)
        begins = _begins(labels, name)
        if not begins:
            none += share
        for at in begins:
            shares[at] += share
    left = max(LEAST, min(least, 1.0 - total))
    none += max(0.0, 1.0 - total)
    return (
        *[math.log(min(1.0, share or left)) for share in shares],
        math.log(min(1.0, max(LEAST, none))),
    )


@lru_cache(maxsize=64)
def places(labels: tuple[str, ...]) -> dict[str, int]:
    """Where each label stands, by its bare name."""
    return {bare(label): at for at, label in reversed(list(enumerate(labels)))}


@lru_cache(maxsize=65_536)
def _begins(labels: tuple[str, ...], name: str) -> tuple[int, ...]:
    piece = bare(name)
    return tuple(at for at, label in enumerate(labels) if piece and bare(label).startswith(piece))
