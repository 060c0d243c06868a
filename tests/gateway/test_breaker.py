"""A clock by hand."""

from gateway.upstreams.breaker import FAILURES, Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.closed
        breaker.failure()
    assert not breaker.closed
    return breaker


def test_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(Clock())
    for _ in range(3 * FAILURES):
        breaker.failure()
        breaker.success()
    assert breaker.closed
    opened(Clock())


def test_is_due_for_a_probe_after_a_pause_and_closes_when_it_succeeds() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.due()
    clock.now = 1.0
    assert breaker.due()
    breaker.delay()
    assert not breaker.due()
    clock.now = 2.0
    breaker.mend()
    assert breaker.closed


def test_a_failure_right_after_mending_opens_it_for_twice_as_long() -> None:
    clock = Clock()
    breaker = opened(clock)
    for pause in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        clock.now += pause - 0.01
        assert not breaker.due()
        clock.now += 0.02
        assert breaker.due()
        breaker.mend()
        breaker.failure()
        assert not breaker.closed


def test_a_success_forgets_everything() -> None:
    clock = Clock()
    breaker = opened(clock)
    breaker.success()
    assert breaker.closed
    breaker.failure()
    assert breaker.closed
