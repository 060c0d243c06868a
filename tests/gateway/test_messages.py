"""Anthropic's Messages API, as the unmodified official client uses it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anthropic
import pytest
from anthropic.types import RawMessageStreamEvent
from fake_openai import FakeOpenAI, Reply
from pydantic import TypeAdapter
from running_gateway import RunningGateway
from triage import QUESTION, SYSTEM, Start

ASK: dict[str, Any] = {
    "model": "gpt-large",
    "max_tokens": 64,
    "system": SYSTEM,
    "messages": [{"role": "user", "content": QUESTION}],
}
URL = "/v1/messages"
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
TOOL = {"name": "track", "description": "Where.", "input_schema": {"type": "object"}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "track", "arguments": '{"id":"7"}'},
}

Client = Callable[..., anthropic.Anthropic]


@pytest.fixture
def client() -> Iterator[Client]:
    with ExitStack() as stack:

        def make(gateway: RunningGateway, api_key: str = "app-key") -> anthropic.Anthropic:
            base_url = gateway.url.removesuffix("/v1")
            made = anthropic.Anthropic(
                base_url=base_url, api_key=api_key, max_retries=0, timeout=20
            )
            return stack.enter_context(made)

        yield make


def posted(gateway: RunningGateway, body: dict[str, Any], **headers: str) -> tuple[int, Any]:
    status, _, data = gateway.send("POST", URL, body, headers)
    return status, json.loads(data)


def test_a_tasks_message_is_answered_by_the_student(
    serving: Start, client: Client, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving()
    raw = client(gateway).messages.with_raw_response.create(**ASK)
    assert raw.headers["x-retort-route"] == "student"
    message = raw.parse()
    assert message._request_id == raw.headers["x-request-id"]
    assert message.to_dict() == {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "model": "gpt-large",
        "content": [{"type": "text", "text": "parcel"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": message.usage.to_dict(),
    }
    assert message.usage.output_tokens == 1 and message.usage.input_tokens > 0
    assert student.chats[-1]["messages"][-1] == {"role": "user", "content": QUESTION}
    assert student.chats[-1]["max_tokens"] == 16
    assert teacher.requests == []


def test_the_teacher_is_asked_for_the_same_as_a_chat_completion(
    start: Start, client: Client, teacher: FakeOpenAI
) -> None:
    gateway = start()
    cached = {"type": "ephemeral"}
    client(gateway).messages.create(
        model="gpt-large",
        max_tokens=64,
        system=[{"type": "text", "text": SYSTEM, "cache_control": cached}],
        stop_sequences=["END"],
        # left out of the newest client, sent by older ones
        extra_body={"temperature": 0.5, "top_p": 0.9},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        thinking={"type": "disabled"},
        tools=[TOOL | {"cache_control": cached}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {}}},
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://x.test/i"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "a", "name": "track", "input": {"id": 1}},
                    {"type": "tool_use", "id": "b", "name": "track", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "here"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "is_error": True,
                        "content": [{"type": "text", "text": "lost"}],
                    },
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
    )

    def call(name: str, arguments: str) -> dict[str, Any]:
        function = {"name": "track", "arguments": arguments}
        return {"id": name, "type": "function", "function": function}

    assert teacher.chats[-1] == {
        "model": "gpt-large",
        "max_completion_tokens": 64,
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "service_tier": "default",
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "track",
                    "parameters": {"type": "object"},
                    "description": "Where.",
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {}, "strict": True},
        },
        "messages": [
            {"role": "system", "content": SYSTEM},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                    {"type": "image_url", "image_url": {"url": "https://x.test/i"}},
                ],
            },
            {
                "role": "assistant",
                "content": "One moment.",
                "tool_calls": [call("a", '{"id":1}'), call("b", "{}")],
            },
            {"role": "tool", "tool_call_id": "a", "content": "here"},
            {"role": "tool", "tool_call_id": "b", "content": "Error: lost"},
            {"role": "user", "content": "and now?"},
        ],
    }
    # neither the gateway's key nor Anthropic's headers mean anything to this teacher
    sent = teacher.requests[-1].headers
    assert sent["authorization"] == "Bearer app-key"
    assert not {"x-api-key", "anthropic-version"} & sent.keys()
    assert gateway.exchange().body == teacher.chats[-1]


def test_a_stream_has_its_events_in_order(serving: Start) -> None:
    _, headers, raw = serving().send("POST", URL, ASK | {"stream": True})
    assert headers["content-type"].startswith("text/event-stream")
    events = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        EVENT.validate_python(events[-1])
        assert name == f"event: {events[-1]['type']}"
    start, block_start, delta, block_stop, message_delta, stop = events
    assert start["type"] == "message_start"
    assert start["message"] | {"id": "", "usage": {}} == {
        "id": "",
        "type": "message",
        "role": "assistant",
        "model": "gpt-large",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {},
    }
    assert block_start == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert delta == {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "parcel"},
    }
    assert block_stop == {"type": "content_block_stop", "index": 0}
    assert message_delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert message_delta["usage"]["output_tokens"] == 1
    assert message_delta["usage"]["input_tokens"] > 0
    assert stop == {"type": "message_stop"}


@pytest.mark.parametrize("stream", [False, True])
def test_tools_and_usage_come_back_as_blocks_and_counts(
    start: Start, client: Client, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = start()
    calls = [CALL, {"id": "call_2", "type": "function", "function": {"name": "stop"}}]
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-large"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "Wait."}]
    for index, call in enumerate(calls):
        deltas += [{"tool_calls": [call | {"index": index}]}]
    chunks = [head | {"choices": [{"index": 0, "delta": d}]} for d in deltas]
    chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    chunks.append(head | {"choices": [], "usage": usage})
    raw = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    if stream:
        teacher.reply = Reply(raw=raw + b"data: [DONE]\n\n", content_type="text/event-stream")
        with client(gateway).messages.stream(**ASK, tools=[TOOL]) as events:
            message = events.get_final_message()
    else:
        message_keys = {"tool_calls": calls}
        teacher.reply = Reply(
            text="Wait.", message=message_keys, finish_reason="tool_calls", usage=usage
        )
        message = client(gateway).messages.create(**ASK, tools=[TOOL])
    assert message.stop_reason == "tool_use"
    text, first, second = message.content
    assert (text.type, text.text) == ("text", "Wait.")
    assert (first.id, first.name, first.input) == ("call_1", "track", {"id": "7"})
    assert (second.id, second.name, second.input) == ("call_2", "stop", {})
    assert message.usage.input_tokens == 5
    assert message.usage.cache_read_input_tokens == 4
    assert message.usage.output_tokens == 8


def test_every_end_has_its_stop_reason(start: Start, client: Client, teacher: FakeOpenAI) -> None:
    gateway = start()
    api = client(gateway)
    refusal = {"refusal": "I cannot."}
    for reply, reason in (
        (Reply(), "end_turn"),
        (Reply(finish_reason="length"), "max_tokens"),
        (Reply(finish_reason="content_filter"), "refusal"),
        (Reply(text=None, message=refusal), "refusal"),
    ):
        teacher.reply = reply
        message = api.messages.create(**ASK)
        assert message.stop_reason == reason
    assert message.content[0].text == "I cannot."
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "x"},
        "finish_reason": "stop",
        "stop_reason": "END",
    }
    teacher.reply = Reply(raw=json.dumps({"model": "m", "choices": [choice]}).encode())
    message = api.messages.create(**ASK, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def test_errors_are_anthropics_with_the_right_type(
    start: Start, client: Client, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_KEYS", "one")
    gateway = start(sections={"server": {"api_keys_env": "APP_KEYS", "max_body_bytes": 9000}})
    with pytest.raises(anthropic.AuthenticationError) as caught:
        client(gateway, "two").messages.create(**ASK)
    assert caught.value.type == "authentication_error"
    # the key may stand in either header
    assert posted(gateway, ASK, authorization="Bearer one")[0] == 200
    api = client(gateway, "one")
    for status, kind in (
        (400, "invalid_request_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (418, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ):
        for unclaimed in ({}, {"system": "You are somebody else."}):
            teacher.reply = Reply(status=status, headers={"retry-after": "7"})
            with pytest.raises(anthropic.APIStatusError) as refused:
                api.messages.create(**(ASK | unclaimed))
            error = refused.value
            assert (error.status_code, error.type) == (status, kind)
            assert error.body == {
                "type": "error",
                "error": {"type": kind, "message": f"scripted error {status}"},
                "request_id": error.request_id,
            }
            assert error.response.headers["retry-after"] == "7"
    for body, status, kind in (
        (b"{", 400, "invalid_request_error"),
        (b"x" * 9001, 413, "request_too_large"),
    ):
        got, _, data = gateway.send("POST", URL, body, {"x-api-key": "one"})
        assert (got, json.loads(data)["error"]["type"]) == (status, kind)
    got, _, data = gateway.send("GET", URL, headers={"x-api-key": "one"})
    assert (got, json.loads(data)["type"]) == (405, "error")


def test_streams_that_break_end_in_an_error_event(
    start: Start, client: Client, teacher: FakeOpenAI
) -> None:
    gateway = start()
    for unclaimed in ({}, {"system": "You are somebody else."}):
        for reply, message in (
            (Reply(text="one two three", cut_after=2), "broke off"),
            (Reply(text="one two", stream_error={"message": "overloaded"}), "overloaded"),
        ):
            teacher.reply = reply
            body = ASK | unclaimed
            _, _, raw = gateway.send("POST", URL, body | {"stream": True})
            assert b"message_stop" not in raw and b'"type":"api_error"' in raw
            with pytest.raises(anthropic.APIStatusError, match=message):
                list(client(gateway).messages.create(**body, stream=True))


def test_what_a_chat_completion_cannot_say_is_refused_by_name(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()

    def said(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
        return {"messages": [{"role": role, "content": list(blocks)}]}

    for more, param in (
        ({"top_k": 5}, "top_k"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"some_future_field": 1}, "some_future_field"),
        (said({"type": "document"}), "messages[0].content[0]"),
        (said({"type": "text", "text": "Hm"}, role="assistant"), "messages"),
        (said({"type": "image", "source": {"type": "file"}}), "messages[0].content[0].source"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        (said({"type": "text"}), "messages[0].content[0].text"),
        (said({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"temperature": "hot"}, "temperature"),
        ({"system": 7}, "system"),
        ({"stream": "yes"}, "stream"),
    ):
        status, body = posted(gateway, ASK | more)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        assert body["error"]["message"].startswith(f"'{param}'")
    assert teacher.requests == []


def test_a_teacher_with_this_api_gets_unclaimed_and_untranslatable_messages_untouched(
    start: Start, client: Client, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    gateway = start(sections={"teacher": {"apis": ["messages"], "api_key_env": "TEACHER_KEY"}})
    teacher.reply = Reply(raw=b'{"odd":  1}')
    unclaimed = '{"model": "claude",   "max_tokens": "many", "future": [1.50]}'
    headers = {"x-api-key": "app-key", "anthropic-version": "2023-06-01"}
    for body in (unclaimed, json.dumps(ASK | {"top_k": 5})):
        status, _, data = gateway.send("POST", URL, body, headers)
        assert (status, data) == (200, b'{"odd":  1}')
        sent = teacher.requests[-1]
        assert (sent.path, sent.raw) == (URL, body.encode())
        # the key goes where the client's was
        assert sent.headers["x-api-key"] == "secret"
        assert sent.headers["anthropic-version"] == "2023-06-01"
        assert "authorization" not in sent.headers
    gateway.send("POST", f"{URL}/count_tokens", unclaimed, headers)
    assert teacher.requests[-1].path == f"{URL}/count_tokens"
    gateway.send("POST", URL, ASK, headers)
    assert teacher.requests[-1].path == "/v1/chat/completions"
    assert teacher.requests[-1].headers["authorization"] == "Bearer secret"


def test_counted_tokens_are_a_marked_estimate(start: Start, client: Client) -> None:
    api = client(start())
    text = "The parcel went to the wrong depot. " * 40
    ask: dict[str, Any] = {"model": "gpt-large", "messages": [{"role": "user", "content": text}]}
    raw = api.messages.with_raw_response.count_tokens(**ask)
    assert raw.headers["x-retort-estimated"] == "true"
    words = len(text.split())
    assert words < raw.parse().input_tokens < 2 * words
    more = api.messages.count_tokens(**ask, tools=[TOOL], system="Be brief.")
    assert more.input_tokens > raw.parse().input_tokens


def test_leaving_a_message_stops_the_teacher(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    hold = threading.Event()
    teacher.reply = Reply(text="one two", hold=hold)
    data = json.dumps(ASK | {"stream": True}).encode()
    with gateway.connect() as connection:
        head = f"POST {URL} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        raw = b""
        while b'"text":"one"' not in raw:
            raw += connection.recv(65536)
    teacher.wait_for(lambda server: server.disconnects == 1)
    hold.set()
    assert gateway.ledger()[0].status == 499
