"""Drafts are checked strictly, answers are compared tolerantly."""

import pytest

from router.decision import Answer, Token
from router.output import OutputSpec, check, disagreement, label_of, learn

LABEL = OutputSpec(kind="label", labels=("card_lost", "card"))
OBJECT = OutputSpec(kind="json", fields={"kind": ("a", "b"), "urgent": (True, False), "note": ()})
GOOD = '{"kind": "a", "urgent": true, "note": "x"}'


def said(text: str, *, finish_reason: str = "stop", tokens: int = 3) -> Answer:
    piece = Token(text="x", logprob=-0.1)
    return Answer(text=text, tokens=(piece,) * tokens, finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (f"\n {GOOD} \n", None),
        (f"```json\n{GOOD}\n```", "not_json"),
        (f"Sure! {GOOD}", "not_json"),
        (GOOD[:-1], "not_json"),
        (f"[{GOOD}]", "not_json"),
        ('{"kind": "a", "urgent": NaN, "note": 1}', "not_json"),
        ("[" * 100_000, "not_json"),
        ('{"kind": "a", "note": "x"}', "missing_field:urgent"),
        ('{"kind": "c", "urgent": true, "note": "x"}', "bad_value:kind"),
        ('{"kind": "a", "urgent": 1, "note": "x"}', "bad_value:urgent"),
        ('{"kind": "a", "urgent": "true", "note": "x"}', "bad_value:urgent"),
        ('{"kind": "a", "urgent": true, "note": "x", "more": 1}', None),
        ("I'm sorry, but I can't help with that.", "refusal"),
        (" \n", "empty"),
    ],
)
def test_a_json_draft_must_be_what_json_loads_takes(text: str, reason: str | None) -> None:
    assert check(OBJECT, said(text)) == reason


def test_fenced_json_is_accepted_only_where_the_teacher_fences() -> None:
    fenced = f"```json\n{GOOD}\n```"
    assert check(learn(OBJECT, [GOOD, GOOD, fenced]), said(fenced)) == "not_json"
    assert check(learn(OBJECT, [fenced, fenced, GOOD]), said(fenced)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("card", None),
        (" card_lost\n", None),
        ("Card", "not_a_label"),
        ("card.", "not_a_label"),
        ("I cannot help with this request.", "refusal"),
    ],
)
def test_a_label_draft_must_be_a_label_to_the_letter(text: str, reason: str | None) -> None:
    assert check(LABEL, said(text)) == reason


def test_labels_left_open_are_those_the_teacher_repeats() -> None:
    spec = learn(OutputSpec(kind="label"), ["b", "a", "a ", "b", "As you did not say, b or a?"])
    assert spec.labels == ("a", "b")
    assert learn(OutputSpec(kind="label"), ["b", "a"]).labels == ("a", "b")
    assert learn(LABEL, ["z", "z"]) == LABEL


def test_a_draft_cut_short_is_invalid() -> None:
    assert check(OBJECT, said(GOOD, finish_reason="length")) == "truncated"
    assert check(OBJECT, said(GOOD, tokens=256)) == "too_long"
    assert check(OutputSpec(), said("fine", finish_reason="content_filter")) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, I cannot help you.",
        "Sorry, I am unable to process this.",
        "As an AI language model, I have no opinion.",
        "I cannot assist with that.",
        "Unfortunately, I can't do that.",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    assert check(OutputSpec(), said(text)) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that your parcel is late. We will send another.",
        "Sorry for the delay! Your refund is on its way.",
        "The customer says: I cannot help but notice the scratch.",
        "I can help with that.",
        "Unfortunately the item is sold out.",
    ],
)
def test_polite_answers_are_not_refusals(text: str) -> None:
    assert check(OutputSpec(), said(text)) is None


@pytest.mark.parametrize(
    ("spec", "one", "other", "loss"),
    [
        (LABEL, "card", ' "Card".\n', 0.0),
        (LABEL, "card", "card_lost", 1.0),
        (OBJECT, GOOD, f"```\n{GOOD}\n```", 0.0),
        (OBJECT, GOOD, '{"note":" x","urgent":true,"kind":"a","extra":0}', 0.0),
        (OBJECT, GOOD, GOOD.replace("true", "false"), 1.0),
        (OBJECT, GOOD, GOOD.replace("true", "1"), 1.0),
        (OBJECT, GOOD, '{"kind": "a", "urgent": true}', 1.0),
        (OBJECT, GOOD, "I cannot say.", 1.0),
        (OBJECT, "I cannot say.", "I cannot say. ", 0.0),
        (OutputSpec(kind="json"), '{"a": [1, {"b": 2}]}', '{"a": [1.0, {"b": 2}]}', 0.0),
        (OutputSpec(kind="json"), '{"a": 1}', '{"a": 1, "b": 2}', 1.0),
        (OutputSpec(), "The cat sat.", "the cat sat", 0.0),
        (OutputSpec(), "the cat", "a dog", 1.0),
        (OutputSpec(), "the cat", "the dog", 0.5),
        (OutputSpec(), "👍", "👍 ", 0.0),
        (OutputSpec(), "", "", 0.0),
        (OutputSpec(), "", "word", 1.0),
    ],
)
def test_disagreement_asks_whether_two_answers_say_the_same(
    spec: OutputSpec, one: str, other: str, loss: float
) -> None:
    assert disagreement(spec, one, other) == pytest.approx(loss)
    assert disagreement(spec, other, one) == pytest.approx(loss)


def test_a_class_is_the_label_or_the_first_fields_value() -> None:
    assert label_of(LABEL, ' "Card".') == "card"
    assert label_of(OBJECT, GOOD) == "a"
    assert label_of(OBJECT, '{"kind": ["a"]}') is None
    assert label_of(OBJECT, "nothing") is None
    assert label_of(OutputSpec(), "anything") is None


@pytest.mark.parametrize(
    ("one", "other", "loss"),
    [
        (GOOD, GOOD, 0.0),
        (GOOD, '{"kind": "b", "urgent": true, "note": "x"}', 1 / 3),
        (GOOD, '{"kind": "b", "urgent": false, "note": "y"}', 1.0),
        # one of three fields is missing: precision 1, recall 2/3
        ('{"kind": "a", "urgent": true}', GOOD, 0.2),
        # what is no field of the task does not count
        (GOOD, GOOD[:-1] + ', "more": 1}', 0.0),
        ("no", GOOD, 1.0),
        ("{}", "{}", 0.0),
    ],
)
def test_a_json_answer_may_be_as_wrong_as_its_share_of_the_fields(
    one: str, other: str, loss: float
) -> None:
    spec = OutputSpec(kind="json", fields=OBJECT.fields, loss="fields")
    assert disagreement(spec, one, other) == pytest.approx(loss)
    assert disagreement(OBJECT, one, other) == float(loss > 0)
    assert (OBJECT.binary, spec.binary) == (True, False)
