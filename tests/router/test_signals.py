"""Only the tokens that carry the answer count, and every number is finite."""

import dataclasses
import math

import numpy as np
import pytest

from router.decision import Answer, Token
from router.output import Kind
from router.signals import FEATURES, NOTHING, features, signals, value_spans, value_tokens


def generated(*pieces: str | tuple[str, float], text: str | None = None) -> Answer:
    tokens = tuple(
        Token(text=piece, logprob=-0.001)
        if isinstance(piece, str)
        else Token(text=piece[0], logprob=piece[1])
        for piece in pieces
    )
    return Answer(text="".join(t.text for t in tokens) if text is None else text, tokens=tokens)


TICKET = generated(
    *('{"', "category", '":', ' "', ("bill", -0.1), ("ing", -0.2), ('",', -0.3), ' "', "n", '":'),
    *((" 1", -1.0), ("2", -2.0), (",", -0.5), ' "ok":', (" true", -0.7), "}"),
)


def test_values_are_told_from_keys_and_punctuation() -> None:
    groups = value_tokens(TICKET)
    assert {key: [t.text for t in group] for key, group in groups.items()} == {
        "category": ["bill", "ing", '",'],  # the quote that ends a value is part of it
        "n": [" 1", "2", ","],
        "ok": [" true"],
    }
    got = signals("json", TICKET)
    assert got.values == 7
    assert got.seq == pytest.approx(-4.8)
    assert got.mean == pytest.approx(-4.8 / 7)
    assert got.min == -2.0
    assert got.field_min == pytest.approx(-3.5)
    assert dict(got.fields)["category"] == pytest.approx(-0.6)


def test_only_the_fields_that_matter_count() -> None:
    assert signals("json", TICKET, ("category",)).seq == pytest.approx(-0.6)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": "x: {y}, \\"z\\"", "b": [1, "two"]}', ['x: {y}, \\"z\\""', "1,", 'two"']),
        ('{"a": {"b": "c"}, "d": null}', ['c"', "null"]),
        ('{"a": ""}', ['"']),
        ('{"a": "cut of', ["cut of"]),
        ("{}", []),
        ("no json", []),
        ("[true, -1.5e3]", ["true", "-1.5e3]"]),
    ],
)
def test_leaf_values_are_found_in_any_json_and_in_broken_ones(text: str, values: list[str]) -> None:
    assert [text[start:end] for _, start, end in value_spans(text)] == values


def test_nested_values_belong_to_their_top_level_key() -> None:
    assert [key for key, *_ in value_spans('{"a": {"b": "c", "d": [1]}, "e": 2}')] == [*"aae"]


def test_tokens_that_do_not_add_up_to_the_text_are_still_placed() -> None:
    # Half characters print as U+FFFD, the first blank is stripped, the end mark is hidden.
    odd = generated(
        *(' {"', "a", '":', ' "', ("\ufffd", -0.4), ("\ufffd", -0.6), ("xy", -0.5), '"}', "<end>"),
        text='{"a": "🦊xy"}',
    )
    group = value_tokens(odd)["a"]
    assert ("xy", -0.5) in [(t.text, t.logprob) for t in group]
    assert ("\ufffd", -0.4) in [(t.text, t.logprob) for t in group]
    assert '":' not in [t.text for t in group]


def test_tokens_that_do_not_fit_at_all_count_as_a_whole() -> None:
    strange = generated(("foo", -1.0), ("bar", -2.0), text='{"a": "something else entirely"}')
    assert value_tokens(strange) == {}
    assert signals("json", strange).seq == -3.0


@pytest.mark.parametrize("kind", ["label", "json", "text"])
@pytest.mark.parametrize(
    "given",
    [
        Answer(text=""),
        Answer(text='{"a": 1}'),
        generated(("x", -math.inf)),
        generated(("x", math.nan)),
        generated(("x", -9999.0), ("y", 0.0)),
        generated(("x", 1e-7)),
        generated("", "", text=""),
        generated(("", -0.1), text='{"a": "b"}'),
        generated(*[("\ud800", -0.1)] * 3),
        Answer(text="x", tokens=(Token(text="x", logprob=0.0, top=(0.0, -math.inf)),)),
        Answer(text="x", tokens=(Token(text="x", logprob=-1.0, top=(-0.5, -1.0, -9.0)),)),
    ],
)
def test_every_signal_is_finite_whatever_the_server_sends(kind: Kind, given: Answer) -> None:
    got = signals(kind, given)
    numbers = [value for value in dataclasses.astuple(got) if not isinstance(value, tuple)]
    assert np.isfinite(numbers).all()
    assert np.isfinite(features(got)).all()
    assert len(features(got)) == len(FEATURES)
    assert got.seq <= 0.0 and 0.0 <= got.first <= 1.0


def test_an_answer_without_tokens_is_as_unsure_as_can_be() -> None:
    assert signals("label", Answer(text="card")) == NOTHING


def test_surer_tokens_mean_higher_signals() -> None:
    def one(p: float) -> Answer:
        top = tuple(sorted((math.log(p), math.log1p(-p)), reverse=True))
        return Answer(text="x", tokens=(Token(text="x", logprob=math.log(p), top=top),))

    low, high = (signals("label", one(p)) for p in (0.6, 0.99))
    assert low.seq < high.seq and low.first < high.first and low.margin < high.margin
    assert (features(low) < features(high)).all()
