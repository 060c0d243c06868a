"""Tokens to dollars, and null for what is unknown. Sums are worked out by hand beside them."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.config import Config, Price
from gateway.errors import ConfigError
from gateway.money.prices import PriceBook
from gateway.money.pricing import TeacherEstimate, Usage, add, cost_usd, read_usage

PRICE = Price(input_usd=2.5, output_usd=10.0, cached_input_usd=0.25)
NOVEMBER = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPENAI = "https://api.openai.com/v1"


def test_the_reference_example() -> None:
    """2,000,000 calls of 2200 and 300 tokens."""
    one = cost_usd(Price(input_usd=2.5, output_usd=10.0), Usage(prompt=2200, completion=300))
    assert one is not None and one * 2_000_000 == pytest.approx(17_000)


def test_cached_tokens_have_their_own_price() -> None:
    usage = Usage(prompt=1000, completion=0, cached=800)
    assert cost_usd(PRICE, usage) == pytest.approx((200 * 2.5 + 800 * 0.25) / 1e6)
    dear = Price(input_usd=2.5, output_usd=10.0)
    assert cost_usd(dear, usage) == pytest.approx(1000 * 2.5 / 1e6)


def test_every_kind_of_token_has_its_price() -> None:
    price = Price(
        input_usd=1.0,
        cached_input_usd=0.1,
        cache_write_usd=1.25,
        audio_input_usd=40.0,
        output_usd=4.0,
        reasoning_usd=3.0,
        audio_output_usd=80.0,
    )
    usage = Usage(
        prompt=1000,
        cached=500,
        cache_write=200,
        audio_prompt=100,
        completion=100,
        reasoning=60,
        audio_completion=10,
    )
    by_hand = (
        200 * 1.0 + 500 * 0.1 + 200 * 1.25 + 100 * 40.0 + 30 * 4.0 + 60 * 3.0 + 10 * 80.0
    ) / 1e6
    assert cost_usd(price, usage) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.0056)


def test_reasoning_is_paid_once_and_as_output() -> None:
    usage = read_usage(
        {
            "prompt_tokens": 100,
            "completion_tokens": 500,
            "total_tokens": 600,
            "completion_tokens_details": {"reasoning_tokens": 400},
        }
    )
    assert usage == Usage(prompt=100, completion=500, reasoning=400)
    assert cost_usd(PRICE, usage) == pytest.approx((100 * 2.5 + 500 * 10.0) / 1e6)


def test_reasoning_that_is_counted_beside_the_completion_is_paid_too() -> None:
    usage = read_usage(
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 550,
            "completion_tokens_details": {"reasoning_tokens": 400},
        }
    )
    assert usage == Usage(prompt=100, completion=450, reasoning=400)


def test_sound_without_a_price_is_unknown_and_not_text() -> None:
    usage = Usage(prompt=100, completion=10, audio_prompt=80)
    assert cost_usd(PRICE, usage) is None


def test_what_is_unknown_is_null_and_never_zero() -> None:
    assert cost_usd(PRICE, None) is None
    assert cost_usd(None, Usage(prompt=1, completion=1)) is None
    assert cost_usd(Price(), Usage(prompt=0, completion=0)) is None
    assert cost_usd(Price(input_usd=1.0), Usage(prompt=1, completion=1)) is None
    assert cost_usd(Price(output_usd=1.0), Usage(prompt=1, completion=1)) is None
    # an embedding has no output to be priced
    assert cost_usd(Price(input_usd=1.0), Usage(prompt=8, completion=0)) == 8e-6
    assert add(1.0, None) is None
    assert add(1.0, 2.0) == 3.0


def test_usage_of_every_shape() -> None:
    details: dict[str, Any] = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": None,
    }
    assert read_usage(details) == Usage(prompt=9, completion=2)
    details["prompt_tokens_details"] = {"cached_tokens": 5, "audio_tokens": 1}
    details["completion_tokens_details"] = {"audio_tokens": 2}
    assert read_usage(details) == Usage(
        prompt=9, completion=2, cached=5, audio_prompt=1, audio_completion=2
    )
    assert read_usage({"prompt_tokens": 9}) == Usage(prompt=9, completion=0)
    responses = {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 5},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 13,
    }
    assert read_usage(responses) == Usage(prompt=9, completion=4, cached=5, reasoning=3)
    messages = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 30,
        "output_tokens": 4,
    }
    assert read_usage(messages) == Usage(prompt=60, completion=4, cached=30, cache_write=20)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"prompt_tokens": "9"},
        {"prompt_tokens": None},
        {"prompt_tokens": -1},
        {"prompt_tokens": True},
        {"prompt_tokens": 10**30},
        {"prompt_tokens": 1, "completion_tokens": 1.5},
    ],
)
def test_counts_that_cannot_be_are_not_believed(usage: Any) -> None:
    assert read_usage(usage) is None


def test_parts_larger_than_the_whole_never_make_a_cost_negative() -> None:
    usage = read_usage(
        {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {
                "cached_tokens": 50,
                "audio_tokens": 50,
                "cache_write_tokens": -4,
            },
            "completion_tokens_details": {"reasoning_tokens": 50, "audio_tokens": 7},
        }
    )
    assert usage == Usage(prompt=10, completion=5, cached=10, reasoning=5)


def test_teacher_counts_are_estimated_from_those_seen() -> None:
    estimate = TeacherEstimate()
    assert estimate.of(400, "four") is None
    estimate.learn(400, "parcel", Usage(prompt=100, completion=2, cached=60))
    estimate.learn(400, "refund", None)
    assert estimate.of(800, "parcel") == Usage(prompt=200, completion=2, cached=120)


def book(now: datetime = NOVEMBER, **sections: Any) -> PriceBook:
    made = PriceBook(Config.model_validate(sections), lambda: now)
    made.open()
    return made


def test_prices_come_from_the_list_by_the_teachers_address() -> None:
    prices = book(teacher={"base_url": OPENAI})
    usage = Usage(prompt=2200, completion=300)
    # gpt-4o: 2.5 and 10 dollars, 1.25 for what is cached
    assert prices.teacher_usd(usage, "gpt-4o-2024-08-06") == pytest.approx(0.0085)
    cached = Usage(prompt=2200, completion=300, cached=2000)
    by_hand = (200 * 2.5 + 2000 * 1.25 + 300 * 10) / 1e6
    assert prices.teacher_usd(cached, "gpt-4o") == pytest.approx(by_hand)
    assert prices.unclaimed_usd(usage, "gpt-4o") == pytest.approx(0.0085)
    tokens = Usage(prompt=1000, completion=0)
    assert prices.unclaimed_usd(tokens, "text-embedding-3-small") == pytest.approx(2e-5)


def test_long_prompts_and_service_tiers_have_their_list_price() -> None:
    prices = book(teacher={"base_url": OPENAI})
    # gpt-5.5: 5 and 30 dollars, above 272,000 tokens 10 and 45 for all of them; flex is half
    assert prices.teacher_usd(Usage(prompt=272_000, completion=0), "gpt-5.5") == pytest.approx(1.36)
    long = Usage(prompt=272_001, completion=1000)
    assert prices.teacher_usd(long, "gpt-5.5") == pytest.approx((272_001 * 10 + 1000 * 45) / 1e6)
    flex = Usage(prompt=1000, completion=1000, tier="flex")
    assert prices.teacher_usd(flex, "gpt-5.5") == pytest.approx((1000 * 2.5 + 1000 * 15) / 1e6)
    assert prices.teacher_usd(Usage(prompt=1, completion=1, tier="gold"), "gpt-5.5") is None
    assert read_usage({"prompt_tokens": 1}, "default") == Usage(prompt=1, completion=0)
    assert read_usage({"prompt_tokens": 1}, "flex") == Usage(prompt=1, completion=0, tier="flex")


def test_list_prices_are_those_of_the_day() -> None:
    usage = Usage(prompt=1_000_000, completion=0)
    before = book(datetime(2025, 6, 1, tzinfo=UTC), teacher={"base_url": OPENAI})
    after = book(datetime(2025, 6, 12, tzinfo=UTC), teacher={"base_url": OPENAI})
    assert before.teacher_usd(usage, "o3") == pytest.approx(10.0)
    assert after.teacher_usd(usage, "o3") == pytest.approx(2.0)


def test_configured_prices_win_over_the_list() -> None:
    usage = Usage(prompt=1_000_000, completion=0)
    own = {"input_usd": 1.0, "output_usd": 1.0}
    teacher = {"base_url": OPENAI, "model": "gpt-4o", "price": own}
    prices = book(teacher=teacher, pricing={"models": {"gpt-5": {"input_usd": 7.0}}})
    assert prices.teacher_usd(usage, "gpt-4o-2024-08-06", "gpt-4o") == 1.0
    assert prices.unclaimed_usd(usage, "gpt-5") == 7.0
    assert prices.unclaimed_usd(usage, "gpt-4o") == 1.0
    # the teacher's price is not that of whatever else is asked of its server
    assert prices.unclaimed_usd(usage, "gpt-4.1") == 2.0
    named = book(teacher={"base_url": OPENAI}, pricing={"models": {"gpt-4o": {"input_usd": 3.0}}})
    assert named.teacher_usd(usage, "gpt-4o-2024-08-06", "gpt-4o") == 3.0


def test_another_teacher_has_its_own_price() -> None:
    usage = Usage(prompt=1_000_000, completion=0)
    prices = book(teacher={"base_url": "http://127.0.0.1:9/v1", "price": {"input_usd": 5.0}})
    assert prices.teacher_usd(usage, "gpt-4o") == 5.0
    assert prices.teacher_usd(usage, "gpt-4o", own=Price(input_usd=6.0), base_url=OPENAI) == 6.0
    assert prices.teacher_usd(usage, "gpt-4o", own=Price(), base_url=OPENAI) == 2.5


def test_a_server_of_ones_own_has_no_list_price() -> None:
    usage = Usage(prompt=1000, completion=1)
    assert book(teacher={"base_url": "http://10.0.0.7/v1"}).teacher_usd(usage, "gpt-4o") is None
    named = {"base_url": "http://10.0.0.7/v1", "provider": "openai"}
    assert book(teacher=named).teacher_usd(usage, "gpt-4o") is not None
    without = book(teacher=named, pricing={"use_list": False})
    assert without.teacher_usd(usage, "gpt-4o") is None


def test_an_unknown_model_is_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    prices = book(teacher={"base_url": OPENAI})
    with caplog.at_level(logging.WARNING, "gateway.money.prices"):
        for _ in range(3):
            assert prices.teacher_usd(Usage(prompt=1, completion=1), "gpt-unheard-of") is None
    assert [getattr(record, "model", "") for record in caplog.records] == ["gpt-unheard-of"]


def test_a_student_is_paid_by_token_or_by_the_hour_and_not_twice() -> None:
    usage = Usage(prompt=1000, completion=10)
    by_token = book(student={"price": {"input_usd": 1.0, "output_usd": 1.0}})
    assert by_token.student_usd(usage) == pytest.approx(0.00101)
    assert book(student={"price": {"gpu_hour_usd": 2.5}}).student_usd(None) == 0.0
    assert book().student_usd(usage) is None
    with pytest.raises(ConfigError, match="charged twice"):
        from gateway.config import parse

        parse("student: {price: {input_usd: 1, output_usd: 1, gpu_hour_usd: 2}}")
