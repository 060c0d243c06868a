"""Every rule on its own, all rules together, and the first task that holds."""

import hashlib
import json
from typing import Any

import pytest

from gateway.claims import Claims
from gateway.config import Claim, Task
from gateway.errors import InvalidRequest
from gateway.wire.protocol import Chat, Incoming, read_chat


def chat(**more: Any) -> Chat:
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You sort mail."},
            {"role": "user", "content": "hi"},
        ],
    } | more
    raw = json.dumps(body).encode()
    return read_chat(Incoming(id="r", method="POST", path="/", query="", headers={}, raw=raw))


def claimed(rule: dict[str, Any], request: Chat, headers: dict[str, str] | None = None) -> bool:
    claims = Claims([Task(name="t", claim=Claim(**rule))], None)
    return claims.find(request, headers or {}) is not None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"model": ["x", "m"]}, True),
        ({"model": ["x"]}, False),
        ({"system": "You sort mail."}, True),
        ({"system": "You sort mail"}, False),
        ({"system_prefix": "You sort"}, True),
        ({"system_prefix": "you sort"}, False),
        ({"system_regex": r"sort \w+"}, True),
        ({"system_regex": "^mail"}, False),
        ({"system_sha256": hashlib.sha256(b"You sort mail.").hexdigest().upper()}, True),
        ({"system_sha256": "00"}, False),
        ({"metadata": {"job": "a"}}, True),
        ({"metadata": {"job": "a", "more": "b"}}, False),
        ({"header": {"X-Job": "a"}}, True),
        ({"header": {"x-job": "b"}}, False),
        ({"model": ["m"], "system_prefix": "You", "metadata": {"job": "a"}}, True),
        ({"model": ["m"], "system_prefix": "You", "metadata": {"job": "b"}}, False),
    ],
)
def test_a_claim_holds_where_all_its_rules_do(rule: dict[str, Any], expected: bool) -> None:
    request = chat(metadata={"job": "a", "other": "z"})
    assert claimed(rule, request, {"x-job": "a"}) is expected


def test_developer_prompts_and_text_parts_are_system_prompts() -> None:
    parts = [{"type": "text", "text": "You sort mail."}]
    for role in ("system", "developer"):
        messages = [{"role": role, "content": parts}, {"role": "user", "content": "hi"}]
        assert claimed({"system": "You sort mail."}, chat(messages=messages))


def test_a_request_without_system_prompt_matches_no_system_rule() -> None:
    request = chat(messages=[{"role": "user", "content": "hi"}])
    for rule in ({"system": ""}, {"system_prefix": ""}, {"system_regex": ""}):
        assert not claimed(rule, request)


def test_metadata_of_the_wrong_kind_matches_nothing() -> None:
    assert not claimed({"metadata": {"job": "a"}}, chat(metadata=["job"]))


def test_the_first_task_in_the_file_has_the_request() -> None:
    tasks = [Task(name=name, claim=Claim(model=["m"])) for name in ("one", "two")]
    found = Claims(tasks, None).find(chat(), {})
    assert found is not None and found.name == "one"


def test_a_task_named_as_model_needs_the_teachers_model() -> None:
    task = Task(name="t", claim=Claim(system="never"))
    found = Claims([task], "gpt").find(chat(model="t"), {})
    assert found is task
    with pytest.raises(InvalidRequest, match=r"teacher\.model"):
        Claims([task], None).find(chat(model="t"), {})
    # unless the application itself has always called its model that
    own = Task(name="t", claim=Claim(model=["t"]))
    assert Claims([own], None).find(chat(model="t"), {}) is own
