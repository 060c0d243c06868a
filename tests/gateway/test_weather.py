"""All weathers at once: teachers and replicas that fail in every way, clients that leave. Nobody
gets another's words, or half an answer that looks whole; nothing is left behind."""

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, read_response, wait_until
from small_bundle import SURE, UNSURE
from triage import BODY, MESSAGES, Start

CHAT = "/v1/chat/completions"
REQUESTS = 120


def weather(who: str, seed: int) -> Any:
    """Answers name who asked and who answered."""
    dice = random.Random(seed)

    def reply(body: dict[str, Any]) -> Reply:
        if body.get("max_tokens") == 1:
            return Reply(text="ping")
        name = body["messages"][-1]["content"].split()[-1]
        words = [f"{who}-{name}-{part}" for part in range(4)]
        text = " ".join(words)
        return dice.choice(
            (
                Reply(text=text, logprob=dice.choice((SURE, UNSURE))),
                Reply(text=text, chunk_delay_s=0.02),
                Reply(status=dice.choice((429, 500, 503)), headers={"retry-after-ms": "5"}),
                Reply(text=text, cut_after=dice.choice((0, 1, 30))),
                Reply(text=text, stream_error={"message": "no more"}),
                Reply(text=text, delay_s=dice.choice((0.05, 1.0))),
                Reply(raw=b"data: nonsense\n\n", content_type="text/event-stream"),
                Reply(raw=b"nonsense" if body.get("stream") else b"[]"),
            )
        )

    return reply


def whole(name: str, words: list[str]) -> bool:
    return any(
        words == [f"{who}-{name}-{part}" for part in range(4)]
        for who in ("first", "next", "one", "other")
    )


def visit(gateway: RunningGateway, number: int) -> str:
    """Send one request and judge what comes back."""
    dice = random.Random(number)
    stream, claimed, leaves = dice.random() < 0.5, dice.random() < 0.6, dice.random() < 0.25
    name = f"n{number}"
    messages = [MESSAGES[0], {"role": "user", "content": f"where is my parcel, thanks {name}"}]
    body = BODY | {"messages": messages[not claimed :], "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n"
    if claimed and dice.random() < 0.7:
        # to the out-of-distribution gate these requests are strange
        head += "x-retort-route: student\r\n"
    with gateway.connect() as connection:
        connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        if leaves:
            connection.settimeout(dice.choice((0.01, 0.1, 0.3)))
            try:
                connection.recv(dice.choice((1, 65536)))
            except TimeoutError:
                return "left"
            return "left"
        return judge(name, stream, *read_answer(connection))


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    status, _, data = read_response(connection)
    return status, data


def judge(name: str, stream: bool, status: int, data: bytes) -> str:
    if status != 200:
        error = json.loads(data)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return "refused"
    if not stream:
        if data in (b"nonsense", b"[]"):  # unclaimed answers that are no streams are not read
            return "passed on"
        content = json.loads(data)["choices"][0]["message"]["content"]
        assert whole(name, content.split()), (name, content)
        return "answered"
    if data == b"nonsense":
        return "passed on"
    words, ended, failed = "", False, False
    for event in data.decode().split("\n\n"):
        text = event.removeprefix("data: ")
        if not text:
            continue
        assert not (ended or failed), data
        if text == "[DONE]":
            ended = True
            continue
        chunk = json.loads(text)
        failed = "error" in chunk
        for choice in chunk.get("choices", ()):
            words += choice["delta"].get("content") or ""
    assert ended != failed, data
    if ended:
        assert whole(name, words.split()), (name, words)
        return "answered"
    assert words.strip() == "" or any(
        f"{who}-{name}-0" in words for who in ("first", "next", "one", "other")
    )
    return "broken"


@pytest.mark.slow
def test_in_any_weather_answers_are_whole_or_errors_and_nothing_is_left_behind(
    serving: Start,
    teacher: FakeOpenAI,
    next_teacher: FakeOpenAI,
    student: FakeOpenAI,
    other_student: FakeOpenAI,
) -> None:
    gateway = serving(
        output={"kind": "text", "max_tokens": 64},
        sections={
            "teacher": {
                "retries": 1,
                "timeout_s": 0.6,
                "max_concurrency": 8,
                "max_queue": 6,
                "queue_timeout_s": 2.0,
                "hedge": {"after_s": 0.1, "share": 0.5},
                "fallbacks": [{"base_url": next_teacher.url, "api_key_env": None}],
            },
            "student": {
                "base_url": [student.url, other_student.url],
                "timeout_s": 0.6,
                "max_concurrency": 4,
            },
        },
    )
    fakes = {"first": teacher, "next": next_teacher, "one": student, "other": other_student}
    for seed, (who, fake) in enumerate(fakes.items()):
        fake.reply = weather(who, seed)
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda number: visit(gateway, number), range(REQUESTS)))
    assert {"answered", "refused", "left"} <= set(results)
    for fake in fakes.values():
        wait_until(lambda fake=fake: fake.in_flight == 0)  # type: ignore[misc]
    wait_until(lambda: gateway.metric("retort_inflight_requests") <= 1)
    assert gateway.metric('retort_queued_requests{upstream="teacher"}') == 0
    for fake in fakes.values():
        fake.reply = Reply(text="parcel", logprob=SURE)
    wait_until(lambda: gateway.send("POST", CHAT, BODY)[0] == 200)
    # every place in the line is free again
    with ThreadPoolExecutor(8) as threads:
        forced = {"x-retort-route": "teacher"}
        statuses = list(
            threads.map(lambda _: gateway.send("POST", CHAT, BODY, forced)[0], range(8))
        )
    assert statuses == [200] * 8
