"""When a failed call is made again: after which errors, after what pause, how often at most."""

import random

from gateway.errors import (
    GatewayError,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.upstreams.refusals import retry_after_s

#: a server that asks for a longer pause is left to the client's own retries
LONGEST_PAUSE_S = 5.0
#: refused because of who asks (key, quota) and not of what is asked
_WHO = frozenset({401, 402, 403})
_LATER = frozenset({408, 429})


class Bucket:
    """Keeps something rare: every request adds ``share`` of a token, up to ``most``, and each time
    it is done takes one. So an outage in which every call fails is not made worse by as many
    calls again."""

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = most
        self._tokens = most

    def deposit(self) -> None:
        self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def pause_s(error: GatewayError, attempt: int) -> float | None:
    """Seconds until the same server is asked again, the ``attempt``-th time (from 0); None where
    that would not help, or the server asks for more patience than a client has.

    A timeout is not repeated: the client has waited long enough.
    """
    if not isinstance(error, UpstreamUnavailable | UpstreamError | UpstreamRefused):
        return None
    if error.status != 429 and error.status < 500:
        return None
    asked_s = retry_after_s(error.headers)
    if asked_s is None:
        return random.uniform(0.5, 1.0) * min(0.25 * 2.0**attempt, LONGEST_PAUSE_S)
    return asked_s if asked_s <= LONGEST_PAUSE_S else None


def another_may(error: GatewayError, *, own_key: bool) -> bool:
    """Whether another server may do better. Not where the request itself is at fault; a key or
    quota refused is, unless the key is the gateway's own."""
    if isinstance(error, UpstreamUnavailable | UpstreamTimeout | UpstreamError):
        return True
    return error.status >= 500 or error.status in _LATER or (own_key and error.status in _WHO)


def to_tell(errors: list[GatewayError]) -> GatewayError:
    """Of what several servers said, what the client should hear: when to come back, if one of
    them knows, else what the first one said."""
    return next((error for error in errors if error.status == 429), errors[0])
