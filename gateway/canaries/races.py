"""What is compared while a canary runs: three races of `router/race.py`, fed from the ledger.

Requests of the two bundles come in any order. Those since the last comparison are gathered in a
block; as soon as it holds some of both and the challenger's next comes, the difference of their
means is one observation. Which requests are in a block is decided by the hash, never by how they
went, so the differences of two equal bundles have the expectation 0, whatever came before.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from gateway.config import CanarySection
from router import race
from router.race import Race

#: the draft was of no use, or nobody answered
TROUBLE = "trouble"
#: the teacher answered what the student might have
FALLBACK = "fallback"
#: the draft disagreed with the teacher, of requests chosen before there was a draft
LOSS = "loss"
RACES = (TROUBLE, FALLBACK, LOSS)
#: A race that observes fewer than this share of the step's requests, as the audits mostly do, can
#: end the canary but holds no step up: it could not pass one in any useful time.
ENOUGH = 0.25

#: (of the challenger?, value in [0, 1])
Seen = tuple[bool, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    total: float = 0.0
    n: int = 0

    def plus(self, value: float) -> "Sum":
        return Sum(total=self.total + value, n=self.n + 1)

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watch:
    """One race with what it is fed from. ``challenger`` and ``champion``: the open block;
    ``all_challenger`` and ``all_champion``: everything, for people; ``at_step``: comparisons made
    before this step."""

    race: Race
    challenger: Sum = field(default_factory=Sum)
    champion: Sum = field(default_factory=Sum)
    all_challenger: Sum = field(default_factory=Sum)
    all_champion: Sum = field(default_factory=Sum)
    at_step: int = 0


def begin(settings: CanarySection) -> dict[str, Watch]:
    """The races before the first request; each may err with a third of delta."""
    made = {}
    for name in RACES:
        more = settings.fallback_margin if name == FALLBACK else 0.0
        started = race.start(
            margin=settings.margin + more,
            tolerance=settings.tolerance + more,
            delta=settings.delta / len(RACES),
        )
        made[name] = Watch(race=started)
    return made


def feed(watch: Watch, seen: Sequence[Seen]) -> Watch:
    """After further requests, in their order."""
    mine, other = watch.challenger, watch.champion
    all_mine, all_other = watch.all_challenger, watch.all_champion
    x, y = [], []
    for challenger, value in seen:
        if challenger:
            if mine.n and other.n:
                x.append(mine.mean)
                y.append(other.mean)
                mine = other = Sum()
            mine, all_mine = mine.plus(value), all_mine.plus(value)
        else:
            other, all_other = other.plus(value), all_other.plus(value)
    return replace(
        watch,
        race=race.observe(watch.race, x, y),
        challenger=mine,
        champion=other,
        all_challenger=all_mine,
        all_champion=all_other,
    )


def lost(watches: dict[str, Watch]) -> str | None:
    """The first race that the challenger has lost."""
    return next((name for name in RACES if watches[name].race.rolled_back), None)


def passed(watches: dict[str, Watch], requests: int, settings: CanarySection) -> bool:
    """Whether the step is over. ``requests``: of the challenger in this step."""
    if requests >= settings.max_requests:
        return True
    if requests < settings.min_requests:
        return False
    enough = [w for w in watches.values() if w.race.n - w.at_step >= ENOUGH * requests]
    return bool(enough) and all(watch.race.passed for watch in enough)


def next_step(watches: dict[str, Watch]) -> dict[str, Watch]:
    """What was shown at one share is to be shown at the next; an alarm is looked for all along."""
    nothing = np.zeros(len(race.BETS))
    return {
        name: replace(
            watch, race=replace(watch.race, fine=nothing, finest=0.0), at_step=watch.race.n
        )
        for name, watch in watches.items()
    }


def said(name: str, watch: Watch) -> str:
    """In words and numbers."""
    mine, other = watch.all_challenger, watch.all_champion
    return (
        f"{name}: {mine.mean:.1%} of the canary's {mine.n}, {other.mean:.1%} of the champion's"
        f" {other.n}"
    )


def why_lost(name: str, watch: Watch) -> str:
    how = f"worse by more than {100 * watch.race.margin:g} points"
    chance = math.ceil(1000 * watch.race.delta * len(RACES)) / 10
    return f"{said(name, watch)}; {how}, with an error of at most {chance:g} %"


def to_dict(watches: dict[str, Watch]) -> dict[str, Any]:
    made = {}
    for name, watch in watches.items():
        values = asdict(watch)
        for bets in ("worse", "fine"):
            values["race"][bets] = values["race"][bets].tolist()
        made[name] = values
    return made


def from_dict(values: dict[str, Any]) -> dict[str, Watch]:
    made = {}
    for name in RACES:
        known = dict(values[name])
        state = dict(known.pop("race"))
        for bets in ("worse", "fine"):
            state[bets] = np.array(state[bets], np.float64)
        at_step = known.pop("at_step")
        sums = {key: Sum(**one) for key, one in known.items()}
        made[name] = Watch(race=Race(**state), at_step=at_step, **sums)
    return made
