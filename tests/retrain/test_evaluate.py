"""Agreement with the teacher, in total and in parts, with intervals that hold."""

import numpy as np
import pytest
from scipy.stats import binomtest

from retrain.evaluate import evaluate, gold_of, losses, mean_share
from router.decision import Answer
from router.output import OutputSpec

LABEL = OutputSpec(kind="label", labels=("refund", "delivery", "other"))
JSON = OutputSpec(kind="json", fields={"category": ("a", "b"), "urgent": (True, False)})


def answers(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text=text) for text in texts]


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (92, 100), (450, 1000)])
def test_shares_have_exact_intervals(right: int, n: int) -> None:
    share = mean_share([1.0] * right + [0.0] * (n - right))
    exact = binomtest(right, n).proportion_ci(0.95, method="exact")
    assert (share.n, share.share) == (n, pytest.approx(right / n))
    assert (share.low, share.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_intervals_of_fractional_scores_hold_the_truth() -> None:
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        share = mean_share(list(random.beta(4, 1, size=80)))
        hits += share.low <= 0.8 <= share.high
        assert share.high - share.low < 0.3
    assert hits / 300 >= 0.95


def test_no_rows_know_nothing() -> None:
    share = mean_share([])
    assert (share.n, share.low, share.high) == (0, 0.0, 1.0)


def test_labels_are_counted_by_the_teachers_class() -> None:
    report = evaluate(
        LABEL,
        answers("refund", "Refund.", "delivery", None),
        ["refund", "refund", "refund", "delivery"],
    )
    assert report.n == 4
    assert report.agreement.share == 0.5
    assert report.unanswered == 1
    assert report.valid.share == 0.5  # "Refund." is understood, but breaks the application
    assert report.per_label["refund"].share == pytest.approx(2 / 3)
    assert report.per_label["delivery"].share == 0.0
    assert {(c.teacher, c.student, c.count) for c in report.confusions} == {
        ("refund", "delivery", 1),
        ("delivery", "(none)", 1),
    }


def test_json_is_compared_field_by_field() -> None:
    report = evaluate(
        JSON,
        answers('{"category": "a", "urgent": true}', '{"category": "b", "urgent": true}', "no"),
        ['{"urgent": true, "category": "a"}', '{"category": "a", "urgent": true}'] * 1
        + ['{"category": "b", "urgent": false}'],
    )
    assert report.agreement.share == pytest.approx(1 / 3)
    assert report.per_field["category"].share == pytest.approx(1 / 3)
    assert report.per_field["urgent"].share == pytest.approx(2 / 3)
    assert report.valid.share == pytest.approx(2 / 3)


def test_texts_have_fractional_agreement() -> None:
    report = evaluate(OutputSpec(), answers("the cat sat", "dog"), ["the cat sat", "the dog"])
    assert report.agreement.share == pytest.approx((1 + 2 / 3) / 2)
    assert report.exact.share == 0.5
    assert report.per_label == {} and report.confusions == ()


def test_gold_measures_student_and_teacher_on_the_rows_that_have_it() -> None:
    report = evaluate(
        LABEL,
        answers("refund", "refund", "refund"),
        ["refund", "refund", "delivery"],
        [None, "delivery", "delivery"],
    )
    assert report.student_gold is not None and report.teacher_gold is not None
    assert (report.student_gold.n, report.student_gold.share) == (2, 0.0)
    assert report.teacher_gold.share == 0.5


def test_gold_may_name_some_fields_or_only_the_class() -> None:
    ours = '{"category": "a", "urgent": true}'
    report = evaluate(JSON, answers(ours, ours, ours), [ours] * 3, ['{"urgent": true}', "a", "b"])
    assert report.student_gold is not None
    assert report.student_gold.share == pytest.approx(2 / 3)


def test_without_gold_there_is_none() -> None:
    report = evaluate(LABEL, answers("refund"), ["refund"])
    assert report.student_gold is None and report.teacher_gold is None


def test_gold_comes_from_the_mapping_or_the_request() -> None:
    assert gold_of({"metadata": {"gold": "refund"}}) == "refund"
    assert gold_of({"metadata": {"gold": {"b": 1, "a": "é"}}}) == '{"a": "é", "b": 1}'
    assert gold_of({"metadata": {"gold": "refund"}}, {"req-1": "other"}, "req-1") == "other"
    assert gold_of({}) is None
    assert gold_of({"metadata": None}) is None


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError):
        evaluate(LABEL, answers("refund"), ["refund"], ["refund", "refund"])
    with pytest.raises(ValueError):
        losses(LABEL, answers("refund"), [])


def test_a_corrected_teacher_is_measured_by_what_it_really_said() -> None:
    report = evaluate(
        LABEL,
        answers("refund", "refund", "refund"),
        ["refund", "refund", "refund"],
        ["refund", "refund", "refund"],
        ["delivery", "refund", None],
    )
    assert report.agreement.share == 1.0
    assert report.student_gold is not None and report.student_gold.share == 1.0
    assert report.teacher_gold is not None
    assert (report.teacher_gold.n, report.teacher_gold.share) == (2, 0.5)
