"""What the OpenAI API promises beside a plain text answer, with the unmodified official client:
every test is named by the promise. Fields nobody here knows arrive as they were sent."""

import base64
import json
import struct
from typing import Any

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from small_bundle import SURE
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"
#: a call with every parameter there is (and one that is not there yet)
EVERYTHING: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "alloy"},
    "frequency_penalty": -2.0,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 9,
    "metadata": {"run": "7"},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "par"},
    "presence_penalty": 1.5,
    "prompt_cache_key": "k",
    "reasoning_effort": "minimal",
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "s", "strict": True, "schema": {"type": "object"}},
    },
    "safety_identifier": "s",
    "seed": -9007199254740991,
    "service_tier": "priority",
    "some_future_field": {"deep": [1.50, None, "\u00e9"]},
    "stop": ["\n", "END"],
    "store": True,
    "temperature": 0,
    "tool_choice": "auto",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}],
    "top_logprobs": 0,
    "top_p": 0.1,
    "user": "someone",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-large"}
    return head | {"choices": [choice]} | more


def stream_of(*chunks: dict[str, Any]) -> Reply:
    raw = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks)
    return Reply(raw=raw + b"data: [DONE]\n\n", content_type="text/event-stream")


def whole(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": None, "refusal": None} | message
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-large"}
    return head | {"choices": [choice]} | more


def raw_of(answer: dict[str, Any]) -> Reply:
    return Reply(raw=json.dumps(answer).encode())


@pytest.mark.parametrize("claimed", [True, False])
def test_every_parameter_reaches_the_teacher_as_it_was_sent(
    start: Start, teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = start()
    body = BODY | EVERYTHING | ({} if claimed else {"messages": [MESSAGES[1]]})
    sent = json.dumps(body, indent=1).encode()
    assert gateway.send("POST", CHAT, sent)[0] == 200
    assert teacher.requests[-1].raw == sent
    options = {"stream": True, "stream_options": {"include_usage": True, "future": 1}}
    sent = json.dumps(body | options, indent=1).encode()
    assert gateway.send("POST", CHAT, sent)[0] == 200
    assert teacher.requests[-1].raw == sent


@pytest.mark.parametrize("claimed", [True, False])
def test_every_field_of_an_answer_reaches_the_client_as_it_was_sent(
    start: Start, teacher: FakeOpenAI, claimed: bool
) -> None:
    gateway = start()
    body = BODY if claimed else BODY | {"messages": [MESSAGES[1]]}
    answer = whole(
        {"content": "parcel", "reasoning_content": "hm", "annotations": [], "future": 1.50},
        service_tier="default",
        system_fingerprint="fp",
        usage={
            "prompt_tokens": 5,
            "completion_tokens": 4,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2, "future_tokens": 1},
        },
        future={"a": [None]},
    )
    raw = json.dumps(answer, indent=1).encode()
    teacher.reply = Reply(raw=raw)
    assert gateway.send("POST", CHAT, body)[2] == raw

    last = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-large"}
    reply = teacher.reply = stream_of(
        chunk({"role": "assistant", "content": "", "refusal": None}, usage=None, future=1),
        chunk({"reasoning_content": "hm"}, usage=None, obfuscation="x1"),
        chunk({"content": "parcel"}, usage=None, service_tier="default"),
        chunk({}, "stop", usage=None, system_fingerprint="fp"),
        last | {"choices": [], "usage": answer["usage"]},
    )
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    assert gateway.send("POST", CHAT, streamed)[2] == reply.raw


def test_parallel_tool_calls_arrive_whole_and_piece_by_piece(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    calls = [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": "f", "arguments": f'{{"n":{n}}}'},
        }
        for n in range(2)
    ]
    tools = EVERYTHING["tools"]
    teacher.reply = raw_of(whole({"tool_calls": calls}, "tool_calls"))
    answer = gateway.client().chat.completions.create(**BODY, tools=tools).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert [call.to_dict() for call in answer.message.tool_calls or ()] == calls

    pieces = [{"role": "assistant", "content": None}]
    for index, call in enumerate(calls):
        first = call | {"index": index, "function": {"name": "f", "arguments": ""}}
        rest = {"index": index, "function": {"arguments": call["function"]["arguments"]}}
        pieces += [{"tool_calls": [first]}, {"tool_calls": [rest]}]
    teacher.reply = stream_of(*(chunk(piece) for piece in pieces), chunk({}, "tool_calls"))
    deltas = []
    for each in gateway.client().chat.completions.create(**BODY, tools=tools, stream=True):
        deltas += [call.to_dict() for call in each.choices[0].delta.tool_calls or ()]
    assert deltas == [call for piece in pieces for call in piece.get("tool_calls", ())]
    assert {row.reason for row in gateway.exchanges()} == {"no_bundle"}


def test_tool_results_and_developer_messages_are_forwarded(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    messages = [
        {"role": "developer", "content": MESSAGES[0]["content"]},
        MESSAGES[1],
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "found"},
    ]
    gateway.client().chat.completions.create(model="gpt-large", messages=messages)
    assert teacher.chats[-1]["messages"] == messages
    # the developer's prompt claims as a system prompt does
    assert gateway.exchange().task == "triage"


def test_pictures_sound_and_files_are_forwarded(serving: Start, teacher: FakeOpenAI) -> None:
    gateway = serving()
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,"}},
    ]
    body = BODY | {"messages": [MESSAGES[0], {"role": "user", "content": parts}]}
    _, headers, _ = gateway.send("POST", CHAT, body)
    assert headers["x-retort-reason"] == "unsupported"
    assert teacher.chats[-1] == body


def test_refusals_arrive_and_are_no_answer_to_learn_from(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    api = gateway.client()
    teacher.reply = raw_of(whole({"refusal": "I cannot."}))
    assert api.chat.completions.create(**BODY).choices[0].message.refusal == "I cannot."
    teacher.reply = stream_of(
        chunk({"role": "assistant", "refusal": "I "}), chunk({"refusal": "cannot."}, "stop")
    )
    said = [c.choices[0].delta.refusal for c in api.chat.completions.create(**BODY, stream=True)]
    assert said == ["I ", "cannot."]
    assert [row.teacher_text for row in gateway.exchanges()] == [None, None]


def test_a_json_schema_is_kept_by_whoever_answers(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving()
    wanted = EVERYTHING["response_format"]
    teacher.reply = '{"kind": "parcel"}'
    answer = gateway.client().chat.completions.with_raw_response.create(
        **BODY, response_format=wanted
    )
    # the student's draft is a word, and no JSON
    assert answer.headers["x-retort-reason"] == "invalid"
    assert json.loads(answer.parse().choices[0].message.content or "") == {"kind": "parcel"}
    assert teacher.chats[-1]["response_format"] == wanted


def test_keys_a_student_server_leaves_empty_are_left_out(
    serving: Start, student: FakeOpenAI
) -> None:
    gateway = serving()
    student.reply = Reply(logprob=SURE, text="parcel", message={"tool_calls": []})
    _, headers, data = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-route"] == "student"
    message = json.loads(data)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "parcel", "refusal": None}
    _, headers, data = gateway.send("POST", CHAT, BODY | {"stream": True})
    assert headers["x-retort-route"] == "student"
    assert b"tool_calls" not in data


def test_fields_of_models_arrive_as_they_are(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.model_fields = {"shutdown_date": "2027-01-06", "future": [1]}
    for model in (
        gateway.json("/v1/models")[1]["data"][0],
        gateway.json("/v1/models/gpt-large")[1],
    ):
        assert model["id"] == "gpt-large"
        assert (model["shutdown_date"], model["future"]) == ("2027-01-06", [1])


def test_log_probabilities_of_the_teacher_arrive_in_streams_too(start: Start) -> None:
    gateway = start()
    asked = gateway.client().chat.completions.create(
        **BODY, logprobs=True, top_logprobs=2, stream=True
    )
    tokens = [c.choices[0].logprobs.content for c in asked if c.choices[0].logprobs]
    assert [len(token.top_logprobs) for (token,) in tokens] == [2]


def test_all_choices_of_an_answer_arrive_with_their_index(start: Start) -> None:
    answer = start().client().chat.completions.create(**BODY, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_every_response_has_a_request_id(
    serving: Start, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_KEYS", "one")
    gateway = serving(sections={"server": {"api_keys_env": "APP_KEYS"}})
    key = {"authorization": "Bearer one"}
    seen = []
    for method, path, body, status in (
        ("POST", CHAT, BODY, 200),
        ("POST", CHAT, BODY | {"stream": True}, 200),
        ("POST", CHAT, BODY | {"messages": [MESSAGES[1]]}, 200),
        ("POST", CHAT, b"{", 400),
        ("POST", "/v1/embeddings", {"input": "x"}, 200),
        ("POST", "/v1/responses", {"model": "m", "input": "x"}, 200),
        ("POST", "/v1/messages", {"model": "m"}, 400),
        ("GET", "/v1/models", b"", 200),
        ("PUT", "/v1/models", b"", 405),
        ("GET", "/nothing", b"", 404),
        ("GET", "/healthz", b"", 200),
    ):
        got, headers, _ = gateway.send(method, path, body, key)
        assert got == status
        seen.append(headers["x-request-id"])
    seen.append(gateway.send("GET", "/v1/models")[1]["x-request-id"])
    assert len(set(seen)) == len(seen)
    assert all(name.startswith("req-") for name in seen)


def test_embeddings_come_in_base64_as_the_client_asks_and_decode(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    packed = base64.b64encode(struct.pack("<3f", 0.5, -1.0, 2.0)).decode()
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    data = [{"object": "embedding", "index": 0, "embedding": packed}]
    answer = {"object": "list", "model": "e", "data": data, "usage": usage}
    teacher.reply = raw_of(answer)
    got = gateway.client().embeddings.create(model="e", input="parcel")
    assert got.data[0].embedding == [0.5, -1.0, 2.0]
    assert teacher.requests[-1].body["encoding_format"] == "base64"
    teacher.reply = raw_of(answer | {"data": [data[0] | {"embedding": [0.25]}]})
    floats = gateway.client().embeddings.create(model="e", input=["a"], encoding_format="float")
    assert floats.data[0].embedding == [0.25]


def test_legacy_completions_are_the_teachers_even_where_they_name_a_task(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start(sections={"teacher": {"model": "gpt-large"}})
    api = gateway.client()
    choice = {"index": 0, "text": "parcel", "logprobs": None, "finish_reason": "stop"}
    answer = {"id": "cmpl", "object": "text_completion", "created": 1, "model": "i"}
    teacher.reply = raw_of(answer | {"choices": [choice]})
    for model in ("instruct", "triage"):
        raw = api.completions.with_raw_response.create(model=model, prompt="where", echo=True)
        assert raw.headers["x-retort-reason"] == "unclaimed"
        assert raw.parse().choices[0].text == "parcel"
        assert teacher.requests[-1].body == {"model": model, "prompt": "where", "echo": True}
    parts = [answer | {"choices": [choice | {"text": t}]} for t in ("par", "cel")]
    teacher.reply = stream_of(*parts)
    got = api.completions.create(model="instruct", prompt="where", stream=True)
    assert [part.choices[0].text for part in got] == ["par", "cel"]


def test_moderation_images_sound_and_files_pass_through_whole(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    api = gateway.client()
    teacher.reply = raw_of({"id": "m", "model": "o", "results": []})
    assert api.moderations.create(input="x").id == "m"
    teacher.reply = raw_of({"created": 1, "data": [{"b64_json": "QUJD"}]})
    assert api.images.generate(prompt="x").data[0].b64_json == "QUJD"
    sound = bytes(range(256)) * 40
    teacher.reply = Reply(raw=sound, content_type="audio/mpeg")
    assert api.audio.speech.create(model="tts", voice="alloy", input="x").content == sound
    assert api.files.content("file-1").content == sound
    teacher.reply = raw_of({"text": "hello"})
    text = api.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound)).text
    assert text == "hello" and sound in teacher.requests[-1].raw
    assert teacher.requests[-1].headers["content-type"].startswith("multipart/form-data; boundary")
    file = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a.jsonl"}
    teacher.reply = raw_of(file | {"purpose": "batch", "status": "processed"})
    assert api.files.create(file=("a.jsonl", b"{}\n"), purpose="batch").id == "file-1"
    assert b'filename="a.jsonl"' in teacher.requests[-1].raw
    teacher.reply = raw_of({"id": "file-1", "object": "file", "deleted": True})
    assert api.files.delete("file-1").deleted
    assert (teacher.requests[-1].method, teacher.requests[-1].path) == (
        "DELETE",
        "/v1/files/file-1",
    )


def test_errors_of_every_endpoint_are_in_the_envelope(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    api = gateway.client()
    for call in (
        lambda: api.embeddings.create(model="e", input="x"),
        lambda: api.completions.create(model="i", prompt="x"),
        lambda: api.moderations.create(input="x"),
        lambda: api.images.generate(prompt="x"),
        lambda: api.audio.speech.create(model="t", voice="alloy", input="x"),
        lambda: api.files.list(),
        lambda: api.responses.create(model="m", input="x"),
    ):
        for raw in (None, b'{"detail": "scripted error 429"}'):
            teacher.reply = Reply(status=429, raw=raw, headers={"retry-after": "9"})
            with pytest.raises(openai.RateLimitError) as caught:
                call()
            assert caught.value.body is not None
            assert caught.value.body.keys() == {"message", "type", "param", "code"}
            assert caught.value.body["message"] == "scripted error 429"
            assert caught.value.response.headers["retry-after"] == "9"
    teacher.stop()
    with pytest.raises(openai.InternalServerError) as down:
        api.embeddings.create(model="e", input="x")
    assert down.value.code == "upstream_unavailable"


@pytest.mark.parametrize("path", ["completions", "embeddings", "responses"])
def test_leaving_stops_the_teacher_on_every_endpoint(
    start: Start, teacher: FakeOpenAI, path: str
) -> None:
    gateway = start()
    teacher.reply = Reply(delay_s=20)
    data = b'{"model": "m", "input": "x", "prompt": "x"}'
    with gateway.connect() as connection:
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        teacher.wait_for(lambda server: server.in_flight > 0)
    teacher.wait_for(lambda server: server.disconnects == 1)
