"""The keys for replicas, further teachers, limits: what is understood, what is refused, what a key
left out means."""

from typing import Any

import pytest

from gateway.app import make_chain
from gateway.config import Config, parse
from gateway.errors import ConfigError


def student(base_url: Any) -> Config:
    return Config.model_validate({"student": {"base_url": base_url}})


def test_a_student_has_one_url_or_one_per_replica() -> None:
    assert student("http://a/v1/").student.base_urls == ("http://a/v1",)
    assert student(["http://a/v1", "http://b/v1/"]).student.base_urls == (
        "http://a/v1",
        "http://b/v1",
    )


@pytest.mark.parametrize("urls", ["[]", "[http://a/v1, http://a/v1/]"])
def test_replicas_without_a_place_or_with_the_same_are_refused(urls: str) -> None:
    with pytest.raises(ConfigError, match=r"student\.base_url"):
        parse(f"student: {{base_url: {urls}}}")


def test_a_further_teacher_must_say_whose_key_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.fallbacks\.0\.api_key_env"):
        parse("teacher: {fallbacks: [{base_url: http://b/v1}]}")


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    config = parse(
        "teacher: {api_key_env: null,"
        " fallbacks: [{base_url: http://b/v1, api_key_env: NO_SUCH_KEY}]}"
    )
    with pytest.raises(ConfigError, match=r"teacher\.fallbacks\.0\.api_key_env: .*NO_SUCH_KEY"):
        make_chain(config.teacher, pass_key=True)
