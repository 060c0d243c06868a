"""Tokens to dollars, and null for what is unknown."""

import pytest

from gateway.config import Price
from gateway.pricing import TeacherEstimate, Usage, add, cost_usd, read_usage

PRICE = Price(input_usd=2.5, output_usd=10.0, cached_input_usd=0.25)


def test_the_reference_example() -> None:
    """2,000,000 calls of 2200 and 300 tokens."""
    one = cost_usd(Price(input_usd=2.5, output_usd=10.0), Usage(prompt=2200, completion=300))
    assert one is not None and one * 2_000_000 == pytest.approx(17_000)


def test_cached_tokens_have_their_own_price() -> None:
    usage = Usage(prompt=1000, completion=0, cached=800)
    assert cost_usd(PRICE, usage) == pytest.approx((200 * 2.5 + 800 * 0.25) / 1e6)
    dear = Price(input_usd=2.5, output_usd=10.0)
    assert cost_usd(dear, usage) == pytest.approx(1000 * 2.5 / 1e6)


def test_what_is_unknown_is_null_and_never_zero() -> None:
    assert cost_usd(PRICE, None) is None
    assert cost_usd(Price(input_usd=1.0), Usage(prompt=1, completion=1)) is None
    assert cost_usd(Price(output_usd=1.0), Usage(prompt=1, completion=1)) is None
    assert add(1.0, None) is None
    assert add(1.0, 2.0) == 3.0


def test_usage_of_every_shape() -> None:
    details = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}
    assert read_usage(details) == Usage(prompt=9, completion=2)
    details["prompt_tokens_details"] = {"cached_tokens": 5}
    assert read_usage(details) == Usage(prompt=9, completion=2, cached=5)
    assert read_usage({"prompt_tokens": 9}) == Usage(prompt=9, completion=0)
    for nothing in (None, {}, [], {"prompt_tokens": "9"}, {"prompt_tokens": None}):
        assert read_usage(nothing) is None


def test_teacher_counts_are_estimated_from_those_seen() -> None:
    estimate = TeacherEstimate()
    assert estimate.of(400, "four") is None
    estimate.learn(400, "parcel", Usage(prompt=100, completion=2))
    estimate.learn(400, "refund", None)
    assert estimate.of(800, "parcel") == Usage(prompt=200, completion=2)
