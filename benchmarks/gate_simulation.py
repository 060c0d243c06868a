"""What rules of promotion do over a month of nights, in simulation.

    python benchmarks/gate_simulation.py [--runs 400] [--nights 30]

Each night brings a challenger whose true agreement with the teacher is drawn from N(92 %, 1.5
points), whatever the champion's is; champion and challenger are measured on the same frozen test
rows, and hard rows are hard for both (``SHARED`` of the variance of difficulty is common).
A served row is one whose score, a noisy view of being right, is over a fixed threshold.

`worse` is the share of promotions to a student whose true agreement is more than half a point
under the champion's; a promotion of a better one is what nights are for. `2 points` is another
question: challengers that are all truly two points better than the champion; how often is one of
three successive nights promoted? The gate is `retrain.gate.decide` as the night calls it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from retrain.gate import Contender, decide
from retrain.paired import compare, sign_test

Doubles = NDArray[np.float64]
Rule = Callable[["Measured", "Measured", int], bool]

SHARED = 0.8
MEAN, SPREAD = 0.92, 0.015
WORSE = 0.005
ALPHA, MARGIN = 0.05, 0.01
ROWS = (100, 1000, 3000)


@dataclass(frozen=True, slots=True)
class Measured:
    """A student: its true agreement, and what the test rows show of it."""

    truth: float
    losses: Doubles
    served: NDArray[np.bool_]


def student(truth: float, difficulty: Doubles, rng: np.random.Generator) -> Measured:
    """The share of rows it gets right is ``truth`` in the population the rows are drawn from."""
    own = rng.standard_normal(len(difficulty))
    margin = norm.ppf(truth) - np.sqrt(SHARED) * difficulty - np.sqrt(1 - SHARED) * own
    score = margin + 0.5 * rng.standard_normal(len(margin))
    return Measured(truth, (margin <= 0).astype(np.float64), score > 1.0)


def gate(champion: Measured, challenger: Measured, challenge: int) -> bool:
    verdict = decide(
        contender(champion),
        contender(challenger),
        challenge=challenge,
        alpha=ALPHA,
        margin=MARGIN,
        max_disagreement=0.05,
    )
    return verdict.kind == "promote"


def contender(measured: Measured) -> Contender:
    return Contender(
        losses=measured.losses.tolist(),
        valid=[True] * len(measured.losses),
        served=measured.served.tolist(),
        certified=True,
    )


def always(champion: Measured, challenger: Measured, challenge: int) -> bool:
    return True


def better_mean(champion: Measured, challenger: Measured, challenge: int) -> bool:
    return bool(challenger.losses.mean() < champion.losses.mean())


def not_worse(champion: Measured, challenger: Measured, challenge: int) -> bool:
    paired = compare(champion.losses.tolist(), challenger.losses.tolist(), level=ALPHA)
    return paired.worse_by_at_most <= MARGIN


def mcnemar(champion: Measured, challenger: Measured, challenge: int) -> bool:
    wins = int((challenger.losses < champion.losses).sum())
    losses = int((challenger.losses > champion.losses).sum())
    return sign_test(wins, losses) <= ALPHA


RULES: dict[str, Rule] = {
    "always": always,
    "mean better": better_mean,
    "not worse by 1 point": not_worse,
    "McNemar at 5 %": mcnemar,
    "the gate": gate,
}


def month(rule: Rule, rows: int, nights: int, rng: np.random.Generator) -> tuple[int, int, float]:
    """Promotions, those to a worse student, and the true gain over the month."""
    difficulty = rng.standard_normal(rows)
    champion = first = student(rng.normal(MEAN, SPREAD), difficulty, rng)
    promotions = worse = 0
    challenge = 1
    for _ in range(nights):
        challenger = student(min(0.999, rng.normal(MEAN, SPREAD)), difficulty, rng)
        if rule(champion, challenger, challenge):
            promotions += 1
            worse += challenger.truth < champion.truth - WORSE
            champion, challenge = challenger, 1
        else:
            challenge += 1
    return promotions, worse, champion.truth - first.truth


def found(rule: Rule, rows: int, rng: np.random.Generator) -> bool:
    """Whether one of three challengers, each two points better, is promoted."""
    difficulty = rng.standard_normal(rows)
    champion = student(MEAN, difficulty, rng)
    return any(rule(champion, student(MEAN + 0.02, difficulty, rng), night) for night in (1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--nights", type=int, default=30)
    options = parser.parse_args()
    print(f"{options.runs} months of {options.nights} nights, seed 17")
    print("| rule | test rows | promotions a month | of them worse | gain | 2 points found |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rule in RULES.items():
        for rows in ROWS:
            rng = np.random.default_rng(17)
            months = [month(rule, rows, options.nights, rng) for _ in range(options.runs)]
            promotions = sum(p for p, _, _ in months)
            share = sum(w for _, w, _ in months) / max(promotions, 1)
            gain = float(np.mean([g for _, _, g in months]))
            hits = float(np.mean([found(rule, rows, rng) for _ in range(options.runs)]))
            print(
                f"| {name} | {rows:,} | {promotions / options.runs:.1f} | {share:.1%} |"
                f" {100 * gain:+.2f} points | {hits:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
