"""The Responses API, as the unmodified official client uses it."""

import json
import threading
from typing import Any

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from openai.types.responses import Response, ResponseStreamEvent
from outage import outage
from pydantic import TypeAdapter
from running_gateway import RunningGateway, wait_until
from small_bundle import UNSURE
from triage import QUESTION, SYSTEM, Start

ASK: dict[str, Any] = {"model": "gpt-large", "instructions": SYSTEM, "input": QUESTION}
URL = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {
    "type": "function",
    "name": "track",
    "description": "Where a parcel is.",
    "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
    "strict": False,
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "track", "arguments": '{"id":"7"}'},
}


def posted(gateway: RunningGateway, body: dict[str, Any], **headers: str) -> tuple[int, Any]:
    status, _, data = gateway.send("POST", URL, body, headers)
    answer = json.loads(data)
    if answer.get("object") == "response":
        Response.model_validate(answer)
    return status, answer


def told(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream; their names and numbers checked."""
    events = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def streamed(gateway: RunningGateway, body: dict[str, Any]) -> list[dict[str, Any]]:
    _, headers, raw = gateway.send("POST", URL, body | {"stream": True})
    assert headers["content-type"].startswith("text/event-stream")
    return told(raw)


def chunks(*deltas: dict[str, Any], finish: str | None = "stop", usage: Any = None) -> Reply:
    """A teacher's stream of just these deltas."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-large"}
    choices = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    if finish is not None:
        choices.append([{"index": 0, "delta": {}, "finish_reason": finish}])
    bodies = [head | {"choices": choice} for choice in choices]
    if usage is not None:
        bodies.append(head | {"choices": [], "usage": usage})
    raw = b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)
    return Reply(raw=raw + b"data: [DONE]\n\n", content_type="text/event-stream")


def test_a_tasks_response_is_answered_by_the_student(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving()
    raw = gateway.client().responses.with_raw_response.create(**ASK)
    assert raw.headers["x-retort-route"] == "student"
    assert raw.headers["x-request-id"].startswith("req-")
    response = raw.parse()
    assert response.output_text == "parcel"
    assert (response.status, response.model, response.object) == (
        "completed",
        "gpt-large",
        "response",
    )
    assert response.usage is not None and response.usage.output_tokens == 1
    assert student.chats[-1]["messages"] == [
        {"role": "system", "content": "Triage."},
        {"role": "user", "content": QUESTION},
    ]
    assert teacher.requests == []
    assert gateway.ledger()[0].route == "student"


@pytest.mark.parametrize(
    "more",
    [
        {"instructions": None, "input": [{"role": role, "content": SYSTEM}, {"role": "user"}]}
        for role in ("system", "developer")
    ],
)
def test_a_system_item_of_the_input_claims_too(
    start: Start, teacher: FakeOpenAI, more: dict[str, Any]
) -> None:
    gateway = start()
    more["input"][1]["content"] = [{"type": "input_text", "text": QUESTION}]
    status, _ = posted(gateway, ASK | more)
    assert status == 200
    row = gateway.exchange()
    assert (row.task, row.prompt, row.teacher_text) == ("triage", QUESTION, "parcel")
    assert row.body == teacher.chats[-1]


def test_the_teacher_is_asked_for_the_same_as_a_chat_completion(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    schema = {"type": "object", "properties": {}}
    status, body = posted(
        gateway,
        ASK
        | {
            "max_output_tokens": 50,
            "temperature": 0,
            "top_p": 0.5,
            "parallel_tool_calls": False,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "name": "track"},
            "text": {
                "verbosity": "low",
                "format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True},
            },
            "reasoning": {"effort": "low"},
            "top_logprobs": 2,
            "metadata": {"a": "b"},
            "user": "u",
            "service_tier": "flex",
            "prompt_cache_key": "k",
            "safety_identifier": "s",
            "truncation": "disabled",
            "include": ["reasoning.encrypted_content"],
        },
    )
    assert status == 200
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert teacher.chats[-1] == {
        "model": "gpt-large",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTION},
        ],
        "max_completion_tokens": 50,
        "temperature": 0,
        "top_p": 0.5,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "track"}},
        "verbosity": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": schema, "strict": True},
        },
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "metadata": {"a": "b"},
        "store": True,
        "user": "u",
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
    }
    # and the response repeats what was asked
    assert body["tools"] == [TOOL]
    assert body["metadata"] == {"a": "b"}
    assert body["reasoning"] == {"effort": "low", "summary": None}
    (part,) = body["output"][0]["content"]
    assert [len(token["top_logprobs"]) for token in part["logprobs"]] == [2]


def test_conversations_with_tools_and_pictures_are_translated_in_order(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    items = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:,", "detail": "low"},
            ],
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "One moment.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "a", "name": "track", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "track", "arguments": '{"id":1}'},
        {"type": "function_call_output", "call_id": "a", "output": "here"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [{"type": "input_text", "text": "there"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "refusal", "refusal": "No."}],
        },
        {"role": "user", "content": "and now?"},
    ]
    assert posted(gateway, ASK | {"input": items})[0] == 200

    def call(name: str, arguments: str) -> dict[str, Any]:
        function = {"name": "track", "arguments": arguments}
        return {"id": name, "type": "function", "function": function}

    assert teacher.chats[-1]["messages"][1:] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "content": "One moment.",
            "tool_calls": [call("a", "{}"), call("b", '{"id":1}')],
        },
        {"role": "tool", "tool_call_id": "a", "content": "here"},
        {"role": "tool", "tool_call_id": "b", "content": "there"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "and now?"},
    ]


def test_a_stream_has_its_events_in_order_and_one_set_of_ids(serving: Start) -> None:
    events = streamed(serving(), ASK)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert first["id"] == last["id"]
    assert last["status"] == "completed"
    assert last["output"] == [events[-2]["item"]]
    item_ids = {event["item_id"] for event in events if "item_id" in event}
    assert item_ids == {last["output"][0]["id"]}
    assert events[2]["item"]["content"] == [] and events[3]["part"]["text"] == ""
    assert events[4]["delta"] == events[5]["text"] == "parcel"
    assert last["usage"]["output_tokens"] == 1


def test_a_streams_response_is_what_it_would_be_whole(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(
        text="one two three",
        usage={
            "prompt_tokens": 9,
            "completion_tokens": 8,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 5},
        },
    )
    whole = posted(gateway, ASK | {"top_logprobs": 1})[1]
    last = streamed(gateway, ASK | {"top_logprobs": 1})[-1]["response"]
    assert whole["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 17,
    }
    for response in (whole, last):
        for name in ("id", "created_at", "completed_at"):
            del response[name]
        response["output"][0].pop("id")
    assert whole == last
    assert whole["output"][0]["content"][0]["text"] == "one two three"
    assert len(whole["output"][0]["content"][0]["logprobs"]) == 3


def test_parallel_tool_calls_are_items_of_their_own_even_if_interleaved(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()

    def piece(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
        call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
        if name is not None:
            call |= {"id": f"call_{index}", "type": "function"}
            call["function"]["name"] = name
        return {"tool_calls": [call]}

    teacher.reply = chunks(
        {"role": "assistant", "content": "Wait."},
        piece(0, "", "track"),
        piece(1, '{"b"', "trace"),
        piece(0, "{}"),
        piece(1, ":2}"),
        finish="tool_calls",
    )
    events = streamed(gateway, ASK | {"tools": [TOOL]})
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert [(c["call_id"], c["name"], c["arguments"]) for c in output[1:]] == [
        ("call_0", "track", "{}"),
        ("call_1", "trace", '{"b":2}'),
    ]
    for index, item in enumerate(output):
        mine = [e for e in events if e.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[0]["item"]["status"] == "in_progress"
        assert mine[-1]["type"] == "response.output_item.done"
        assert mine[-1]["item"] == item
    deltas = [e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert deltas == ['{"b"', "{}", ":2}"]
    # a message ends where tools begin
    kinds = [(e["type"], e.get("output_index")) for e in events]
    done = kinds.index(("response.output_item.done", 0))
    assert done < kinds.index(("response.output_item.added", 1))


def test_the_official_client_runs_a_tool_and_goes_on(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    api = gateway.client()
    teacher.reply = Reply(text=None, finish_reason="tool_calls", message={"tool_calls": [CALL]})
    first = api.responses.create(**ASK, tools=[TOOL])
    (call,) = first.output
    assert call.type == "function_call" and call.arguments == '{"id":"7"}'
    teacher.reply = "it is there"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "depot"}
    second = api.responses.create(
        model="gpt-large",
        instructions=SYSTEM,
        previous_response_id=first.id,
        input=[result],
    )
    assert second.output_text == "it is there"
    assert second.previous_response_id == first.id
    assert teacher.chats[-1]["messages"] == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "depot"},
    ]


def test_refusals_have_parts_and_events_of_their_own(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = chunks({"role": "assistant", "refusal": "I "}, {"refusal": "cannot."})
    events = streamed(gateway, ASK)
    deltas = [event["delta"] for event in events if event["type"] == "response.refusal.delta"]
    assert deltas == ["I ", "cannot."]
    (item,) = events[-1]["response"]["output"]
    assert item["content"] == [{"type": "refusal", "refusal": "I cannot."}]
    teacher.reply = Reply(text=None, message={"refusal": "I cannot."})
    whole = posted(gateway, ASK)[1]
    assert whole["output"][0]["content"] == item["content"]


@pytest.mark.parametrize(
    "finish, reason", [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_cut_answers_are_incomplete_and_say_why(
    start: Start, teacher: FakeOpenAI, finish: str, reason: str
) -> None:
    gateway = start()
    teacher.reply = Reply(text="par", finish_reason=finish)
    event = streamed(gateway, ASK)[-1]
    assert event["type"] == "response.incomplete"
    for response in (posted(gateway, ASK)[1], event["response"]):
        assert response["status"] == response["output"][0]["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": reason}


def test_a_stream_that_breaks_ends_in_failed_and_an_error_event(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    for reply, message in (
        (Reply(text="one two three", cut_after=2), "The teacher's answer broke off."),
        (Reply(text="one two", stream_error={"message": "overloaded"}), "overloaded"),
    ):
        teacher.reply = reply
        events = streamed(gateway, ASK)
        failed, error = events[-2:]
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {"code": "server_error", "message": message}
        assert (error["type"], error["message"]) == ("error", message)
        assert "response.completed" not in {event["type"] for event in events}
        with pytest.raises(openai.APIError, match=message):
            list(gateway.client().responses.create(**ASK, stream=True))


def test_errors_before_the_first_event_are_plain_error_responses(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    teacher.reply = Reply(status=429, headers={"retry-after": "17"})
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            gateway.client().responses.create(**ASK, stream=stream)
        assert caught.value.response.headers["retry-after"] == "17"
        assert caught.value.code == "scripted"


def test_conversations_go_on_from_a_stored_response_without_its_instructions(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    api = gateway.client()
    # also from a stream: the row is there before the last event
    first = list(api.responses.create(**ASK, stream=True))[-1].response
    teacher.reply = "refund"
    second = api.responses.create(
        model="gpt-large", instructions=SYSTEM, input="more", previous_response_id=first.id
    )
    third = api.responses.create(model="gpt-large", input="?", previous_response_id=second.id)
    assert third.output_text == "refund"
    # the third has no instructions, so no task claims it; the teacher cannot know our id
    assert teacher.chats[-1]["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "parcel"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "refund"},
        {"role": "user", "content": "?"},
    ]
    assert [row.task for row in gateway.exchanges()] == ["triage", "triage"]
    assert len({row.group_key for row in gateway.exchanges()}) == 1

    assert api.responses.retrieve(second.id) == second
    with pytest.raises(openai.BadRequestError, match="background"):
        list(api.responses.retrieve(second.id, stream=True))
    items = api.responses.input_items.list(third.id, order="asc", limit=2)
    assert [item.content[0].text for item in items] == [
        QUESTION,
        "parcel",
        "more",
        "refund",
        "?",
    ]
    newest = api.responses.input_items.list(third.id, limit=1)
    assert newest.has_more and newest.data[0].content[0].text == "?"
    with pytest.raises(openai.BadRequestError, match="background"):
        api.responses.cancel(third.id)
    api.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.delete(second.id)
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(**ASK, previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"
    # what came after it stands on its own
    assert api.responses.retrieve(third.id).output_text == "refund"


def test_items_made_here_may_be_referred_to(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    first = posted(gateway, ASK)[1]
    (said,) = first["output"]
    _, _, data = gateway.send("GET", f"{URL}/{first['id']}/input_items")
    (heard,) = json.loads(data)["data"]
    references = [{"type": "item_reference", "id": heard["id"]}, {"id": said["id"]}]
    again = {"role": "user", "content": "sure?"}
    status, _ = posted(gateway, ASK | {"input": [*references, again]})
    assert status == 200
    assert teacher.chats[-1]["messages"][1:] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "parcel"},
        again,
    ]
    gateway.send("DELETE", f"{URL}/{first['id']}")
    status, body = posted(gateway, ASK | {"input": [*references, again]})
    assert (status, body["error"]["param"]) == (404, "input")


def test_stored_responses_are_their_callers_alone(
    start: Start, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_KEYS", "one, two")
    gateway = start(sections={"server": {"api_keys_env": "APP_KEYS"}})
    mine, other = gateway.client("one"), gateway.client("two")
    response = mine.responses.create(**ASK)
    for attempt in (
        lambda: other.responses.retrieve(response.id),
        lambda: other.responses.delete(response.id),
        lambda: other.responses.input_items.list(response.id),
        lambda: other.responses.cancel(response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    with pytest.raises(openai.BadRequestError) as caught:
        other.responses.create(**ASK, previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        other.responses.create(model="gpt-large", input=[{"id": response.output[0].id}])
    assert mine.responses.retrieve(response.id).id == response.id


@pytest.mark.parametrize(
    "more, headers, task",
    [
        ({"store": False}, {}, {}),
        ({}, {"x-retort-no-store": "1"}, {}),
        ({}, {}, {"store_payloads": False}),
    ],
)
def test_nothing_is_kept_where_somebody_said_so(
    start: Start, more: dict[str, Any], headers: dict[str, str], task: dict[str, Any]
) -> None:
    gateway = start(**task)
    status, response = posted(gateway, ASK | more, **headers)
    assert (status, response["store"]) == (200, False)
    assert gateway.send("GET", f"{URL}/{response['id']}")[0] == 404
    assert gateway.exchanges() == []


def test_metadata_of_what_is_not_stored_stays_here(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start(claim={"metadata": {"job": "triage"}})
    labelled = ASK | {"store": False, "metadata": {"job": "triage"}}
    assert posted(gateway, labelled)[0] == 200
    assert teacher.chats[-1]["metadata"] == {"job": "triage"}  # it is what the task is claimed by
    gateway = start()
    assert posted(gateway, labelled)[0] == 200
    assert teacher.chats[-1].keys() == {"model", "messages", "store"}


def test_unclaimed_responses_pass_to_the_teacher_byte_for_byte(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    teacher.reply = Reply(raw=b'{"odd":  1}')
    body = '{"model": "gpt-small",   "input": 7, "background": true, "future": [1.50]}'
    status, headers, data = gateway.send("POST", URL, body)
    assert (status, data) == (200, b'{"odd":  1}')
    assert headers["x-retort-reason"] == "unclaimed"
    assert (teacher.requests[-1].path, teacher.requests[-1].raw) == (URL, body.encode())
    for method, path in (
        ("GET", "/resp_1"),
        ("DELETE", "/resp_1"),
        ("GET", "/resp_1/input_items?limit=3"),
        ("POST", "/resp_1/cancel"),
        ("POST", "/input_tokens"),
    ):
        assert gateway.send(method, URL + path)[0] == 200
        sent = teacher.requests[-1]
        assert (sent.method, sent.path) == (method, (URL + path).partition("?")[0])
    # the teacher's own conversation is the teacher's to continue, whoever claims the task
    posted(gateway, ASK | {"previous_response_id": "resp_1"})
    assert teacher.requests[-1].body["previous_response_id"] == "resp_1"


def test_what_a_chat_completion_cannot_say_goes_to_the_teacher_untouched_or_is_refused(
    start: Start, teacher: FakeOpenAI
) -> None:
    native = start()
    chat_only = start(sections={"teacher": {"apis": []}})
    for more, param in (
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"tool_choice": {"type": "file_search"}, "tools": [TOOL]}, "tool_choice"),
        ({"some_future_field": 1}, "some_future_field"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
    ):
        posted(native, ASK | more)
        assert teacher.requests[-1].path == URL
        assert teacher.requests[-1].body == ASK | more
        status, body = posted(chat_only, ASK | more)
        assert (status, body["error"]["param"]) == (400, param)
        assert body["error"]["code"] == "unsupported_parameter"
    assert native.exchanges() == []


def test_a_teacher_without_this_api_is_asked_by_chat_completions(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start(sections={"teacher": {"apis": []}})
    api = gateway.client()
    unclaimed: dict[str, Any] = {"model": "gpt-small", "input": "hi"}
    teacher.reply = "one two"
    raw = api.responses.with_raw_response.create(**unclaimed)
    assert raw.headers["x-retort-reason"] == "unclaimed"
    assert raw.parse().output_text == "one two"
    with api.responses.stream(**unclaimed) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == "one two"
    assert [r.path for r in teacher.requests] == ["/v1/chat/completions"] * 2
    for reply in (Reply(text="one two", cut_after=1), Reply(text="one", stream_error="x")):
        teacher.reply = reply
        with pytest.raises(openai.APIError):
            list(api.responses.create(**unclaimed, stream=True))
    teacher.reply = chunks({"content": "half"}, finish=None)
    assert streamed(gateway, unclaimed)[-1]["type"] == "error"
    teacher.reply = Reply(text="one two", cut_after=40)
    assert posted(gateway, unclaimed)[0] == 502
    teacher.reply = Reply(raw=b'{"choices": []}')
    assert posted(gateway, unclaimed)[0] == 502
    status, body = posted(gateway, unclaimed | {"previous_response_id": "resp_1"})
    assert (status, body["error"]["code"]) == (400, "previous_response_not_found")
    assert gateway.send("GET", f"{URL}/resp_1")[0] == 404


def test_wrong_types_are_refused_by_name(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    for more, param in (
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": []}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"store": 1}, "store"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"metadata": []}, "metadata"),
    ):
        status, body = posted(gateway, ASK | more)
        assert status == 400
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["param"].startswith(param)
    assert posted(gateway, {"model": "x"})[0] == 200  # unclaimed: the teacher's to refuse
    assert teacher.chats == []


def test_leaving_a_response_stops_the_teacher(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    hold = threading.Event()
    teacher.reply = Reply(text="one two", hold=hold)
    data = json.dumps(ASK | {"stream": True}).encode()
    with gateway.connect() as connection:
        head = f"POST {URL} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        raw = b""
        while b'"delta":"one"' not in raw:
            raw += connection.recv(65536)
    teacher.wait_for(lambda server: server.disconnects == 1)
    hold.set()
    assert gateway.ledger()[0].status == 499


def test_a_doubtful_draft_of_a_response_escalates_like_any_other(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving()
    teacher.reply = "refund"
    student.reply = Reply(text="parcel", logprob=UNSURE)
    for stream in (False, True):
        _, headers, raw = gateway.send("POST", URL, ASK | {"stream": stream})
        assert (headers["x-retort-route"], headers["x-retort-reason"]) == ("teacher", "unsure")
        assert b"refund" in raw and b'"parcel"' not in raw
    rows = gateway.exchanges()
    assert [(row.student_text, row.teacher_text) for row in rows] == [("parcel", "refund")] * 2
    wait_until(lambda: len(gateway.ledger(2)) == 2)


def test_stored_responses_wait_out_an_outage_of_the_database(start: Start) -> None:
    gateway = start()
    response = posted(gateway, ASK)[1]
    with outage(gateway.store, None):
        # answered all the same, and its row spooled
        status, during = posted(gateway, ASK)
        assert status == 200
        for method, path, body in (
            ("GET", f"{URL}/{response['id']}", b""),
            ("DELETE", f"{URL}/{response['id']}", b""),
            ("POST", URL, ASK | {"previous_response_id": response["id"]}),
        ):
            status, _, data = gateway.send(method, path, body)
            assert (status, json.loads(data)["error"]["code"]) == (503, "store_unavailable")
    for each in (response, during):
        path = f"{URL}/{each['id']}"
        wait_until(lambda path=path: gateway.send("GET", path)[0] == 200)


def test_a_body_nested_too_deeply_is_a_bad_request(start: Start) -> None:
    gateway = start()
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    for more in ({"tools": [TOOL | {"parameters": deep}]}, {"metadata": deep}):
        assert posted(gateway, ASK | more)[0] == 400
