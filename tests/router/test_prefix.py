"""What the first tokens of a draft decide: heads that stop it, and the score of a window."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_bundle import SURE, UNSURE, drafted, prompts

from router.artifact import load, save
from router.decision import Answer, Reason, Route, Token
from router.output import OutputSpec
from router.prefix import Prefix, Walk, cut, fit_prefix, loss_of, walk
from router.router import Judged, Labelled, Router, fit_router
from router.signals import signals

TEXT = OutputSpec(kind="text", max_tokens=64)


def token(text: str, logprob: float) -> Token:
    return Token(text=text, logprob=logprob, top=(logprob, math.log(1 - math.exp(logprob) + 1e-9)))


def answer_of(logs: list[float]) -> Answer:
    tokens = tuple(token(f"w{at} ", logprob) for at, logprob in enumerate(logs))
    return Answer(text="".join(t.text for t in tokens), tokens=tokens)


def drafts(n: int, seed: int, *, early: bool = True) -> tuple[list[Answer], list[bool]]:
    """Texts of 8 tokens. Hopeless ones are unsure from the start, or (``early`` False) nowhere
    that a prefix could see."""
    dice = random.Random(seed)
    answers, served = [], []
    for _ in range(n):
        good = dice.random() < 0.7
        doubt = 0.05 if good or not early else 1.0
        answers.append(answer_of([-dice.expovariate(1 / doubt) for _ in range(8)]))
        served.append(good)
    return answers, served


def stopped(prefix: Prefix, answer: Answer) -> bool:
    return any(prefix.hopeless(k, seen) for k, seen in walk("text", answer))


def test_a_running_draft_is_seen_as_the_finished_one_is() -> None:
    answer = answer_of([-0.1 * k for k in range(1, 21)])
    steps = Walk(kind="text")
    running = [found for one in answer.tokens if (found := steps.add(one)) is not None]
    assert running == list(walk("text", answer))
    assert [k for k, _ in running] == [1, 4, 16]
    for k, seen in running:
        assert seen == signals("text", cut(answer, k))


def test_of_json_only_values_count_as_tokens() -> None:
    pieces = ['{"', "intent", '":', ' "', "card", "_lost", '",', ' "', "n", '":', " 7", "}"]
    tokens = tuple(token(piece, -0.5) for piece in pieces)
    answer = Answer(text="".join(pieces), tokens=tokens)
    seen = dict(walk("json", answer))
    assert sorted(seen) == [1, 4]
    assert seen[1].fields[0][0] == "intent"
    # with the quotes and the brace that end the values; without keys and syntax
    assert seen[1].seq == pytest.approx(-0.5)
    assert "".join(pieces[:5]).endswith("card")
    # a task that asks only for one field has no fourth token to look at
    assert sorted(dict(walk("json", answer, ["intent"]))) == [1]


def test_what_comes_after_the_window_changes_nothing_in_it() -> None:
    one = answer_of([-0.3] * 8 + [-5.0] * 8)
    other = answer_of([-0.3] * 8)
    assert cut(one, 8) == cut(other, 8)
    short = Answer(text="w0 w1", tokens=one.tokens[:2], finish_reason="stop")
    assert cut(short, 8) is short
    assert cut(one, None) is one


@pytest.mark.slow
def test_hopeless_drafts_are_stopped_and_hardly_any_other() -> None:
    answers, served = drafts(1000, seed=3)
    prefix = fit_prefix("text", answers, served, share=0.01)
    assert prefix is not None
    fresh, good = drafts(1500, seed=4)
    flags = np.array([stopped(prefix, answer) for answer in fresh])
    truth = np.array(good)
    # promised is 1 % of the served ones on average; 2 % is three standard errors over it
    assert flags[truth].mean() <= 0.02
    assert flags[~truth].mean() >= 0.9
    assert prefix.lost <= 0.01
    assert prefix.caught == pytest.approx(flags[~truth].mean(), abs=0.05)


@pytest.mark.slow
def test_the_limits_keep_the_share_also_with_few_drafts() -> None:
    """Over many small fits the mean share of served drafts stopped stays under what is allowed."""
    lost = []
    for seed in range(10):
        answers, served = drafts(220, seed=100 + seed)
        prefix = fit_prefix("text", answers, served, share=0.05)
        fresh, good = drafts(200, seed=200 + seed)
        kept = [answer for answer, fine in zip(fresh, good, strict=True) if fine]
        lost.append(0.0 if prefix is None else np.mean([stopped(prefix, a) for a in kept]))
    # ten fits of ~150 served drafts each: their mean has a standard error of under a point
    assert 0.005 < np.mean(lost) <= 0.05 + 0.02


@pytest.mark.parametrize(
    ("n", "early", "share"),
    [(60, True, 0.05), (600, False, 0.01), (200, True, 0.001)],
    ids=["too few drafts", "nothing to see", "too few for the share"],
)
def test_there_is_no_head_where_none_can_be_trusted(n: int, early: bool, share: float) -> None:
    answers, served = drafts(n, seed=5, early=early)
    assert fit_prefix("text", answers, served, share=share) is None


def test_heads_look_only_before_the_window() -> None:
    answers, served = drafts(600, seed=6)
    prefix = fit_prefix("text", answers, served, before=4, share=0.01)
    assert prefix is not None
    assert prefix.at == (1,)


def windowed(*, window: int | None, tail: float = SURE, ending: str = "stop") -> Router:
    """Nine drafts in ten begin surely and are right; what follows the third token is ``tail``."""

    def draft(k: int, label: str) -> Answer:
        sure = k % 10 != 0
        head = [SURE if sure else UNSURE] * 3
        words = ["your ", f"{label} " if sure else "order ", "is ", "on ", "its ", "way"]
        tokens = [token(w, p) for w, p in zip(words, head + [tail] * 3, strict=True)]
        return Answer(text="".join(words), tokens=tuple(tokens), finish_reason=ending)

    return fit_router(
        spec=TEXT,
        train=[Labelled(prompt=p, answer=label) for p, label in prompts(60, seed=1)],
        calibration=[
            Judged(prompt=p, student=draft(k, label), teacher=f"your {label} is on its way")
            for k, (p, label) in enumerate(prompts(200, seed=2))
        ],
        max_disagreement=0.05,
        confidence=0.9,
        ood_epsilon=0.0,
        window=window,
    )


def test_the_score_of_a_window_is_certified_and_served_by_the_same_number() -> None:
    router = windowed(window=3)
    assert router.certificate is not None
    whole = answer_of([SURE] * 3 + [-4.0] * 9)
    partly = cut(whole, 3)
    assert router.score("p", whole) == router.score("p", partly) == pytest.approx(math.exp(SURE))
    assert router.after("p", partly).route is Route.STUDENT
    assert replace(router, window=None).score("p", whole) < 0.2
    # the certificate saw the same: a doubtful tail takes nothing from a window's score
    doubtful = windowed(window=3, tail=-4.0)
    assert doubtful.certificate is not None
    assert doubtful.threshold == router.threshold
    assert doubtful.certificate.coverage == router.certificate.coverage


def test_a_window_sees_the_opening_of_a_refusal_and_no_end() -> None:
    router = windowed(window=3)
    text = "I cannot help with that, sorry"
    tokens = tuple(token(word + " ", SURE) for word in text.split())
    refusal = Answer(text=text, tokens=tokens)
    assert router.after("p", cut(refusal, 3)).reason is Reason.INVALID


def test_an_answer_that_breaks_after_its_release_is_a_full_loss() -> None:
    right = answer_of([SURE] * 4)
    assert loss_of(TEXT, right, right.text, window=2) == 0.0
    cut_off = replace(right, finish_reason="length")
    assert loss_of(TEXT, cut_off, right.text, window=2) == 1.0
    # held to its end it would not have been served at all
    assert loss_of(TEXT, cut_off, right.text, window=None) == 0.0
    assert windowed(window=3, ending="length").certificate is None


@pytest.mark.slow
def test_heads_and_window_survive_the_artifact(tmp_path: Path) -> None:
    answers, served = drafts(400, seed=7)
    prefix = fit_prefix("text", answers, served, share=0.02)
    assert prefix is not None
    router = replace(windowed(window=3), prefix=prefix)
    save(router, tmp_path)
    again = load(tmp_path)
    assert again.window == 3
    assert again.prefix is not None
    assert (again.prefix.at, again.prefix.lost) == (prefix.at, prefix.lost)
    for answer in answers[:50]:
        for k, seen in walk("text", answer):
            assert again.prefix.p_defer(k, seen) == prefix.p_defer(k, seen)
    save(windowed(window=None), tmp_path)
    plain = load(tmp_path)
    assert plain.window is None
    assert plain.prefix is None


@pytest.mark.slow
def test_a_router_learns_its_heads_from_the_calibration_drafts() -> None:
    dice = random.Random(8)
    calibration = []
    for k, (prompt, label) in enumerate(prompts(900, seed=2)):
        bad = k % 4 == 0
        logprob = -dice.expovariate(1 / (1.5 if bad else 0.02))
        text = "refund!" if bad else label
        calibration.append(Judged(prompt=prompt, student=drafted(text, logprob), teacher=label))
    train = [Labelled(prompt=p, answer=label) for p, label in prompts(60, seed=1)]
    settings = {"max_disagreement": 0.02, "confidence": 0.9, "ood_epsilon": 0.01}
    spec = OutputSpec(kind="label", labels=("parcel", "refund", "password", "refund!"))
    router = fit_router(
        spec=spec, train=train, calibration=calibration, early_share=0.02, **settings
    )
    assert router.prefix is not None
    assert router.prefix.at == (1,)
    assert router.prefix.caught > 0.5
    hopeless = drafted("refund!", -6.0)
    ((k, seen),) = walk("label", hopeless)
    assert router.prefix.hopeless(k, seen)
    ((k, seen),) = walk("label", drafted("parcel", SURE))
    assert not router.prefix.hopeless(k, seen)
    off = fit_router(spec=spec, train=train, calibration=calibration, **settings)
    assert off.prefix is None
    # the heads only take away: the certificate is the same with and without them
    assert off.certificate == router.certificate
