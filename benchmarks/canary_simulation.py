"""What a canary finds, and how often it alarms for nothing, in simulation.

    python benchmarks/canary_simulation.py [--runs 400]

The champion does badly on 8 % of its requests, the challenger on 8 % plus `worse`. Of the traffic
1, 5, 25 and 50 % go to the challenger, for 200 of its own requests at the least in each step and
2,000 at the most. The usual rule looks once, after thirty requests of each, and alarms at a
difference of five points. The race is `router.race`, looked at after every request; a step is
passed when it shows the challenger worse by less than two points, or has gone on to its end without
an alarm.
"""

import argparse
from dataclasses import replace

import numpy as np

from router import race

BAD = 0.08
STEPS = (0.01, 0.05, 0.25, 0.5)
LEAST, MOST = 200, 2000


def usual(worse: float, rng: np.random.Generator) -> bool:
    """Whether it alarms."""
    one, other = rng.random(30) < BAD, rng.random(30) < BAD + worse
    return bool(other.mean() - one.mean() >= 0.05)


def racing(worse: float, rng: np.random.Generator) -> tuple[bool, int, float]:
    """Whether it alarms, after how many of the challenger's requests, and in what share of all
    the challenger did harm: bad answers that the champion would not have given, per 1,000."""
    state = race.start()
    seen, harm, traffic = 0, 0.0, 0.0
    for share in STEPS:
        beside = round((1 - share) / share)
        step = 0
        while step < MOST:
            x = (rng.random(50) < BAD + worse).astype(float)
            y = rng.binomial(max(beside, 1), BAD, 50) / max(beside, 1)
            for at in range(50):
                state = race.observe(state, x[at : at + 1], y[at : at + 1])
                if state.rolled_back:
                    step += at + 1
                    break
            else:
                step += 50
                if not (state.passed and step >= LEAST):
                    continue
            break
        seen += step
        harm += worse * step
        traffic += step / share
        if state.rolled_back:
            return True, seen, 1000 * harm / traffic
        # what was shown at one share holds at the next, an alarm is looked for all along
        state = replace(state, fine=np.zeros(len(race.BETS)), finest=0.0)
    return False, seen, 1000 * harm / traffic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print(f"{runs} canaries, seed 17")
    print("| challenger worse by | usual rule alarms | the race alarms | after (median) | harm |")
    print("| --- | --- | --- | --- | --- |")
    for worse in (-0.02, 0.0, 0.01, 0.02, 0.05, 0.1, 0.3):
        rng = np.random.default_rng(17)
        rule = np.mean([usual(worse, rng) for _ in range(4000)])
        found = [racing(worse, rng) for _ in range(runs)]
        alarms = [seen for alarm, seen, _ in found if alarm]
        after = f"{int(np.median(alarms)):,} requests" if alarms else "–"
        harm = float(np.mean([h for _, _, h in found]))
        share = len(alarms) / runs
        print(
            f"| {100 * worse:+.0f} points | {rule:.1%} | {share:.1%} | {after} |"
            f" {max(harm, 0):.1f} in 1,000 |",
            flush=True,
        )


if __name__ == "__main__":
    main()
