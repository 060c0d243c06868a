"""Training rows are worth imitating; held-out rows stay the traffic as it is."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from gateway.storage.tables import Exchange
from retrain.curate import CHARS_PER_TOKEN, curate
from retrain.splits import split_of
from router.output import OutputSpec

LABELS = OutputSpec(kind="label", labels=("refund", "delivery"), max_tokens=8)
JSON = OutputSpec(kind="json", fields={"category": ("refund", "delivery")}, max_tokens=32)
numbers = count()


def exchange(prompt: str, answer: str | None, *, side: str = "train", **changes: Any) -> Exchange:
    group = next(g for i in count() if split_of(g := f"{prompt}-{i}") == side)
    n = next(numbers)
    row = Exchange(
        id=f"req-{n}",
        dedupe_key=str(n),
        at=datetime(2026, 1, 1, tzinfo=UTC),
        task="triage",
        group_key=group,
        prompt=prompt,
        body={"model": "m", "messages": [{"role": "user", "content": prompt}]},
        teacher_text=answer,
        route="teacher",
        reason="collect",
    )
    for name, value in changes.items():
        setattr(row, name, value)
    return row


def reasons(
    spec: OutputSpec, *rows: Exchange, known: tuple[tuple[str, str], ...] = ()
) -> list[str]:
    return [reason for _, reason in curate(rows, spec, known).rejected]


@pytest.mark.parametrize("side", ["train", "test"])
def test_what_may_not_be_learnt_from_reaches_no_side(side: str) -> None:
    rows = [
        exchange("where is it", "delivery", side=side, consent=False),
        exchange("money back", "refund", side=side, licensed=False),
        exchange("no consent, corrected", "refund", side=side, consent=False, correction="refund"),
    ]
    assert reasons(LABELS, *rows) == ["no_consent", "not_licensed", "no_consent"]
    # a person's correction is not the teacher's answer
    kept = exchange("parcel lost", "refund", side=side, licensed=False, correction="delivery")
    assert curate([kept], LABELS).kept == (kept,)


def test_good_rows_are_kept_in_order() -> None:
    rows = [exchange("where is it", "delivery"), exchange("money back", "refund")]
    assert list(curate(rows, LABELS).kept) == rows


@pytest.mark.parametrize(
    ("spec", "answer", "reason"),
    [
        (LABELS, "", "no_answer"),
        (LABELS, " \n", "no_answer"),
        (LABELS, None, "no_answer"),
        (LABELS, "warranty", "schema"),
        (LABELS, "I'm sorry, but I can't help with that.", "refusal"),
        (LABELS, "x" * (CHARS_PER_TOKEN * 8 + 1), "too_long"),
        (JSON, '{"category": "warranty"}', "schema"),
        (JSON, '{"priority": "low"}', "schema"),
        (JSON, "delivery, I think", "schema"),
        (JSON, '{"category": "refu', "truncated"),
        (JSON, '{"category": "refund"', "truncated"),
        (JSON, '{"category": "say \\"}\\""', "truncated"),
    ],
)
def test_bad_teacher_answers_are_not_trained_on(
    spec: OutputSpec, answer: str | None, reason: str
) -> None:
    assert reasons(spec, exchange("where is it", answer)) == [reason]


@pytest.mark.parametrize("answer", ["warranty", "I can't help with that.", "x" * 999])
@pytest.mark.parametrize("side", ["calibration", "test"])
def test_held_out_rows_are_kept_whatever_the_teacher_said(answer: str, side: str) -> None:
    assert reasons(LABELS, exchange("where is it", answer, side=side)) == []


def test_held_out_rows_without_an_answer_are_dropped() -> None:
    assert reasons(LABELS, exchange("where is it", None, side="test")) == ["no_answer"]


@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": "hi"}, {"messages": ["hi"]}, {"messages": [{}]}]
)
def test_what_is_no_chat_is_malformed_on_either_side(body: dict[str, Any]) -> None:
    for side in ("train", "test"):
        assert reasons(LABELS, exchange("hi", "refund", side=side, body=body)) == ["malformed"]


def test_an_empty_prompt_is_malformed() -> None:
    assert reasons(LABELS, exchange("  ", "refund")) == ["malformed"]


def test_fenced_json_is_fit_for_training() -> None:
    assert reasons(JSON, exchange("hi", '```json\n{"category": "refund"}\n```')) == []


def test_the_same_prompt_and_answer_is_trained_on_once() -> None:
    rows = [exchange("where is it", "delivery"), exchange("Where  is it", "delivery")]
    assert reasons(LABELS, *rows) == ["duplicate"]
    assert reasons(LABELS, rows[0], known=(("where is it", "delivery"),)) == ["duplicate"]


def test_the_same_words_in_another_conversation_are_another_question() -> None:
    turns = [
        {"role": "user", "content": "my parcel is lost"},
        {"role": "assistant", "content": "?"},
    ]
    body = {"messages": [*turns, {"role": "user", "content": "yes"}]}
    rows = [exchange("yes", "refund"), exchange("yes", "delivery", body=body)]
    assert reasons(LABELS, *rows) == []


def test_repeats_count_as_traffic_on_the_held_out_side() -> None:
    rows = [exchange("where is it", "delivery", side="test") for _ in range(2)]
    assert reasons(LABELS, *rows) == []


def test_the_outvoted_answer_to_nearly_the_same_prompt_is_dropped() -> None:
    rows = [
        exchange("order 11 is late", "delivery"),
        exchange("order 22 is late", "refund"),
        exchange("order 33 is late", "Delivery"),
    ]
    curated = curate(rows, LABELS, known=(("order 44 is late", "delivery"),))
    assert [(row.id, reason) for row, reason in curated.rejected] == [
        (rows[1].id, "near_duplicate_conflict"),
        (rows[2].id, "schema"),
    ]


def test_free_texts_are_never_in_conflict() -> None:
    rows = [exchange("write a poem", "one"), exchange("write a poem", "two")]
    assert reasons(OutputSpec(kind="text"), *rows) == []


def test_counts_are_by_reason() -> None:
    rows = [exchange("a", ""), exchange("b", None), exchange("c", "warranty")]
    assert curate(rows, LABELS).counts == {"no_answer": 2, "schema": 1}


def test_a_correction_stands_in_the_teachers_place() -> None:
    rows = [
        exchange("where is it", "I'm sorry, I can't help with that.", correction="delivery"),
        exchange("money back", None, correction="refund"),
        exchange("fine before", "refund", correction="warranty"),
    ]
    curated = curate(rows, LABELS)
    assert list(curated.kept) == rows[:2]
    assert curated.counts == {"schema": 1}


def test_no_vote_overrules_a_correction() -> None:
    rows = [exchange(f"invoice {n} is wrong", "delivery") for n in range(3)]
    rows.append(exchange("invoice 7 is wrong", "delivery", correction="refund"))
    assert reasons(LABELS, *rows) == []
    rows[-1].correction = None
    rows[-1].teacher_text = "refund"
    assert reasons(LABELS, *rows) == ["near_duplicate_conflict"]
