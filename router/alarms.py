"""Alarms: has the student's loss gone over a level? Asked after every audit, acted on at once.

Two statistics watch the same audits of served drafts, each a mean over bets of many sizes, so that
small and large harm are both found fast without knowing which will come:

- *harm*: an e-process against "the mean loss is at most ``level``, and was from the start". It
  ever reaches 1/delta with probability at most delta if that is true (Ville's inequality).
- *shift*: an e-detector against "and still is": every audit may be the first of a bad time. Sums
  of e-processes, one started at each audit (Shiryaev and Roberts; Shin, Ramdas and Rinaldo,
  2022). While the claim is true, the expected number of audits to a false alarm is at least
  ``arl``. It never falls under the e-CUSUM of the same bets and has the same guarantee, so it is
  the faster of the two.

Neither assumes more than that losses lie in [0, 1]. Where audits are not drawn uniformly, each
weighs least/propensity, in (0, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from router.certificate import spent

HARM, SHIFT = "harm", "shift"
#: Bets are sized for losses from ``level`` times this...
LEAST_HARM = 1.5
#: ... up to this one, in so many equal ratios.
MOST_HARM = 0.9
BETS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """The state; replaced, never changed. ``bets``: shares of the largest bet; ``harm`` and
    ``shift``: the log-capital of each; ``raised``: HARM or SHIFT, whichever came first, or None;
    ``audits``: those observed since the start; ``epoch``: which start this is, from 1 on."""

    level: float
    arl: float
    delta: float
    epoch: int
    bets: tuple[float, ...]
    harm: tuple[float, ...]
    shift: tuple[float, ...]
    audits: int = 0
    losses: float = 0.0
    raised: str | None = None


def start_alarms(level: float, *, arl: float = 1e4, delta: float = 0.05, epoch: int = 1) -> Alarms:
    """Nothing seen yet. ``level``: the mean loss of audited drafts that is still in order; for a
    contract over all requests, max_disagreement over the share that is served. ``delta``: the
    chance that HARM is ever raised falsely, over all epochs. Raises ValueError off the range."""
    if not 0.0 < level < 1.0 or not arl > 1.0 or not 0.0 < delta < 1.0:
        raise ValueError(f"no alarm has level={level}, arl={arl}, delta={delta}")
    least = min((LEAST_HARM - 1.0) * level, MOST_HARM / 2)
    ratio = (MOST_HARM / least) ** (1.0 / (BETS - 1))
    nothing = (-math.inf,) * BETS
    return Alarms(
        level=level,
        arl=arl,
        delta=delta,
        epoch=epoch,
        bets=tuple(least * ratio**at for at in range(BETS)),
        harm=(0.0,) * BETS,
        shift=nothing,
    )


def observe(alarms: Alarms, loss: float, weight: float = 1.0) -> Alarms:
    """The state after one more audit. Raises ValueError for a loss or weight out of its range."""
    if not 0.0 <= loss <= 1.0 or not 0.0 < weight <= 1.0:
        raise ValueError(f"loss={loss} and weight={weight} must be shares")
    over = weight * (loss / alarms.level - 1.0)
    gains = [math.log1p(bet * over) for bet in alarms.bets]
    harm = tuple(log + gain for log, gain in zip(alarms.harm, gains, strict=True))
    shift = tuple(_plus_one(log) + gain for log, gain in zip(alarms.shift, gains, strict=True))
    raised = alarms.raised
    if raised is None and _mean(harm) >= -math.log(spent(alarms.delta, alarms.epoch)):
        raised = HARM
    if raised is None and _mean(shift) >= math.log(alarms.arl):
        raised = SHIFT
    return replace(
        alarms,
        harm=harm,
        shift=shift,
        audits=alarms.audits + 1,
        losses=alarms.losses + loss,
        raised=raised,
    )


def restart(alarms: Alarms) -> Alarms:
    """The next epoch, with nothing seen and the part of delta that is set aside for it."""
    return start_alarms(alarms.level, arl=alarms.arl, delta=alarms.delta, epoch=alarms.epoch + 1)


def to_dict(alarms: Alarms) -> dict[str, Any]:
    """Plain values that JSON keeps to the bit."""
    # JSON has no infinity: before the first audit, the detector's logs are null.
    state = asdict(alarms)
    state["shift"] = [None if math.isinf(log) else log for log in alarms.shift]
    return state


def from_dict(state: Mapping[str, Any]) -> Alarms:
    """The state that ``to_dict`` took apart. Raises TypeError or ValueError on anything else."""
    values = dict(state)
    for name in ("bets", "harm", "shift"):
        values[name] = tuple(-math.inf if v is None else float(v) for v in values[name])
    return Alarms(**values)


def _plus_one(log: float) -> float:
    """log(exp(log) + 1)."""
    return max(log, 0.0) + math.log1p(math.exp(-abs(log)))


def _mean(logs: tuple[float, ...]) -> float:
    """The log of the mean of the exponentials."""
    top = max(logs)
    return top + math.log(math.fsum(math.exp(log - top) for log in logs) / len(logs))
