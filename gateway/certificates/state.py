"""What a certificate holds: the capital of every threshold, and counts of what was served."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.certificates.outcomes import Row, Window, served
from gateway.config import Config, Task
from router import certificate as live
from router.certificate import LIVE_GRID, Outcome, Wealth, from_arrays, spent, to_arrays
from router.router import Start
from router.threshold import NEVER, Certificate, shares

Doubles = NDArray[np.float64]

#: A promise of nothing or of everything has no betting game; these are as good as such.
EDGE = 1e-6
#: An audit is tried again for the task's patience, and waited for so many times as long.
PATIENCES = 2.0
#: Two-sided 95 % of the normal distribution.
Z = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The task's promise, and how long rows may take."""

    task: str
    alpha: float
    delta: float
    """Of the live certificate: its part of 1 - confidence."""
    offline_delta: float
    """The other part."""
    lifetime: bool
    """Whether all bundles share them."""
    window: Window


def terms_of(config: Config, task: Task) -> Terms:
    offline, delta = shares(min(1.0 - EDGE, max(EDGE, 1.0 - task.contract.confidence)))
    return Terms(
        task=task.name,
        alpha=min(1.0 - EDGE, max(EDGE, task.contract.max_disagreement)),
        delta=delta,
        offline_delta=offline,
        lifetime=task.contract.spend == "lifetime",
        window=Window(
            settle_s=config.certificate.settle_s, audit_wait_s=PATIENCES * task.audit.patience_s
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """``seen``: requests counted, those of them that the student answered, and of their audits the
    sums of weight, weight², weight x loss; weight is 1/propensity."""

    wealth: Wealth
    seen: Doubles


def begin(terms: Terms, start: Start, turn: int, since: str) -> State:
    """Before the first request. The first start is made on the calibration rows; after an alarm
    they count no longer. ``turn``: which part of the allowed error it has."""
    fresh = since == ""
    delta = spent(terms.delta * (start.share if fresh else 1.0), turn)
    wealth = live.start(LIVE_GRID, terms.alpha, delta, least_propensity=1.0)
    if fresh:
        rows = zip(start.scores.tolist(), start.losses.tolist(), strict=True)
        wealth = live.update(
            wealth,
            [Outcome(score=s, propensity=1.0, loss=loss, least=1.0) for s, loss in rows],
        )
    return State(wealth=wealth, seen=np.zeros(5))


def add(state: State, counted: Sequence[tuple[Row, Outcome]]) -> State:
    seen = state.seen.copy()
    for row, outcome in counted:
        answered = served(row)
        seen[:2] += (1.0, float(answered))
        if answered and outcome.loss is not None:
            weight = 1.0 / outcome.propensity
            seen[2:] += (weight, weight * weight, weight * outcome.loss)
    wealth = live.update(state.wealth, [outcome for _, outcome in counted])
    return replace(state, wealth=wealth, seen=seen)


def pack(state: State) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, seen=state.seen, **to_arrays(state.wealth))
    return buffer.getvalue()


def unpack(data: bytes) -> State:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return State(seen=arrays.pop("seen"), wealth=from_arrays(arrays))


def same(ours: State, theirs: State) -> bool:
    """Equal to the last bit."""
    a, b = to_arrays(ours.wealth), to_arrays(theirs.wealth)
    return (
        a.keys() == b.keys()
        and all(np.array_equal(a[name], b[name]) for name in a)
        and np.array_equal(ours.seen, theirs.seen)
    )


def threshold_of(terms: Terms, state: State, offline: Certificate | None, since: str) -> float:
    """The laxer of both certificates; the offline one counts while no alarm has refuted it, and if
    it promises no less than the contract does now, for this bundle alone."""
    online = live.threshold(state.wealth)
    if offline is None or since != "" or terms.lifetime:
        return online
    enough = 1.0 - terms.offline_delta
    if offline.max_disagreement > terms.alpha + EDGE or offline.confidence < enough - EDGE:
        return online
    return min(online, offline.threshold)


def figures(terms: Terms, state: State, threshold: float) -> dict[str, Any]:
    """For people and gauges. ``wealth``: how near the next laxer threshold is, as the log of its
    largest capital so far over that of 1/delta: at 1 it is certified."""
    wealth = state.wealth
    found = live.evidence(wealth)
    goal = -math.log(wealth.delta)
    at = int((wealth.grid >= found.threshold).sum())
    low, value, high = disagreement(state)
    return {
        "alpha": terms.alpha,
        "delta": wealth.delta,
        "online_threshold": found.threshold,
        "next_threshold": found.next_threshold,
        "audits_needed": found.audits_needed,
        "wealth": float(wealth.peak[at]) / goal if at < len(wealth.grid) else 1.0,
        "disagreement_estimate": value,
        "disagreement_low": low,
        "disagreement_high": high,
        "served": threshold < NEVER,
    }


def disagreement(state: State) -> tuple[float | None, float | None, float | None]:
    """Low, estimate, high of the share of requests that the student answered in disagreement since
    the start: its share of answers, times the weighted mean loss of its audits with Wilson's 95 %
    interval for as many audits as the weights are worth. None without audits."""
    rows, answered, weights, squares, losses = state.seen.tolist()
    if not weights:
        return None, None, None
    share, mean, n = answered / rows, losses / weights, weights * weights / squares
    centre = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
    return share * max(0.0, centre - half), share * mean, share * min(1.0, centre + half)
