"""Several teachers: who answers, who pays, and what the client hears when none does."""

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"
UNCLAIMED = {"model": "gpt-large", "messages": [MESSAGES[1]]}
PRICE = {"input_usd": 100.0, "output_usd": 200.0}
FAILURES = [
    Reply(raw=b'{"error": {"message": "no room", "code": 503}}'),
    Reply(status=500),
    Reply(status=429, headers={"retry-after": "20"}),
    Reply(raw=b"nonsense"),
    Reply(text="parcel", cut_after=0),
    Reply(text="parcel", delay_s=20),
]


def chained(start: Start, *others: FakeOpenAI, **teacher: Any) -> RunningGateway:
    """``others`` are asked for gpt-other where the first teacher cannot answer."""
    fallbacks = [
        {"base_url": other.url, "api_key_env": None, "model": "gpt-other", "price": PRICE}
        for other in others
    ]
    return start(sections={"teacher": {"fallbacks": fallbacks, "timeout_s": 2.0} | teacher})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("claimed", [True, False])
def test_a_teacher_that_fails_is_followed_by_the_next(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI, claimed: bool, stream: bool
) -> None:
    gateway = chained(start, next_teacher, timeout_s=0.5)
    # what passes through is read only where it streams: nonsense is passed on
    failures = [reply for reply in FAILURES if claimed or reply.raw is None]
    for number, failure in enumerate(failures):
        teacher.reply = failure
        body = (BODY if claimed else UNCLAIMED) | {"stream": stream, "user": str(number)}
        status, headers, data = gateway.send("POST", CHAT, body)
        assert (status, headers["x-retort-route"]) == (200, "teacher")
        assert b"refund" in data and b"parcel" not in data
        assert next_teacher.chats[-1]["model"] == "gpt-other"
        assert next_teacher.chats[-1]["user"] == str(number)


def test_who_answered_is_who_is_paid_and_named(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = chained(start, next_teacher)
    teacher.reply = Reply(status=503)
    next_teacher.reply = Reply(
        text="refund", usage={"prompt_tokens": 1000, "completion_tokens": 100}
    )
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert float(headers["x-retort-cost-usd"]) == pytest.approx(0.12)
    (row,) = gateway.ledger()
    assert row.cost_usd == pytest.approx(0.12)
    assert gateway.exchange().teacher_model == "gpt-other"
    assert gateway.exchange().teacher_text == "refund"


@pytest.mark.parametrize("claimed", [True, False])
def test_a_request_at_fault_is_not_taken_to_the_next_teacher(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = chained(start, next_teacher)
    for code in (400, 401, 404, 422):
        teacher.reply = Reply(status=code)
        assert gateway.send("POST", CHAT, BODY if claimed else UNCLAIMED)[0] == code
    assert next_teacher.chats == []


def test_a_key_of_ours_that_is_refused_is_not_the_requests_fault(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "revoked")
    gateway = chained(start, next_teacher, api_key_env="OUR_KEY")
    teacher.api_key = "good"
    assert gateway.send("POST", CHAT, BODY)[0] == 200


def test_what_a_client_tells_its_own_teacher_is_not_told_to_another(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = chained(start, next_teacher)
    teacher.reply = Reply(status=500)
    secrets = {"authorization": "Bearer sk-1", "openai-organization": "org-1", "cookie": "c=1"}
    for body in (BODY, UNCLAIMED):
        assert gateway.send("POST", CHAT, body, secrets | {"x-app": "shop"})[0] == 200
        assert teacher.requests[-1].headers["authorization"] == "Bearer sk-1"
        seen = next_teacher.requests[-1].headers
        assert seen["x-app"] == "shop"
        assert not secrets.keys() & seen.keys()


def test_a_fallback_without_a_model_of_its_own_gets_the_same_bytes(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    fallback = {"base_url": next_teacher.url, "api_key_env": None}
    gateway = start(sections={"teacher": {"fallbacks": [fallback]}})
    teacher.stop()
    raw = json.dumps(UNCLAIMED, indent=3)
    assert gateway.send("POST", CHAT, raw)[0] == 200
    assert next_teacher.requests[-1].raw == raw.encode()


def test_a_teacher_that_is_down_is_skipped_until_it_is_back(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = chained(start, next_teacher)
    teacher.reply = Reply(status=500)
    for _ in range(5):
        assert gateway.send("POST", CHAT, BODY)[0] == 200
    teacher.requests.clear()
    # nobody waits for it, nobody is refused, and /readyz says so
    assert gateway.send("POST", CHAT, BODY)[0] == 200
    assert teacher.chats == []
    code, state = gateway.json("/readyz")
    assert (code, state["teacher"]) == (200, "up")
    assert "0 down" in state["problems"]["teacher"]
    assert gateway.metric('retort_replica_up{replica="0",upstream="teacher"}') == 0
    assert gateway.metric('retort_replica_up{replica="1",upstream="teacher"}') == 1
    assert gateway.metric('retort_upstream_up{upstream="teacher"}') == 1
    teacher.reply = "parcel"
    wait_until(lambda: b"parcel" in gateway.send("POST", CHAT, BODY)[2])


def test_when_all_teachers_fail_the_client_is_told_when_to_come_back_or_not_to(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = chained(start, next_teacher)
    for claimed in (True, False):
        body = BODY if claimed else UNCLAIMED
        teacher.reply = Reply(status=500)
        next_teacher.reply = Reply(status=503)
        status, headers, data = gateway.send("POST", CHAT, body)
        assert (status, headers["x-should-retry"]) == (500, "false")
        assert json.loads(data)["error"].keys() == {"message", "type", "param", "code"}
        next_teacher.reply = Reply(status=429, headers={"retry-after": "7"})
        status, headers, _ = gateway.send("POST", CHAT, body)
        assert (status, headers["retry-after"]) == (429, "7")
        assert "x-should-retry" not in headers


def test_what_only_the_first_teacher_can_know_is_asked_of_nobody_else(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = chained(start, next_teacher)
    teacher.reply = Reply(status=500)
    for path in ("/v1/files", "/v1/embeddings", "/v1/batches"):
        assert gateway.send("POST", path, {"model": "m"})[0] == 500
    assert next_teacher.requests == []


def test_a_stream_is_never_made_of_two_teachers(
    start: Start, teacher: FakeOpenAI, next_teacher: FakeOpenAI
) -> None:
    gateway = chained(start, next_teacher)
    teacher.reply = Reply(text="one two", cut_after=1)
    for body in (BODY, UNCLAIMED):
        _, _, data = gateway.send("POST", CHAT, body | {"stream": True})
        assert b"one" in data and b"[DONE]" not in data
        assert json.loads(data.split(b"data: ")[-1])["error"]["code"] == "upstream_broken"
    assert next_teacher.chats == []


def test_retries_stay_within_their_budget_in_an_outage(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start(sections={"teacher": {"retries": 2}})
    teacher.reply = Reply(status=503, headers={"retry-after-ms": "1"})
    requests = 40
    for _ in range(requests):
        asked = len(teacher.chats)
        status, headers, _ = gateway.send("POST", CHAT, BODY)
        # what was repeated here is not to be multiplied; what was not is the client's to repeat
        repeated = len(teacher.chats) - asked > 1
        assert (status, headers.get("x-should-retry")) == (503, "false" if repeated else None)
    # ten in reserve, and a fifth of the requests
    assert requests < len(teacher.chats) <= requests * 1.2 + 10 + 1


def test_a_server_that_asks_for_a_long_pause_is_left_to_the_client(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start(sections={"teacher": {"retries": 2}})
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    for header, value in (
        ("retry-after", "300"),
        ("retry-after", date),
        ("retry-after-ms", "300000"),
    ):
        teacher.requests.clear()
        teacher.reply = Reply(status=429, headers={header: value})
        with pytest.raises(openai.RateLimitError) as caught:
            gateway.client().chat.completions.create(**BODY)
        assert caught.value.response.headers[header] == value
        assert len(teacher.chats) == 1


def test_each_wait_has_its_own_limit(start: Start, teacher: FakeOpenAI) -> None:
    limits = {"timeout_s": 20.0, "first_token_timeout_s": 0.3, "idle_timeout_s": 0.8}
    gateway = start(sections={"teacher": limits | {"stream_timeout_s": 5.0}})
    teacher.reply = Reply(text="parcel", delay_s=0.5)
    assert gateway.send("POST", CHAT, BODY)[0] == 200
    stream = BODY | {"stream": True}
    for body in (stream, UNCLAIMED | {"stream": True}):
        status, _, data = gateway.send("POST", CHAT, body)
        assert (status, json.loads(data)["error"]["code"]) == (504, "upstream_timeout")
    # a silence longer than the first word may take, but not too long
    teacher.reply = lambda body: Reply(text="one two", hold=_opens_in(0.4))
    assert b"[DONE]" in gateway.send("POST", CHAT, stream)[2]
    teacher.reply = Reply(raw_then_hang=_events("one"))
    _, _, data = gateway.send("POST", CHAT, stream)
    assert b"one" in data and b"[DONE]" not in data
    assert json.loads(data.split(b"data: ")[-1])["error"]["code"] == "upstream_timeout"


def _opens_in(seconds: float) -> threading.Event:
    gate = threading.Event()
    threading.Timer(seconds, gate.set).start()
    return gate


def _events(text: str) -> bytes:
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
