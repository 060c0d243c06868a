"""A request that is too long for the student is the teacher's, and nobody's failure."""

from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import wait_until
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"
#: what vLLM 0.32 says (vllm/renderers/params.py)
TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 2048 tokens. However, you requested 16 "
        "output tokens and your prompt contains at least 2033 input tokens, for a total of at "
        "least 2049 tokens.",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }
}


def saying(text: str, **more: Any) -> dict[str, Any]:
    messages = [MESSAGES[0], {"role": "user", "content": text}]
    return {"model": "gpt-large", "messages": messages, **more}


def test_what_cannot_fit_is_never_sent_to_the_student(serving: Start, student: FakeOpenAI) -> None:
    student.max_model_len = 100
    gateway = serving()
    probes = len(student.chats)
    # 84 tokens are left for the prompt; no text of this length has as few
    for text in ("where is my parcel " * 60, "wo ist mein Päckchen " * 60):
        _, headers, _ = gateway.send("POST", CHAT, saying(text))
        assert (headers["x-retort-route"], headers["x-retort-reason"]) == ("teacher", "unsupported")
    assert len(student.chats) == probes
    # what might fit is asked: the server knows best
    assert gateway.send("POST", CHAT, BODY)[1]["x-retort-route"] == "student"


def test_room_for_the_answer_is_part_of_it(serving: Start, student: FakeOpenAI) -> None:
    student.max_model_len = 17
    gateway = serving()
    text = "where is my parcel, thanks"
    assert gateway.send("POST", CHAT, saying(text))[1]["x-retort-reason"] == "unsupported"
    _, headers, _ = gateway.send("POST", CHAT, saying(text, max_tokens=4))
    assert headers["x-retort-reason"] == "trusted"


def test_only_what_the_student_would_see_counts(serving: Start, student: FakeOpenAI) -> None:
    student.max_model_len = 100
    gateway = serving()
    # the application's own long prompt is not sent to the student
    body = BODY | {"metadata": {"note": "x" * 500}, "seed": 1}
    assert len(str(body)) > 600
    assert gateway.send("POST", CHAT, body)[1]["x-retort-route"] == "student"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_the_server_finds_too_long_is_unsupported_and_no_failure(
    serving: Start, student: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    student.reply = Reply(status=400, error=TOO_LONG)
    for number in range(8):
        body = BODY | {"stream": stream, "user": str(number)}
        status, headers, data = gateway.send("POST", CHAT, body)
        assert (status, headers["x-retort-reason"]) == (200, "unsupported")
        assert b"parcel" in data
    assert gateway.json("/readyz")[1]["student"] == "up"
    # any other refusal is the student's error
    student.reply = Reply(status=400)
    assert gateway.send("POST", CHAT, BODY)[1]["x-retort-reason"] == "student_error"


def test_the_longest_replica_is_what_counts(
    serving: Start, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    student.max_model_len, other_student.max_model_len = 100, 4000
    gateway = serving(sections={"student": {"base_url": [student.url, other_student.url]}})
    wait_until(lambda: gateway.json("/readyz")[1]["problems"] == {})
    body = saying("where is my parcel " * 60)
    _, headers, _ = gateway.send("POST", CHAT, body, {"x-retort-route": "student"})
    assert headers["x-retort-route"] == "student"
