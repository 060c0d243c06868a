"""Log lines are JSON with fields, and hold no text of anybody."""

import json
import logging

import pytest
from fake_openai import FakeOpenAI, Reply
from triage import BODY, QUESTION, Start

from gateway.logs import JsonLines


def test_a_line_is_one_json_object_with_its_fields() -> None:
    record = logging.makeLogRecord(
        {"name": "gateway.x", "levelname": "INFO", "msg": "answered", "request_id": "req-1"}
    )
    line = json.loads(JsonLines().format(record))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "gateway.x",
        "message": "answered",
        "request_id": "req-1",
    }


def test_a_traceback_stays_within_its_line() -> None:
    try:
        raise ValueError("oops")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.makeLogRecord({"msg": "failed", "exc_info": info})
    text = JsonLines().format(record)
    assert "\n" not in text
    assert "ValueError: oops" in json.loads(text)["traceback"]


def test_no_prompt_and_no_answer_is_ever_logged(
    serving: Start,
    student: FakeOpenAI,
    teacher: FakeOpenAI,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = serving()
    teacher.reply = "teachersword"
    for reply in ("parcel", Reply(text="studentsword"), Reply(raw=b"rawsword"), Reply(status=500)):
        student.reply = reply
        for stream in (False, True):
            gateway.send("POST", "/v1/chat/completions", BODY | {"stream": stream})
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any('"answered"' in line and '"reason"' in line for line in lines)
    for word in (QUESTION, "teachersword", "studentsword", "rawsword"):
        assert not any(word in line for line in lines)
