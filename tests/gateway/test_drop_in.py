"""The unmodified official client works against the gateway, only its base_url changed."""

import json

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from triage import BODY, MESSAGES, Promote, Start, live_bundle


def test_answers_come_from_the_teacher_until_a_student_is_promoted(
    start: Start, teacher: FakeOpenAI, promote: Promote
) -> None:
    gateway = start()
    api = gateway.client()
    raw = api.chat.completions.with_raw_response.create(**BODY)
    assert raw.parse().choices[0].message.content == "parcel"
    assert raw.headers["x-retort-route"] == "teacher"
    assert raw.headers["x-retort-reason"] == "no_bundle"
    assert raw.headers["x-request-id"] == gateway.exchange().id

    bundle = promote(gateway)
    raw = api.chat.completions.with_raw_response.create(**BODY)
    assert raw.parse().choices[0].message.content == "parcel"
    assert raw.headers["x-retort-route"] == "student"
    assert raw.headers["x-retort-reason"] == "trusted"
    assert raw.headers["x-retort-bundle"] == bundle
    assert len(teacher.chats) == 1


def test_student_answer_looks_as_if_the_named_model_had_answered(
    serving: Start,
) -> None:
    gateway = serving()
    status, _, data = gateway.send("POST", "/v1/chat/completions", BODY)
    answer = json.loads(data)
    (choice,) = answer["choices"]
    assert status == 200
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["model"] == "gpt-large"
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "parcel", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_student_stream_looks_as_if_the_named_model_had_answered(
    serving: Start,
    student: FakeOpenAI,
) -> None:
    gateway = serving()
    chunks = list(gateway.client().chat.completions.create(**BODY, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "parcel"
    assert {chunk.model for chunk in chunks} == {"gpt-large"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)
    assert student.chats[-1]["stream"] is True

    _, _, raw = gateway.send("POST", "/v1/chat/completions", BODY | {"stream": True})
    assert raw.count(b"data: [DONE]\n\n") == 1
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b"usage" not in raw and b"token_ids" not in raw and b"prompt_token_ids" not in raw


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_usage_comes_in_a_last_chunk_only_when_asked_for(serving: Start, who: str) -> None:
    gateway = serving()
    api = gateway.client()
    forced = {"x-retort-route": who}
    plain = list(api.chat.completions.create(**BODY, stream=True, extra_headers=forced))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    asked = list(
        api.chat.completions.create(
            **BODY, stream=True, stream_options={"include_usage": True}, extra_headers=forced
        )
    )
    assert asked[-1].choices == []
    assert asked[-1].usage is not None and asked[-1].usage.completion_tokens == 1
    assert all(chunk.usage is None for chunk in asked[:-1])


def test_log_probabilities_are_shown_to_who_asked_and_no_more_than_that(
    serving: Start, student: FakeOpenAI
) -> None:
    gateway = serving()
    api = gateway.client()
    answer = api.chat.completions.create(**BODY, logprobs=True, top_logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [1]
    assert student.chats[-1]["top_logprobs"] == 5
    chunks = list(api.chat.completions.create(**BODY, logprobs=True, stream=True))
    shown = [chunk.choices[0].logprobs for chunk in chunks]
    assert sum(1 for part in shown if part is not None) == 1


def test_student_is_asked_in_its_own_words(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving()
    bundle = live_bundle(gateway)
    gateway.client().chat.completions.create(
        **BODY, temperature=0.9, max_tokens=7, stop=["\n"], user="someone"
    )
    assert student.chats[-1] == {
        "model": bundle,
        "messages": [{"role": "system", "content": "Triage."}, MESSAGES[1]],
        "temperature": 0,
        "max_tokens": 7,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 5,
    }


def test_teacher_gets_the_bytes_the_client_sent(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    odd = (
        '{"model":"gpt-large",  "messages":'
        + json.dumps(MESSAGES)
        + ', "reasoning_effort":"low", "some_future_field": {"a": [1.50, null]}}'
    )
    headers = {"openai-organization": "org-1", "authorization": "Bearer app-key"}
    status, _, _ = gateway.send("POST", "/v1/chat/completions", odd, headers)
    assert status == 200
    assert teacher.requests[-1].raw == odd.encode()
    assert teacher.requests[-1].headers["openai-organization"] == "org-1"
    assert teacher.requests[-1].headers["authorization"] == "Bearer app-key"
    assert not any(name.startswith("x-retort") for name in teacher.requests[-1].headers)


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_student_cannot_do_goes_to_the_teacher_whole(
    serving: Start, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    for more in (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"n": 2},
        {"messages": [MESSAGES[0], {"role": "user", "content": picture}]},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "par"}]},
        {"modalities": ["text", "audio"]},
    ):
        body = BODY | more | {"stream": stream}
        _, headers, _ = gateway.send("POST", "/v1/chat/completions", body)
        assert headers["x-retort-reason"] == "unsupported"
        sent = dict(teacher.chats[-1])
        sent.pop("stream_options", None)
        assert sent == body


def test_several_choices_of_a_stream_all_arrive(start: Start) -> None:
    gateway = start()
    chunks = list(gateway.client().chat.completions.create(**BODY, n=3, stream=True))
    ends = [c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason]
    assert ends == [0, 1, 2]
    assert gateway.exchange().teacher_text == "parcel"


def test_models_are_the_teachers_and_the_tasks(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    api = gateway.client()
    assert {model.id for model in api.models.list()} == {"gpt-large", "gpt-small", "triage"}
    assert api.models.retrieve("triage").owned_by == "retort"
    assert api.models.retrieve("gpt-small").id == "gpt-small"
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"
    teacher.stop()
    assert {model.id for model in api.models.list()} == {"triage"}


def test_naming_the_task_as_model_claims_the_request(
    start: Start, teacher: FakeOpenAI, promote: Promote
) -> None:
    gateway = start(sections={"teacher": {"model": "gpt-large"}})
    api = gateway.client()
    unlike = {"model": "triage", "messages": [MESSAGES[1]]}
    api.chat.completions.create(**unlike)
    assert teacher.chats[-1] == unlike | {"model": "gpt-large"}
    assert gateway.exchange().task == "triage"
    promote(gateway)
    assert api.chat.completions.create(**unlike).model == "triage"
    assert len(teacher.chats) == 1


def test_unclaimed_traffic_passes_through_byte_for_byte(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(raw=b'{"weird":  1}', headers={"x-upstream": "kept"})
    body = '{"model": "gpt-small",   "input": "hi", "unknown": [1, 2.0]}'
    status, headers, data = gateway.send(
        "POST", "/v1/embeddings?beta=1", body, {"accept-encoding": "gzip"}
    )
    assert (status, data) == (200, b'{"weird":  1}')
    assert headers["x-upstream"] == "kept"
    assert headers["x-retort-reason"] == "unclaimed"
    sent = teacher.requests[-1]
    assert (sent.raw, sent.query) == (body.encode(), "beta=1")
    assert sent.headers["accept-encoding"] == "gzip"

    teacher.reply = Reply(text="one two three")
    unclaimed = {"model": "gpt-small", "messages": [MESSAGES[1]], "stream": True}
    chunks = list(gateway.client().chat.completions.create(**unclaimed))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one two three"
    assert teacher.chats[-1] == unclaimed
    assert gateway.exchanges() == []


def test_compressed_answers_pass_through_as_they_are(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    packed = b"\x1f\x8b not really gzip"
    teacher.reply = Reply(raw=packed, headers={"content-encoding": "gzip"})
    _, headers, data = gateway.send("GET", "/v1/files", headers={"accept-encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    assert data == packed


def test_headers_of_who_answered_are_passed_on(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(
        headers={
            "x-ratelimit-remaining-requests": "7",
            "openai-processing-ms": "12",
            "x-request-id": "theirs",
            "set-cookie": "a=b",
        }
    )
    for stream in (False, True):
        _, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY | {"stream": stream})
        assert headers["x-ratelimit-remaining-requests"] == "7"
        assert headers["openai-processing-ms"] == "12"
        assert headers["x-request-id"].startswith("req-")
        assert "set-cookie" not in headers


def test_route_can_be_forced(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving()
    for who in ("teacher", "student"):
        _, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY, {"x-retort-route": who})
        assert (headers["x-retort-route"], headers["x-retort-reason"]) == (who, "forced")
    assert len(teacher.chats) == 1
