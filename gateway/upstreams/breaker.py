"""A circuit breaker: after several failures in a row, stop asking for a while."""

import time
from collections.abc import Callable

FAILURES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Breaker:
    """Closed: calls are let through. Open: none should be, until a probe off the request path
    succeeds. ``due()`` says when to probe; ``mend()`` after a good probe closes the breaker on
    trial: the first failure then opens it again, for twice as long. A call that succeeds, probe or
    not, ends all of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._until: float | None = None
        self._trial = False

    @property
    def closed(self) -> bool:
        return self._until is None

    def due(self) -> bool:
        return self._until is not None and self._clock() >= self._until

    def success(self) -> None:
        self._until = None
        self._failures = 0
        self._trial = False
        self._pause_s = FIRST_PAUSE_S

    def failure(self) -> None:
        self._failures += 1
        if self._until is None and (self._trial or self._failures >= FAILURES):
            if self._trial:
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._until = self._clock() + self._pause_s

    def mend(self) -> None:
        self._until = None
        self._failures = 0
        self._trial = True

    def delay(self) -> None:
        """The probe failed: wait the same time again."""
        self._until = self._clock() + self._pause_s
