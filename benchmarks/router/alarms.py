"""How soon is harm heard, and how often is it heard where there is none?

    python benchmarks/router/alarms.py

Audits of served drafts, one after the other, in order for CALM of them and then suddenly worse.
The loss is 0 or 1. ``router.alarms`` runs on a few streams as it is; the many streams of the table
use its statistic for whole columns of streams, after checking that both say the same. The e-CUSUM
of the same bets and a single bet are the baselines: they have the same guarantee.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles, resamples
from router.alarms import SHIFT, observe, start_alarms

Doubles = NDArray[np.float64]
Whole = NDArray[np.int64]

SECTION = "alarms"
ARL = 1e4
#: Audits in order before the change.
CALM = 500
#: (alarm level, loss before, loss after): the bar is the first.
CHANGES = (
    (0.01, 0.01, 0.05),
    (0.015, 0.01, 0.05),
    (0.02, 0.01, 0.05),
    (0.01, 0.01, 0.02),
    (0.01, 0.01, 0.10),
    (0.02, 0.02, 0.05),
    (0.02, 0.02, 0.10),
    (0.05, 0.05, 0.10),
    (0.05, 0.05, 0.20),
)
OURS, CUSUM, SINGLE = "e-detector, mixed bets", "e-CUSUM, mixed bets", "e-CUSUM, one bet"


def measure(data: Data, quick: bool) -> list[Line]:
    streams, longest = (60, 6_000) if quick else (1000, 60_000)
    lines = []
    for level, before, after in CHANGES[:1] if quick else CHANGES:
        for who in (OURS, CUSUM, SINGLE):
            lines.append(_delay(who, level, before, after, streams))
    lines.append(_false_alarms(0.01, 100 if quick else 300, longest))
    lines.append(_same(5 if quick else 20))
    return lines


def first_alarm(who: str, level: float, losses: NDArray[np.bool_]) -> Whole:
    """For each row of ``losses``, after how many audits the statistic reaches ARL; 0 for never."""
    bets = np.array(start_alarms(level).bets)
    if who == SINGLE:  # the geometric middle
        bets = np.array([np.exp(np.log(bets).mean())])
    up, down = np.log1p(bets * (1.0 / level - 1.0)), np.log1p(-bets)
    logs = np.full((len(losses), len(bets)), -np.inf if who == OURS else 0.0)
    when = np.zeros(len(losses), np.int64)
    going = np.arange(len(losses))
    for at in range(losses.shape[1]):
        before = np.logaddexp(logs, 0.0) if who == OURS else np.maximum(logs, 0.0)
        logs = before + np.where(losses[going, at, None], up, down)
        top = logs.max(axis=1)
        over = np.exp(logs - top[:, None]).mean(axis=1) * np.exp(top) >= ARL
        when[going[over]] = at + 1
        logs, going = logs[~over], going[~over]
        if not len(going):
            break
    return when


def _delay(who: str, level: float, before: float, after: float, streams: int) -> Line:
    rng = np.random.default_rng(3)
    calm = rng.random((streams, CALM)) < before
    worse = rng.random((streams, 6_000)) < after
    when = first_alarm(who, level, np.hstack([calm, worse]))
    waited = when[when > CALM] - CALM  # those in order by mistake are counted elsewhere
    medians = np.median(waited[resamples(len(waited), 300, 4)], axis=1)
    low, high = percentiles(list(medians))
    bar = 250.0 if (who, level, before, after) == (OURS, 0.01, 0.01, 0.05) else None
    return Line(
        section=SECTION,
        what=f"harm {100 * before:g} % → {100 * after:g} %, level {100 * level:g} %, ARL ≥ 1e4",
        who=who,
        value=float(np.median(waited)),
        low=low,
        high=high,
        bar=bar,
        at_most=True,
        unit="audits, median",
    )


def _false_alarms(level: float, streams: int, longest: int) -> Line:
    """The mean run to a false alarm at a loss of exactly ``level``; streams without one count as
    if it came at their end, which makes the number too small."""
    losses = np.random.default_rng(5).random((streams, longest)) < level
    when = first_alarm(OURS, level, losses)
    runs = np.where(when > 0, when, longest).astype(np.float64)
    low, high = percentiles(list(runs[resamples(streams, 500, 6)].mean(axis=1)))
    quick = longest < 2 * ARL
    return Line(
        section=SECTION,
        what=f"audits to a false alarm at {100 * level:g} %, cut off at {longest}",
        who=OURS,
        value=float(runs.mean()),
        low=low,
        high=high,
        bar=None if quick else ARL,
        unit="audits, mean",
    )


def _same(streams: int) -> Line:
    """Streams on which router.alarms says something else than the column statistic: none."""
    rng = np.random.default_rng(7)
    losses = rng.random((streams, 800)) < 0.05
    when, differ = first_alarm(OURS, 0.01, losses), 0
    for row, expected in zip(losses, when.tolist(), strict=True):
        alarms = start_alarms(0.01, arl=ARL, delta=1e-12)  # only the detector can speak
        for loss in row:
            alarms = observe(alarms, float(loss))
            if alarms.raised is not None:
                break
        differ += (alarms.audits if alarms.raised == SHIFT else 0) != expected
    return Line(
        section=SECTION,
        what="streams where router.alarms and the table differ",
        who=OURS,
        value=float(differ),
        bar=0.0,
        at_most=True,
        unit=f"of {streams}",
    )


def main() -> None:
    for line in measure(find(), quick="--quick" in sys.argv):
        bounds = "" if line.low is None else f" [{line.low:.0f}, {line.high:.0f}]"
        bar = "" if line.bar is None else f"  bar {line.bar:g}: {'met' if line.met else 'MISSED'}"
        print(f"{line.what:52} {line.who:24} {line.value:9.1f}{bounds} {line.unit}{bar}")


if __name__ == "__main__":
    main()
