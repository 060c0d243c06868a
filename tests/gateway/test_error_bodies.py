"""Whatever goes wrong, the client gets OpenAI's envelope, the right status and a request id."""

import json
from typing import Any

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import read_response
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"


def failed(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, Any]]:
    """Status and error, the envelope and the id checked."""
    status, headers, data = answer
    body = json.loads(data)
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert headers["x-request-id"].startswith("req-")
    assert headers["content-type"] == "application/json"
    return status, body["error"]


def test_bad_requests_name_what_is_wrong(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    for body, param in (
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b"null", None),
        (b"[" * 100_000, None),
        (b'{"model": "m"', None),
        ({"messages": MESSAGES}, "model"),
        ({"model": 7, "messages": MESSAGES}, "model"),
        ({"model": "", "messages": MESSAGES}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": "hi"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["hi"]}, "messages[0]"),
        ({"model": "m", "messages": [{"content": "x"}]}, "messages[0]"),
        (BODY | {"stream": "yes"}, "stream"),
        (BODY | {"stream_options": True}, "stream_options"),
        (BODY | {"logprobs": 3}, "logprobs"),
        (BODY | {"top_logprobs": "3"}, "top_logprobs"),
    ):
        answer = gateway.send("POST", CHAT, body)
        status, error = failed(answer)
        assert (status, error["param"]) == (400, param)
        assert error["type"] == "invalid_request_error"
        assert answer[1]["x-should-retry"] == "false"
    assert teacher.chats == []


def test_an_unknown_forced_route_is_refused(start: Start) -> None:
    status, error = failed(start().send("POST", CHAT, BODY, {"x-retort-route": "oracle"}))
    assert (status, error["param"]) == (400, "x-retort-route")


def test_naming_a_task_needs_a_model_for_the_teacher(start: Start) -> None:
    status, error = failed(start().send("POST", CHAT, BODY | {"model": "triage"}))
    assert (status, error["code"]) == (400, "teacher_model_missing")
    assert "teacher.model" in error["message"]


@pytest.mark.parametrize("claimed_by_length", [True, False])
def test_too_large_a_body_is_refused_without_reading_it(
    start: Start, teacher: FakeOpenAI, claimed_by_length: bool
) -> None:
    gateway = start(sections={"server": {"max_body_bytes": 1000}})
    if claimed_by_length:
        answer = gateway.send("POST", CHAT, b"x" * 1001)
    else:
        headers = {"transfer-encoding": "chunked", "content-type": "application/json"}
        with gateway.connect() as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection.sendall(head.encode() + b"\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n")
            answer = read_response(connection)
    status, error = failed(answer)
    assert (status, error["code"]) == (413, "request_too_large")
    assert teacher.requests == []


def test_keys_are_asked_for_and_compared(
    start: Start, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_KEYS", "one, two")
    gateway = start(sections={"server": {"api_keys_env": "APP_KEYS"}})
    for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}):
        for path in (CHAT, "/v1/models", "/v1/anything"):
            status, error = failed(gateway.send("POST", path, BODY, headers))
            assert (status, error["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        gateway.client("three").chat.completions.create(**BODY)
    gateway.client("two").chat.completions.create(**BODY)
    # the gateway's key is nobody else's business
    assert "authorization" not in teacher.requests[-1].headers
    assert gateway.json("/healthz") == (200, {"status": "ok"})


def test_teacher_key_replaces_the_clients(
    start: Start, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    teacher.api_key = "secret"
    gateway = start(sections={"teacher": {"api_key_env": "TEACHER_KEY"}})
    gateway.client("app").chat.completions.create(**BODY)
    gateway.client("app").models.list()
    assert {r.headers["authorization"] for r in teacher.requests} == {"Bearer secret"}


def test_unknown_endpoints_and_methods(start: Start) -> None:
    gateway = start()
    assert failed(gateway.send("GET", "/nothing"))[0] == 404
    assert failed(gateway.send("GET", "/nothing"))[1]["code"] == "unknown_url"
    for method, path in (("PUT", CHAT), ("POST", "/healthz"), ("PATCH", "/v1/files/1")):
        answer = gateway.send(method, path)
        assert failed(answer)[0] == 405
        assert answer[1]["allow"]


def test_unknown_models_are_the_teachers_to_refuse(start: Start, teacher: FakeOpenAI) -> None:
    teacher.strict_models = True
    gateway = start()
    api = gateway.client()
    for messages in (MESSAGES, [MESSAGES[1]]):
        with pytest.raises(openai.NotFoundError) as caught:
            api.chat.completions.create(model="gpt-none", messages=messages)
        assert caught.value.code == "model_not_found"


def test_teacher_errors_of_any_shape_become_the_envelope(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    for raw, message in (
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "message": "too long", "code": 400}', "too long"),
        (b'{"error": "plain"}', "plain"),
        (b"<html>oops</html>", "The upstream answered with status 418."),
        (b"", "The upstream answered with status 418."),
    ):
        teacher.reply = Reply(status=418, raw=raw)
        for path in (CHAT, "/v1/embeddings"):
            for stream in (False, True):
                status, error = failed(gateway.send("POST", path, BODY | {"stream": stream}))
                assert (status, error["message"]) == (418, message)


def test_teacher_envelopes_are_passed_on_as_they_are(start: Start, teacher: FakeOpenAI) -> None:
    theirs = {"message": "No.", "type": "odd_type", "param": "p", "code": "odd_code"}
    teacher.reply = Reply(status=422, error={"error": theirs})
    status, error = failed(start().send("POST", CHAT, BODY))
    assert (status, error) == (422, theirs)


def test_rate_limits_reach_the_clients_own_retries(start: Start, teacher: FakeOpenAI) -> None:
    teacher.reply = Reply(
        status=429, headers={"retry-after": "17", "x-ratelimit-limit-tokens": "9"}
    )
    gateway = start(sections={"teacher": {"retries": 2}})
    status, headers, _ = answer = gateway.send("POST", CHAT, BODY)
    assert failed(answer)[0] == status == 429
    assert headers["retry-after"] == "17"
    assert headers["x-ratelimit-limit-tokens"] == "9"
    assert "x-should-retry" not in headers
    # a pause that long is the client's to wait
    assert len(teacher.chats) == 1


def test_mid_stream_errors_are_events_and_never_a_clean_end(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    for reply, message in (
        (Reply(text="one two three", cut_after=2), "The teacher's answer broke off."),
        (Reply(text="one two", stream_error={"message": "overloaded", "code": "x"}), "overloaded"),
    ):
        teacher.reply = reply
        _, _, raw = gateway.send("POST", CHAT, BODY | {"stream": True})
        *_, last = [line for line in raw.split(b"\n\n") if line]
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"] == message
        assert b"one" in raw and b"[DONE]" not in raw
        with pytest.raises(openai.APIError, match=message):
            list(gateway.client().chat.completions.create(**BODY, stream=True))
    assert gateway.exchanges() == []
    assert {row.status for row in gateway.ledger(4)} == {502}


def test_unclaimed_answers_that_break_never_end_cleanly(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    unclaimed = {"model": "gpt-small", "messages": [MESSAGES[1]]}
    teacher.reply = Reply(text="one two three", cut_after=2)
    _, _, raw = gateway.send("POST", CHAT, unclaimed | {"stream": True})
    assert b'"error"' in raw and b"[DONE]" not in raw
    teacher.reply = Reply(text="one two three", cut_after=40)
    with pytest.raises(openai.InternalServerError, match="broke off"):
        gateway.client().chat.completions.create(**unclaimed)
    teacher.reply = Reply(cut_after=10)
    with pytest.raises(openai.APIConnectionError):
        gateway.client().embeddings.create(model="embed", input="hello")


def test_every_error_class_of_the_official_client(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    api = gateway.client()
    for status, kind in (
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ):
        teacher.reply = Reply(status=status)
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                api.chat.completions.create(**BODY, stream=stream)
            assert caught.value.code == "scripted"
            assert caught.value.request_id
