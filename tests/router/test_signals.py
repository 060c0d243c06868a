"""Only the tokens that carry the answer count, and every number is finite."""

import dataclasses
import math

import numpy as np
import pytest

from router.decision import Answer, Token
from router.output import Kind
from router.signals import (
    EXTRAS,
    FEATURES,
    NOTHING,
    QUANTILES,
    WINDOW,
    extras,
    features,
    log_probability,
    signals,
    value_spans,
    value_tokens,
)


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
    assert np.isfinite(extras(got)).all() and len(extras(got)) == len(EXTRAS)
    assert np.isfinite(signals(kind, given, labels=("x", "y")).options).all()
    score = log_probability(kind, given)
    assert score == pytest.approx(got.mean if kind == "text" else got.seq)
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


def test_quantiles_are_those_of_the_value_tokens() -> None:
    logs = [-0.1, -0.2, -0.3, -1.0, -2.0, -0.5, -0.7]
    got = signals("json", TICKET)
    assert got.quantiles == pytest.approx(np.quantile(logs, QUANTILES).tolist())
    assert got.quantiles[0] == got.min


def test_a_stretch_of_doubt_in_a_long_text_shows_in_the_group_but_little_in_the_mean() -> None:
    def token(p: float) -> Token:
        top = (math.log(p), math.log1p(-p))
        return Token(text="word ", logprob=top[0], top=top)

    def written(*tokens: Token) -> float:
        return signals("text", Answer(text="word " * len(tokens), tokens=tokens)).group

    sure, unsure = [token(0.999)] * WINDOW, [token(0.6)] * WINDOW
    assert written(*sure * 5) == pytest.approx(written(*sure))
    assert written(*sure * 2, *unsure, *sure * 2) == pytest.approx(written(*unsure))
    assert written(*unsure) < written(*unsure[:9], *sure[:9]) < written(*sure)


def test_servers_that_leave_out_alternatives_of_some_tokens_are_read() -> None:
    whole = Token(text="a", logprob=-0.1, top=(-0.1, -3.0, -5.0))
    short = Token(text="b", logprob=-0.2, top=(-0.2, -2.0))
    alone_token = Token(text="c", logprob=-0.3)
    got = signals("text", Answer(text="abc", tokens=(whole, short, alone_token)))
    alone = signals("text", Answer(text="c", tokens=(alone_token,)))
    assert got.margin == pytest.approx(min(2.9, 1.8, alone.margin))
    assert got.seq == pytest.approx(-0.6)


def test_alternatives_are_labels_by_their_names() -> None:
    labels = ("card", "card_lost", "Transfer", "other")
    token = Token(
        text=" card",
        logprob=math.log(0.5),
        top=tuple(map(math.log, (0.5, 0.25, 0.125, 0.0625))),
        names=(" card", "trans", "Card", "zebra"),
    )
    answer = Answer(text="card_lost", tokens=(Token(text=" ", logprob=0.0), token))
    got = signals("label", answer, labels=labels)
    assert got.said == 1
    # both cards begin with the token; upper and lower case are one label
    assert np.exp(got.options) == pytest.approx([0.625, 0.625, 0.25, 0.0625, 0.125])
    assert signals("label", Answer(text="nothing", tokens=(token,)), labels=labels).said == -1


def test_without_names_only_the_chosen_token_is_known() -> None:
    token = Token(text="a", logprob=math.log(0.7), top=(math.log(0.7), math.log(0.2)))
    got = signals("label", Answer(text="a", tokens=(token,)), labels=("a", "b"))
    assert np.exp(got.options) == pytest.approx([0.7, 0.3, 0.3])


@pytest.mark.parametrize(
    ("kind", "text", "share"),
    [
        ("json", '{"a": null, "b": "x", "c": "", "d": "Unknown"}', 0.75),
        ("json", '{"a": 0, "b": false}', 0.0),
        ("label", "n/a", 1.0),
        ("label", "refund", 0.0),
        ("text", "I'm sorry, but I can't help with that.", 1.0),
        ("text", "The unknown soldier", 0.0),
    ],
)
def test_refusals_and_empty_values_are_abstentions(kind: Kind, text: str, share: float) -> None:
    assert signals(kind, generated(text)).abstains == share


def test_the_form_of_an_answer_is_read_also_without_tokens() -> None:
    got = signals("text", Answer(text="x" * 99, finish_reason="length"), lengths=(0.0, 2.0))
    assert got.cut and got.length == pytest.approx(math.log(100) / 2)
