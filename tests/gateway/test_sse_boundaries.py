"""A stream is the same stream however its bytes are framed and wherever they are cut.

Each seed makes one stream as some upstream might send it: words in many scripts, any line ends,
comments, other fields, an object over several data lines; and cuts it anywhere. RETORT_SSE_CASES
sets how many seeds.
"""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway
from triage import BODY, Start

CASES = int(os.environ.get("RETORT_SSE_CASES", "120"))
AT_ONCE = 12
#: of every length in UTF-8, and what careless readers take for line ends
WORDS = ("parcel", " where", "é", " 包裹", " \U0001f4e6", "\n", "\r\n", '"', "\\", "\u2028", "\x85")
WORDS += ("data: [DONE]", "\n\ndata: {}", ": hello", " ")
LINE_ENDS = (b"\n", b"\r\n")


@dataclass(frozen=True, slots=True)
class Case:
    """``events``: the objects of the stream, in order."""

    seed: int
    events: list[dict[str, Any]]
    pieces: list[bytes]

    @property
    def raw(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def text(self) -> str:
        return text_of(self.events)


def make(seed: int, words: tuple[str, ...] = WORDS) -> Case:
    dice = random.Random(seed)
    head = {"id": f"chatcmpl-{seed}", "object": "chat.completion.chunk", "created": seed}
    head["model"] = "gpt-large"
    said = [dice.choice(words) for _ in range(dice.randrange(1, 12))]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in said]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [head | {"choices": [choice | {"logprobs": None}]} for choice in choices]
    end = dice.choice(LINE_ENDS)
    raw = b"".join(framed(event, end, dice) for event in events) + b"data: [DONE]" + end * 2
    return Case(seed, events, list(cut(raw, dice)))


def framed(event: dict[str, Any], end: bytes, dice: random.Random) -> bytes:
    """One event as bytes, with what else may stand around it."""
    indent = dice.choice((None, None, 1))
    text = json.dumps(event, ensure_ascii=dice.random() < 0.3, indent=indent)
    space = dice.choice((b"", b" "))
    lines = [b"data:" + space + line.encode() for line in text.split("\n")]
    if dice.random() < 0.2:
        lines.insert(0, dice.choice((b"event: message", b"id: 7", b"retry: 10", b": within")))
    comment = b": keep-alive" + end * 2 if dice.random() < 0.2 else b""
    return comment + end.join(lines) + end * 2


def cut(raw: bytes, dice: random.Random) -> Iterator[bytes]:
    """Anywhere: within a character, a line end, a field's name."""
    longest = dice.choice((2, 7, 50, 400))
    while raw:
        size = dice.randrange(1, longest + 1)
        yield raw[:size]
        raw = raw[size:]


def read(raw: bytes) -> list[str]:
    """The data of each event, as the standard for event streams says."""
    lines = raw.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found, data = [], []
    for line in lines:
        if not line:
            if data:
                found.append("\n".join(data))
            data = []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
    assert not data, "an event without its blank line"
    return found


def text_of(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def asked(gateway: RunningGateway, cases: list[Case], **more: Any) -> list[bytes]:
    """What the client gets for each case; ``user`` tells the upstream which one it is."""
    few = asyncio.Semaphore(AT_ONCE)

    async with aiohttp.ClientSession() as session:

        async def ask(case: Case) -> bytes:
            body = BODY | {"stream": True, "user": str(case.seed)} | more
            async with few, session.post(f"{gateway.url}/chat/completions", json=body) as response:
                assert response.status == 200
                return await response.read()

        return list(await asyncio.gather(*map(ask, cases)))


def play(server: FakeOpenAI, cases: list[Case]) -> None:
    by_seed = {str(case.seed): case for case in cases}
    server.reply = lambda body: Reply(pieces=by_seed[body["user"]].pieces)


async def test_streams_of_no_task_are_relayed_to_the_byte(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    cases = [make(seed) for seed in range(CASES)]
    play(teacher, cases)
    got = await asked(gateway, cases, messages=[{"role": "user", "content": "unclaimed"}])
    for case, raw in zip(cases, got, strict=True):
        assert raw == case.raw, f"seed {case.seed}"


@pytest.mark.parametrize("usage", [True, False])
async def test_the_teachers_streams_are_relayed_with_identical_content(
    start: Start, teacher: FakeOpenAI, usage: bool
) -> None:
    gateway = start()
    cases = [make(1000 + seed) for seed in range(CASES)]
    play(teacher, cases)
    got = await asked(gateway, cases, stream_options={"include_usage": usage})
    for case, raw in zip(cases, got, strict=True):
        *events, done = read(raw)
        assert [json.loads(event) for event in events] == case.events, f"seed {case.seed}"
        assert done == "[DONE]"
    kept = {row.body["user"]: row.teacher_text for row in gateway.exchanges()}
    assert kept == {str(case.seed): case.text or None for case in cases}


async def test_drafts_are_read_and_shown_with_identical_content(
    serving: Start, student: FakeOpenAI
) -> None:
    gateway = serving()
    # the student is not told of `user`: the question says which case it is
    cases = [make(2000 + seed) for seed in range(CASES)]
    by_seed = {str(case.seed): case for case in cases}
    student.reply = lambda body: Reply(pieces=by_seed[body["messages"][-1]["content"]].pieces)
    got = []
    for case in cases:
        messages = [BODY["messages"][0], {"role": "user", "content": str(case.seed)}]
        forced = {"x-retort-route": "student"}
        body = BODY | {"messages": messages, "stream": True}
        status, _, raw = gateway.send("POST", "/v1/chat/completions", body, forced)
        assert status == 200
        got.append(raw)
    for case, raw in zip(cases, got, strict=True):
        *events, done = read(raw)
        shown = [json.loads(event) for event in events]
        assert text_of(shown) == case.text, f"seed {case.seed}"
        assert shown[-1]["choices"][0]["finish_reason"] == "stop"
        assert {event["id"] for event in shown} == {f"chatcmpl-{case.seed}"}
        assert done == "[DONE]"
