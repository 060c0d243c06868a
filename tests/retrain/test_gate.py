"""The verdict follows from the evidence, says why, and is seldom wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from retrain.gate import Contender, Verdict, decide, decide_first, spent
from retrain.paired import sign_test


def contender(
    n: int, wrong: range | list[int], served: float = 0.5, *, certified: bool = True
) -> Contender:
    bad = set(wrong)
    return Contender(
        losses=[float(i in bad) for i in range(n)],
        valid=[True] * n,
        served=[i < served * n for i in range(n)],
        certified=certified,
    )


def judge(champion: Contender, challenger: Contender, **changes: object) -> Verdict:
    arguments: dict[str, object] = {
        "challenge": 1,
        "alpha": 0.05,
        "margin": 0.02,
        "max_disagreement": 0.05,
    }
    return decide(champion, challenger, **(arguments | changes))  # type: ignore[arg-type]


def test_all_challenges_together_spend_alpha() -> None:
    assert sum(spent(0.05, k) for k in range(1, 200_000)) == pytest.approx(0.05, abs=1e-6)
    assert spent(0.05, 1) == pytest.approx(6 * 0.05 / math.pi**2)
    with pytest.raises(ValueError, match="from 1"):
        spent(0.05, 0)


def test_the_first_student_is_promoted_when_measured() -> None:
    verdict = decide_first(contender(100, range(8), 0.7), probe_error=None)
    assert verdict.kind == "promote"
    assert verdict.coverage_challenger == 0.7
    assert "92.0% of 100 test rows" in verdict.reasons[0]
    assert "70.0% of the traffic" in verdict.reasons[1]


def test_the_first_student_is_promoted_without_certificate_and_the_verdict_says_so() -> None:
    verdict = decide_first(contender(100, range(60), 0.0, certified=False), probe_error=None)
    assert verdict.kind == "promote"
    assert "sends everything to the teacher" in verdict.reasons[1]


def test_the_first_student_needs_rows_to_be_measured_on() -> None:
    verdict = decide_first(contender(12, []), probe_error=None, min_rows=30)
    assert verdict.kind == "not_enough_evidence"
    assert verdict.rows_needed == 18


def test_an_adapter_that_changes_nothing_is_rejected() -> None:
    error = "adapter triage-1 answers like the bare base model"
    assert decide_first(contender(100, []), probe_error=error).kind == "reject"
    verdict = judge(contender(400, range(80)), contender(400, []), probe_error=error)
    assert verdict.kind == "reject" and verdict.reasons == (error,)


def test_significantly_better_is_promoted() -> None:
    verdict = judge(contender(400, range(60)), contender(400, range(20)))
    assert verdict.kind == "promote"
    assert "significantly more" in verdict.reasons[0]
    assert "40 rows won, 0 lost of 400, +10.0 points" in verdict.reasons[0]


def test_significantly_worse_is_rejected_whatever_it_serves() -> None:
    verdict = judge(contender(400, range(20)), contender(400, range(60), 0.9))
    assert verdict.kind == "reject"
    assert "significantly less" in verdict.reasons[0]


def test_not_worse_and_serving_more_is_promoted() -> None:
    verdict = judge(contender(1000, range(20), 0.5), contender(1000, range(2, 20), 0.6))
    assert verdict.kind == "promote"
    assert "within the margin of 2.0" in " ".join(verdict.reasons)
    assert "60.0% of 1000 requests against 50.0%: significantly more" in " ".join(verdict.reasons)


def test_not_worse_and_serving_the_same_is_held() -> None:
    verdict = judge(contender(1000, range(20)), contender(1000, range(2, 20)))
    assert verdict.kind == "hold"
    assert "nothing is gained" in verdict.reasons[-1]


def test_a_tainted_champion_gives_way_to_whoever_is_not_worse() -> None:
    champion, challenger = contender(2000, range(100)), contender(2000, range(2, 102))
    assert judge(champion, challenger).kind == "hold"
    verdict = judge(champion, challenger, tainted=True)
    assert verdict.kind == "promote"
    assert "erased" in verdict.reasons[-1]
    # but not to one that serves less, or is worse
    assert judge(champion, replace(challenger, served=[False] * 2000), tainted=True).kind == "hold"
    assert judge(champion, contender(2000, range(300)), tainted=True).kind == "reject"


def test_better_but_serving_less_is_held() -> None:
    verdict = judge(contender(400, range(60), 0.8), contender(400, range(20), 0.1))
    assert verdict.kind == "hold"
    assert "answer less" in verdict.reasons[-1]


def test_a_challenger_without_certificate_serves_nothing() -> None:
    challenger = contender(400, range(20), 0.0, certified=False)
    assert judge(contender(400, range(60), 0.5), challenger).kind == "hold"


def test_too_little_evidence_says_how_many_rows_are_missing() -> None:
    champion, challenger = contender(60, [1, 2, 3], 0.1), contender(60, [3, 4, 5], 0.9)
    verdict = judge(champion, challenger)
    assert verdict.kind == "not_enough_evidence"
    assert verdict.rows_needed is not None and verdict.rows_needed > 100
    assert f"about {verdict.rows_needed} more test rows" in verdict.reasons[-1]


def test_no_test_rows_is_not_enough_evidence() -> None:
    assert judge(contender(0, []), contender(0, [])).kind == "not_enough_evidence"


def test_a_champion_that_breaks_the_contract_counts_as_serving_nothing() -> None:
    champion = replace(contender(1000, range(20), 0.9), harm_at_least=0.07)
    verdict = judge(champion, contender(1000, range(2, 20), 0.4))
    assert verdict.kind == "promote"
    assert "breaks the contract" in verdict.reasons[-1]


def test_drafts_that_break_the_output_rules_block() -> None:
    challenger = replace(contender(400, []), valid=[i >= 40 for i in range(400)])
    verdict = judge(contender(400, range(80)), challenger)
    assert verdict.kind == "reject"
    assert "90.0% of its drafts obey the output rules" in verdict.reasons[0]


def test_a_single_broken_draft_does_not_block() -> None:
    challenger = replace(contender(30, range(2, 20)), valid=[i > 0 for i in range(30)])
    assert judge(contender(30, range(20)), challenger).blocks == ()


def test_a_collapsed_label_blocks_a_better_average() -> None:
    labels = ["rare" if i < 12 else "common" for i in range(400)]
    verdict = judge(contender(400, range(100, 200)), contender(400, range(9)), labels=labels)
    assert verdict.kind == "reject"
    assert "'rare' collapsed from 100% to 25% (9 rows lost, 0 won of 12)" in verdict.reasons[0]


def test_a_label_seen_twice_cannot_collapse() -> None:
    labels = ["rare" if i < 2 else "common" for i in range(400)]
    verdict = judge(contender(400, range(100, 200)), contender(400, range(2)), labels=labels)
    assert verdict.kind == "promote"


def test_the_gate_is_not_symmetric_in_time() -> None:
    """What a first challenge proves, the fortieth needs more evidence for."""
    champion, challenger = contender(300, range(20)), contender(300, range(6, 18))
    assert judge(champion, challenger, challenge=1).kind == "promote"
    assert judge(champion, challenger, challenge=40).kind != "promote"


def chance_of_promotion(n: int, error: float, challenge: int) -> float:
    """The exact probability that `decide` promotes a student just as good as the champion: every
    outcome of one night (rows won, rows lost) judged by the gate and weighted with its probability.
    No sampling, so that the test has no luck in it."""
    once = error * (1 - error)  # a row is won, or lost, with this probability
    total = 0.0
    for differ in range(n + 1):
        weight = binom.pmf(differ, n, 2 * once)
        if weight < 1e-9:
            continue
        for wins in range(differ // 2, differ + 1):
            champion = contender(n, range(wins), served=1.0)
            challenger = contender(n, range(wins, differ), served=1.0)
            if judge(champion, challenger, challenge=challenge).kind == "promote":
                total += weight * binom.sf(wins - 1, differ, 0.5)
                break  # more rows won would be promoted all the more
    return total


@pytest.mark.parametrize(("n", "error"), [(60, 0.1), (150, 0.08)])
def test_an_equal_student_wins_no_more_often_than_its_challenge_may_spend(
    n: int, error: float
) -> None:
    for challenge in (1, 3):
        chance = chance_of_promotion(n, error, challenge)
        assert 0.0 < chance <= spent(0.05, challenge)


@pytest.mark.slow
def test_over_a_whole_reign_an_equal_student_wins_no_more_often_than_alpha() -> None:
    """300 new test rows a night, 8 % errors: exact, night by night, then over 60 nights."""
    n, error, kept = 300, 0.08, 1.0
    for challenge in range(1, 61):
        level = spent(0.05, challenge)
        chance = 0.0
        for differ in range(n + 1):
            weight = binom.pmf(differ, n, 2 * error * (1 - error))
            if weight > 1e-9:
                least = int(binom.isf(level, differ, 0.5)) + 1
                chance += weight * binom.sf(least - 1, differ, 0.5)
                assert sign_test(least, differ - least) <= level or least > differ
        kept *= 1.0 - chance
    assert 0.02 < 1.0 - kept <= 0.05


def test_truly_worse_students_that_serve_more_are_seldom_promoted() -> None:
    """Simulation: 3 points worse with a margin of 2, and always a larger coverage."""
    random = np.random.default_rng(12)
    promoted = 0
    for _ in range(300):
        old, new = random.random(600) < 0.05, random.random(600) < 0.08
        champion = Contender(
            losses=list(old.astype(float)), valid=[True] * 600, served=[False] * 600, certified=True
        )
        challenger = Contender(
            losses=list(new.astype(float)), valid=[True] * 600, served=[True] * 600, certified=True
        )
        promoted += judge(champion, challenger).kind == "promote"
    assert promoted / 300 <= 0.05


def test_a_clearly_better_student_usually_wins() -> None:
    random = np.random.default_rng(13)
    promoted = 0
    for _ in range(100):
        old, new = random.random(500) < 0.15, random.random(500) < 0.06
        sides = [
            Contender(
                losses=list(x.astype(float)),
                valid=[True] * 500,
                served=[True] * 500,
                certified=True,
            )
            for x in (old, new)
        ]
        promoted += judge(sides[0], sides[1]).kind == "promote"
    assert promoted >= 90
