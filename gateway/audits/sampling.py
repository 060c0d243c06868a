"""With which probability the next request of a task is audited: the plan, and what is known now."""

import time
from dataclasses import dataclass, field

from gateway.config import AuditSection
from router import sampler
from router.output import Kind
from router.sampler import Counts, Plan

DAY_S = 86400.0


def plan(section: AuditSection) -> Plan:
    return Plan(
        rate=section.rate,
        first_rate=section.first_rate,
        first_requests=section.first_requests,
        per_day=section.per_day,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What all gateways did, as the database had it a few seconds ago. ``typical``: the mean loss
    of recent audits. ``shape``: of sampling by doubt, None while it is uniform."""

    counts: Counts = field(default_factory=Counts)
    typical: float = 0.0
    shape: float | None = None


class Sampling:
    """Of one task. ``known`` is read every few seconds; in between, what this gateway promised
    itself is added, so that a floor is not overshot by a burst. Closed, nothing is sampled: the
    budget is spent or the line is full, and the certificate leaves such requests out."""

    def __init__(self, section: AuditSection) -> None:
        self.plan = plan(section)
        self.by_doubt = section.sampler == "sqrt"
        self.closed: str | None = None
        self._known = Known()
        self._own = 0

    @property
    def least(self) -> float:
        """The smallest propensity there ever is, but for 0."""
        return sampler.least(self.plan, by_doubt=self.by_doubt)

    def learn(self, known: Known) -> None:
        self._known, self._own = known, 0

    def promised(self) -> None:
        """An audit was promised that ``known`` has not seen yet."""
        self._own += 1

    def rate(self, factor: float = 1.0) -> float:
        """For the next request, before anything is known of it. ``factor``: drift asks for more."""
        if self.closed is not None:
            return 0.0
        counts = self._known.counts
        day_left = 1.0 - time.time() % DAY_S / DAY_S
        now = Counts(
            requests=counts.requests,
            served=counts.served,
            promised=counts.promised + self._own,
            day_left=day_left,
        )
        return min(1.0, factor * sampler.rate(self.plan, now))

    def guess(self, kind: Kind, score: float, *, learned: bool) -> float:
        """The loss to expect of a draft."""
        return sampler.expected_loss(kind, score, learned=learned, typical=self._known.typical)

    def propensity(self, rate: float, guess: float) -> float:
        """Of a request with this rate, once its draft is known."""
        return sampler.by_doubt(rate, guess, self._known.shape) if self.by_doubt else rate

    def uniform(self, rate: float) -> float:
        """The part of every propensity that does not depend on the draft: rows drawn by it are
        traffic as it is."""
        return rate * sampler.SPREAD if self.by_doubt and rate < 1.0 else rate
