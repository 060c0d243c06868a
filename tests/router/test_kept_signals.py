"""The numbers that are kept of a draft say the same order as the draft did, and no text."""

import json
import math

import pytest

from router.decision import Answer, Token
from router.kept_signals import KEPT, as_score, kept_signals
from router.output import OutputSpec
from router.signals import Signals, signals

SPEC = OutputSpec(kind="label", labels=("parcel", "refund"), max_tokens=16)


def draft(*logprobs: float) -> Answer:
    tokens = tuple(
        Token(text="x", logprob=v, top=(v, math.log((1 - math.exp(v)) / 2))) for v in logprobs
    )
    return Answer(text="x" * len(tokens), tokens=tokens)


def test_everything_kept_is_a_plain_number() -> None:
    kept = kept_signals(SPEC, draft(-0.123456789, -0.5))
    assert kept is not None
    assert json.loads(json.dumps(kept)) == kept
    assert tuple(kept) == KEPT
    assert kept["seq"] == pytest.approx(-0.623456789, rel=1e-6)
    assert kept["values"] == 2.0
    assert set(KEPT) <= set(Signals.__slots__)


def test_a_draft_without_probabilities_keeps_nothing() -> None:
    assert kept_signals(SPEC, Answer(text="parcel")) is None


@pytest.mark.parametrize("name", [name for name in KEPT if name != "values"])
def test_a_score_keeps_the_order_of_its_signal(name: str) -> None:
    drafts = [draft(-3.0, -9.0), draft(-1.0, -0.4), draft(-0.2, -0.1), draft(-0.001, -0.002)]
    raw = [getattr(signals(SPEC.kind, one), name) for one in drafts]
    scores = [as_score(name, kept_signals(SPEC, one)) for one in drafts]
    assert sorted(range(4), key=raw.__getitem__) == sorted(range(4), key=scores.__getitem__)
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_a_score_that_was_not_kept_is_unknown() -> None:
    assert math.isnan(as_score("seq", None))
    assert math.isnan(as_score("seq", {"mean": -0.1}))
    assert as_score("margin", {"margin": -9999.0}) == pytest.approx(0.0)
