"""The whole decision: teacher wherever there is a doubt."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import load, save
from router.decision import Answer, Reason, Route, Token
from router.output import OutputSpec
from router.report import score_in_words
from router.router import HEAD_ROWS, Judged, Labelled, Router, fit_router
from router.threshold import NEVER, upper_bound


def test_a_good_student_is_certified_and_serves(router: Router, traffic: Any) -> None:
    certificate = router.certificate
    assert certificate is not None
    assert router.threshold == certificate.threshold <= 1.0
    assert certificate.upper_bound <= 0.05 and certificate.confidence == pytest.approx(0.975)
    assert certificate.coverage > 0.6
    served = wrong = 0
    rows = traffic(7).judged(500)
    for row in rows:
        before = router.before(row.prompt)
        after = router.after(row.prompt, row.student, before.p_ood)
        if before.route is after.route is Route.STUDENT:
            served += 1
            wrong += row.student.text != row.teacher
    assert served / 500 > 0.6
    assert wrong / 500 <= 0.05


def test_strange_prompts_go_to_the_teacher_unasked(
    router: Router, traffic: Any, strange: tuple[str, ...]
) -> None:
    for prompt in strange:
        decision = router.before(prompt)
        assert (decision.route, decision.reason) == (Route.TEACHER, Reason.OOD)
        assert decision.p_ood is not None and decision.p_ood <= router.ood_epsilon
    ordinary = router.before(traffic(8).rows(1)[0][0])
    assert (ordinary.route, ordinary.reason) == (Route.STUDENT, Reason.TRUSTED)


def test_unsure_and_invalid_drafts_go_to_the_teacher(
    router: Router, make_draft: Callable[[str, float], Answer]
) -> None:
    sure = router.after("p", make_draft("billing", 0.9999), 0.5)
    assert (sure.route, sure.reason, sure.p_ood) == (Route.STUDENT, Reason.TRUSTED, 0.5)
    assert sure.score == pytest.approx(0.9999, abs=1e-3)
    unsure = router.after("p", make_draft("billing", 0.2), None)
    assert (unsure.route, unsure.reason) == (Route.TEACHER, Reason.UNSURE)
    invalid = router.after("p", make_draft("gardening", 0.9999), None)
    assert (invalid.route, invalid.reason) == (Route.TEACHER, Reason.INVALID)
    silent = dataclasses.replace(make_draft("billing", 0.9999), tokens=())
    assert router.after("p", silent, None).reason is Reason.UNSURE


def test_without_enough_evidence_the_teacher_answers_everything(
    fit_small: Callable[..., Router], traffic: Any
) -> None:
    router = fit_small(traffic(2).judged(40))
    assert router.certificate is None and router.threshold == NEVER
    decision = router.before(traffic(3).rows(1)[0][0])
    assert (decision.route, decision.reason) == (Route.TEACHER, Reason.NOT_CERTIFIED)
    assert decision.p_ood is not None
    row = traffic(3).judged(1)[0]
    assert router.after(row.prompt, row.student).route is Route.TEACHER
    assert router.report.evidence_needed >= 59 - 40
    assert router.report.ood_rows_needed == 99 - 40


def test_a_student_worse_than_the_contract_serves_nothing_it_is_unsure_of(
    fit_small: Callable[..., Router], traffic: Any
) -> None:
    rows = traffic(2).judged(200, quality=0.3)
    certificate = fit_small(rows).certificate
    assert certificate is None or certificate.coverage < 0.5


def test_the_contract_cannot_be_met_at_zero(fit_small: Callable[..., Router], traffic: Any) -> None:
    assert fit_small(traffic(2).judged(200), max_disagreement=0.0).certificate is None


def test_no_rows_at_all_give_a_router_that_asks_the_teacher() -> None:
    router = fit_router(
        spec=OutputSpec(kind="label"),
        train=[],
        calibration=[],
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
    )
    assert router.before("hello").reason is Reason.NOT_CERTIFIED
    assert router.report.evidence_needed == 72  # half of the error is the live certificate's


def test_coverage_counts_those_the_gate_turned_away_as_not_served(
    fit_small: Callable[..., Router], traffic: Any
) -> None:
    rows = traffic(2).judged(200)
    lenient, strict = fit_small(rows, ood_epsilon=0.01), fit_small(rows, ood_epsilon=0.3)
    assert lenient.threshold == strict.threshold  # the certificate does not lean on the gate
    assert lenient.certificate is not None and strict.certificate is not None
    assert strict.certificate.coverage < lenient.certificate.coverage - 0.1
    assert strict.report.turned_away == pytest.approx(0.3, abs=0.05)


def test_the_report_sets_the_score_beside_trivial_ones(router: Router) -> None:
    rankings = router.report.rankings
    assert rankings["score"].auroc > 0.9 > rankings["prompt length"].auroc
    assert rankings["score"].apgr > 0.8
    assert rankings["random"].auroc == rankings["random"].apgr == 0.5
    assert router.report.n == 200
    assert 0.9 < router.report.agreement < 1.0
    assert router.report.invalid == 0.0


def test_fitting_twice_gives_the_same_decisions(
    router: Router, fit_small: Callable[..., Router], traffic: Any
) -> None:
    again = fit_small(traffic(2).judged(200))
    assert again.certificate == router.certificate
    for row in traffic(9).judged(20):
        assert again.before(row.prompt) == router.before(row.prompt)


def test_free_text_is_certified_on_fractional_losses(traffic: Any) -> None:
    def said(words: str, p: float) -> Answer:
        return Answer(text=words, tokens=(Token(text=words, logprob=math.log(p)),))

    rows = [
        Judged(
            prompt=text,
            student=said(
                f"It is about {name} today" if at % 9 else "no idea", 0.9 if at % 9 else 0.2
            ),
            teacher=f"It is about {name} now",
        )
        for at, (text, name) in enumerate(traffic(2).rows(300))
    ]
    router = fit_router(
        spec=OutputSpec(),
        train=[Labelled(prompt=text, answer=name) for text, name in traffic(1).rows(100)],
        calibration=rows,
        max_disagreement=0.25,
        confidence=0.9,
        ood_epsilon=0.05,
    )
    assert router.certificate is not None and router.certificate.method == "betting"
    assert router.after("p", said("fine", 0.9)).route is Route.STUDENT
    assert router.after("p", said("fine", 0.2)).route is Route.TEACHER


def test_a_learned_head_is_certified_on_rows_it_did_not_see(
    fit_small: Callable[..., Router], traffic: Any, make_draft: Callable[[str, float], Answer]
) -> None:
    """A student that is sure of everything, but wrong wherever the prompt is odd: only the
    strangeness can tell, so the head must win, and its evidence is the smaller part of the rows."""
    rng = np.random.default_rng(1)
    rows = []
    for text, name in traffic(2).rows(HEAD_ROWS + 300):
        odd = rng.random() < 0.15
        right = make_draft(name, float(rng.beta(30, 1)))
        wrong = make_draft("login" if name != "login" else "billing", float(rng.beta(30, 1)))
        prompt = text[::-1] if odd else text
        rows.append(Judged(prompt=prompt, student=wrong if odd else right, teacher=right.text))
    router = fit_small(rows)
    assert router.confidence.learned and router.report.learned
    assert router.report.rankings["score"].auroc > 0.9
    certificate = router.certificate
    assert certificate is not None
    assert certificate.n < len(rows) * 0.75
    assert certificate.upper_bound == pytest.approx(
        upper_bound(int(certificate.errors_served), certificate.n, 0.025 * 0.2)
    )
    good, text = rows[0].student, traffic(4).rows(1)[0][0]
    assert router.after(text, good).route is Route.STUDENT
    assert router.after(text[::-1], good).route is Route.TEACHER


def test_many_rows_with_an_honest_student_keep_the_plain_score(
    fit_small: Callable[..., Router], traffic: Any
) -> None:
    router = fit_small(traffic(2).judged(HEAD_ROWS, quality=0.9))
    assert not router.confidence.learned
    assert router.certificate is not None and router.certificate.n == HEAD_ROWS


def leaning(count: int, seed: int) -> list[Judged]:
    """A student that gives its first label more than it should: sure and wrong."""
    rng = np.random.default_rng(seed)
    labels = ("billing", "delivery", "login")
    rows = []
    for at in range(count):
        truth = int(rng.integers(3))
        logs = rng.normal(size=3) + 4.0 * (np.arange(3) == truth) + (2.0, 0.0, -1.0)
        logs -= np.log(np.exp(logs).sum())
        order = np.argsort(-logs).tolist()
        top = tuple(logs[order].tolist())
        names = tuple(labels[at][:4] for at in order)
        token = Token(text=names[0], logprob=top[0], top=top, names=names)
        student = Answer(text=labels[order[0]], tokens=(token,))
        rows.append(Judged(prompt=f"request {at}", student=student, teacher=labels[truth]))
    return rows


@pytest.mark.slow
def test_a_student_that_leans_to_a_label_is_read_by_the_names_of_all(tmp_path: Path) -> None:
    router = fit_router(
        spec=OutputSpec(kind="label", labels=("billing", "delivery", "login")),
        train=[],
        calibration=leaning(HEAD_ROWS + 600, seed=1),
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
    )
    contest = router.report.contest
    assert router.confidence.reader is not None and router.report.learned
    assert contest.won == "logistic" and contest.reader and contest.leads["logistic"].auroc_low > 0
    assert "won: logistic" in score_in_words(router.report)
    fresh = leaning(2000, seed=9)
    served = [router.after(row.prompt, row.student).route is Route.STUDENT for row in fresh]
    wrong = [row.student.text != row.teacher for row in fresh]
    assert np.mean(np.array(served) & np.array(wrong)) <= 0.05
    save(router, tmp_path)
    again = load(tmp_path)
    assert again.report == router.report
    assert all(
        again.score(row.prompt, row.student) == router.score(row.prompt, row.student)
        for row in fresh[:50]
    )


def test_the_report_says_why_the_plain_score_stays(
    fit_small: Callable[..., Router], traffic: Any
) -> None:
    few = fit_small(traffic(2).judged(60)).report
    assert "too few rows" in score_in_words(few)
    report = fit_small(traffic(2).judged(HEAD_ROWS, quality=0.8)).report
    assert not report.learned and "logistic" in report.contest.leads
    assert score_in_words(report).startswith("Score: the answer's own probability")
