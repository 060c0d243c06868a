"""Exact repeats answered from memory: whose, which, how, and never anything else."""

import json
import random
from typing import Any

import orjson
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway
from small_bundle import SURE, UNSURE
from triage import BODY, MESSAGES, Promote, Start

from gateway.cache import OVERHEAD_BYTES, Cache, Entry, key_of
from gateway.config import CacheSection, Config
from gateway.recall import repeats
from gateway.wire.protocol import Incoming, read_chat
from router.decision import Route

CHAT = "/v1/chat/completions"
SAME = BODY | {"temperature": 0}
#: an answer that can be passed on but not written again
DEEP = (
    b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "deep": '
    + b"[" * 500
    + b"]" * 500
    + b"}"
)
ON = {"cache": {"enabled": True}}


def entry(text: str = "a", usd: float | None = None) -> Entry:
    return Entry(data=text.encode(), usage=None, route=Route.TEACHER, teacher_usd=usd)


def ask(
    gateway: RunningGateway, body: dict[str, Any] = SAME, **headers: str
) -> tuple[str | None, dict[str, Any]]:
    """What the cache did, and the answer."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    status, got, data = gateway.send("POST", CHAT, body, names)
    assert status == 200
    return got.get("x-retort-cache"), json.loads(data)


# -- the store


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock | None = None, **settings: Any) -> Cache:
    return Cache("t", CacheSection(enabled=True, **settings), clock or Clock())


def test_an_entry_lives_for_its_time_and_tells_its_age() -> None:
    clock = Clock()
    cache = make(clock, ttl_s=10)
    cache.put(b"k", entry())
    clock.now = 9.5
    assert cache.get(b"k") == (entry(), 9.5)
    clock.now = 10
    assert cache.get(b"k") is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    cache = make(max_entries=2)
    cache.put(b"1", entry())
    cache.put(b"2", entry())
    cache.get(b"1")
    cache.put(b"3", entry())
    assert [key for key in (b"1", b"2", b"3") if cache.get(key)] == [b"1", b"3"]


def test_memory_is_bounded_and_counted() -> None:
    size = OVERHEAD_BYTES + 10
    cache = make(max_bytes=2 * size)
    for number in range(50):
        cache.put(b"%d" % number, entry("x" * 10))
        assert cache.bytes <= 2 * size
    assert (len(cache), cache.bytes) == (2, 2 * size)
    cache.put(b"49", entry("y" * 10))
    assert (len(cache), cache.bytes) == (2, 2 * size)
    cache.put(b"49", entry("y" * 3 * size))
    assert cache.get(b"49") is None
    assert (len(cache), cache.bytes) == (1, size)


def test_any_sequence_of_uses_keeps_the_books_right() -> None:
    dice, clock = random.Random(1), Clock()
    cache = make(clock, ttl_s=5, max_entries=7, max_bytes=10 * OVERHEAD_BYTES)
    kept: dict[bytes, tuple[float, Entry]] = {}
    for _ in range(3000):
        clock.now += dice.random()
        key = b"%d" % dice.randrange(12)
        if dice.random() < 0.5:
            kept[key] = (clock.now, entry("z" * dice.randrange(3 * OVERHEAD_BYTES)))
            cache.put(key, kept[key][1])
        elif (found := cache.get(key)) is not None:
            # never an old one, never another's
            assert found == (kept[key][1], clock.now - kept[key][0])
            assert found[1] < 5
        assert len(cache) <= 7
        assert cache.bytes == sum(entry.size for _, entry in cache._entries.values())


# -- the key


def key(body: dict[str, Any] = SAME, **more: Any) -> bytes | None:
    parts: dict[str, Any] = {"whose": ("c",), "task": "t", "bundle": "b", "epoch": 1}
    return key_of(body, **(parts | more))


def test_the_key_ignores_what_does_not_change_the_answer() -> None:
    unsaid = {"stream": True, "stream_options": {"include_usage": True}, "user": "u", "store": None}
    shuffled = dict(reversed((SAME | unsaid | {"metadata": {"a": "b"}}).items()))
    assert key(shuffled) == key()


@pytest.mark.parametrize(
    "other",
    [
        {"whose": ("d",)},
        {"whose": ("c", None)},
        {"task": "u"},
        {"bundle": None},
        {"epoch": 2},
        {"body": SAME | {"temperature": 0.0, "seed": 1}},
        {"body": SAME | {"max_tokens": 5}},
        {"body": SAME | {"messages": MESSAGES[:1]}},
        {"body": SAME | {"no_such_field": 1}},
    ],
)
def test_the_key_knows_everything_else(other: dict[str, Any]) -> None:
    assert key(**other) != key()


def test_keys_of_different_callers_never_meet() -> None:
    """Whatever callers put into ids, headers and bodies: no two make one key."""
    dice = random.Random(2)
    pieces = ["", "a", "b", '"', ",", "]", "null", "\\", "[", "0.5", "ab"]
    seen: dict[bytes, tuple[Any, ...]] = {}
    for _ in range(20_000):
        whose = tuple(dice.choice([None, *pieces]) for _ in range(dice.randrange(1, 4)))
        text = "".join(dice.choices(pieces, k=3))
        task, bundle = dice.choice(pieces), dice.choice(pieces)
        made = key_of({"m": text}, whose=whose, task=task, bundle=bundle, epoch=None)
        assert made is not None
        assert seen.setdefault(made, (whose, text, task, bundle)) == (whose, text, task, bundle)


def test_a_body_too_deep_to_write_out_has_no_key() -> None:
    assert key(SAME | {"x": orjson.loads("[" * 500 + "]" * 500)}) is None


# -- which requests


def may_repeat(headers: dict[str, str] | None = None, **body: Any) -> bool:
    raw = orjson.dumps(BODY | body)
    incoming = Incoming(id="r", method="POST", path="/", query="", headers=headers or {}, raw=raw)
    return repeats(read_chat(incoming))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1, "stream": True}, True),
        ({"seed": 7}, True),
        ({"seed": 0, "temperature": 1}, True),
        ({}, False),
        ({"temperature": 0.01}, False),
        ({"temperature": False}, False),
        ({"seed": True}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "tools": [{"type": "function"}]}, False),
        ({"temperature": 0, "tools": []}, True),
        ({"temperature": 0, "logprobs": True}, False),
        ({"temperature": 0, "store": True}, False),
        ({"temperature": 0, "store": False}, False),
        ({"temperature": 0, "modalities": ["text", "audio"]}, False),
        ({"temperature": 0, "web_search_options": {"a": 1}}, False),
        ({"temperature": 0, "messages": [{"role": "tool", "content": "4"}]}, False),
        ({"temperature": 0, "messages": [{"role": "user", "content": None}]}, False),
        (
            {"temperature": 0, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            False,
        ),
        (
            {"temperature": 0, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            True,
        ),
    ],
)
def test_only_deterministic_requests_for_plain_text_repeat(
    body: dict[str, Any], expected: bool
) -> None:
    assert may_repeat(**body) is expected


def test_forced_and_unkept_requests_never_repeat() -> None:
    assert not may_repeat({"x-retort-route": "teacher"}, temperature=0)
    assert not may_repeat({"x-retort-no-store": "1"}, temperature=0)


def test_a_task_that_keeps_no_text_cannot_have_a_cache() -> None:
    task = {"name": "t", "claim": {"model": ["m"]}, "store_payloads": False, **ON}
    with pytest.raises(ValueError, match="store_payloads"):
        Config.model_validate({"tasks": [task]})


# -- in the gateway


def test_a_repeat_is_answered_from_memory_at_no_cost(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI
) -> None:
    gateway = serving(**ON)
    name = "retort_cache_requests_total"
    counts = {
        result: gateway.metric(f'{name}{{result="{result}",task="triage"}}')
        for result in ("hit", "miss", "bypass")
    }
    # the estimate of what the teacher would take needs one answer of the teacher's
    ask(gateway, BODY, x_retort_route="teacher")
    asked = len(student.chats), len(teacher.chats)
    first = ask(gateway)
    status, headers, data = gateway.send("POST", CHAT, SAME | {"user": "somebody"})
    again = json.loads(data)
    assert (first[0], headers["x-retort-cache"], status) == ("miss", "hit", 200)
    assert (headers["x-retort-route"], headers["x-retort-reason"]) == ("student", "cached")
    assert headers["x-retort-cost-usd"] == "0"
    assert int(headers["age"]) < 60
    assert again.pop("id") != first[1].pop("id")
    assert again == first[1]
    assert (len(student.chats), len(teacher.chats)) == (asked[0] + 1, asked[1])
    _, original, hit = gateway.ledger(3)
    assert (hit.route, hit.reason, hit.status) == ("student", "cached", 200)
    assert hit.cost_usd == 0
    assert hit.teacher_cost_usd == original.teacher_cost_usd is not None
    assert hit.completion_tokens == original.completion_tokens
    counted = {
        result: gateway.metric(f'{name}{{result="{result}",task="triage"}}') - before
        for result, before in counts.items()
    }
    assert counted == {"hit": 1, "miss": 1, "bypass": 1}
    assert gateway.metric('retort_cache_entries{task="triage"}') == 1
    assert gateway.metric('retort_cache_bytes{task="triage"}') > OVERHEAD_BYTES


def test_a_hit_avoids_the_teachers_price_and_counts_no_tokens(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving(**ON)
    student.reply = Reply(text="refund", logprob=UNSURE)
    ask(gateway)
    avoided = 'retort_cost_avoided_usd_total{task="triage"}'
    tokens = 'retort_tokens_total{route="teacher",task="triage",type="input"}'
    before = gateway.metric(avoided), gateway.metric(tokens)
    assert ask(gateway)[0] == "hit"
    missed, hit = gateway.ledger(2)
    assert hit.teacher_cost_usd == missed.teacher_cost_usd
    assert gateway.metric(avoided) == pytest.approx(before[0] + (hit.teacher_cost_usd or 0))
    assert gateway.metric(avoided) > before[0]
    assert gateway.metric(tokens) == before[1]


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("streamed_first", [False, True])
def test_a_stream_and_a_whole_answer_repeat_each_other(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI, who: str, streamed_first: bool
) -> None:
    gateway = serving(**ON)
    if who == "teacher":
        student.reply = Reply(text="parcel", logprob=UNSURE)
        teacher.reply = Reply(text="a parcel, döner ☃", model="gpt-large-2026")
    client = gateway.client()
    arguments: dict[str, Any] = {"model": "gpt-large", "messages": MESSAGES, "temperature": 0}

    def whole() -> Any:
        return client.chat.completions.create(**arguments)

    def stream() -> list[Any]:
        options = {"include_usage": True}
        return list(
            client.chat.completions.create(**arguments, stream=True, stream_options=options)
        )

    chunks, answer = (stream(), whole()) if streamed_first else (whole(), stream())[::-1]
    asked = len(student.chats) + len(teacher.chats)
    text = answer.choices[0].message.content
    assert text == ("parcel" if who == "student" else "a parcel, döner ☃")
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[0].choices[0].delta.role == answer.choices[0].message.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == answer.usage.total_tokens
    assert {c.model for c in chunks} == {answer.model}
    assert len({c.id for c in chunks}) == 1
    assert answer.choices[0].finish_reason == "stop"
    # both once more, from memory
    assert whole().choices[0].message.content == text
    assert len(stream()) == 4
    assert len(student.chats) + len(teacher.chats) == asked


def test_a_streamed_hit_is_a_proper_stream(serving: Start) -> None:
    gateway = serving(**ON)
    ask(gateway)
    status, headers, data = gateway.send("POST", CHAT, SAME | {"stream": True})
    assert (status, headers["x-retort-cache"]) == (200, "hit")
    assert headers["content-type"].startswith("text/event-stream")
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in events[:-2]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "parcel"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    # nobody asked for it
    assert not any("usage" in chunk for chunk in chunks)


def test_nobody_gets_another_callers_answer(
    serving: Start, student: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_TEST_KEYS", "one,two,three")
    gateway = serving(sections={"server": {"api_keys_env": "RETORT_TEST_KEYS"}}, **ON)
    dice = random.Random(4)

    def said(body: dict[str, Any]) -> Reply:
        # the toy student can say two things that are trusted
        return Reply(text=dice.choice(["parcel", "refund"]), logprob=SURE)

    student.reply = said
    answers: dict[tuple[str, int], str] = {}
    misses = 0
    for _ in range(60):
        caller, number = dice.choice(["one", "two", "three"]), dice.randrange(4)
        what, body = ask(
            gateway, SAME | {"seed": number}, authorization=f"Bearer {caller}", x_api_key="same"
        )
        text = body["choices"][0]["message"]["content"]
        if (caller, number) in answers:
            assert (what, text) == ("hit", answers[caller, number])
        else:
            assert what == "miss"
            answers[caller, number] = text
            misses += 1
    assert misses == len(answers) == 12


def test_without_gateway_keys_the_clients_own_key_tells_callers_apart(serving: Start) -> None:
    gateway = serving(**ON)
    assert ask(gateway, authorization="Bearer mine")[0] == "miss"
    assert ask(gateway, authorization="Bearer mine")[0] == "hit"
    assert ask(gateway, authorization="Bearer yours")[0] == "miss"
    assert ask(gateway)[0] == "miss"
    assert ask(gateway, authorization="Bearer mine", openai_organization="org")[0] == "miss"


def test_a_new_bundle_finds_nothing_of_the_old_ones(serving: Start, promote: Promote) -> None:
    gateway = serving(**ON)
    assert ask(gateway)[0] == "miss"
    assert ask(gateway)[0] == "hit"
    promote(gateway)
    assert ask(gateway)[0] == "miss"


def test_sampled_requests_never_touch_the_cache(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(audit_rate=1.0, **ON)
    asked = len(student.chats)
    for _ in range(3):
        assert ask(gateway)[0] is None
    assert len(student.chats) == asked + 3


@pytest.mark.parametrize("mode", ["collect", "shadow"])
def test_a_task_that_collects_evidence_uses_no_cache(serving: Start, mode: str) -> None:
    gateway = serving(mode=mode, **ON)
    assert [ask(gateway)[0] for _ in range(2)] == [None, None]


@pytest.mark.parametrize("stream", [False, True])
def test_only_whole_text_answers_are_kept(
    serving: Start,
    student: FakeOpenAI,
    teacher: FakeOpenAI,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    gateway = serving(**ON)
    student.reply = Reply(text="parcel", logprob=UNSURE)
    bad = [
        Reply(text="long", finish_reason="length"),
        Reply(text="", finish_reason="content_filter"),
        Reply(text="", message={"refusal": "I will not."}),
        Reply(text=None, message={"tool_calls": [{"index": 0, "id": "c"}]}),
        Reply(text="x", message={"annotations": [{"type": "url_citation"}]}),
        Reply(text="", finish_reason="stop"),
        Reply(text="x", raw=b'{"choices": []}'),
        Reply(raw=DEEP),
        Reply(text="a b c", cut_after=2),
        Reply(stream_error={"message": "overloaded"}) if stream else Reply(status=500),
        Reply(status=400),
        Reply(status=503),
    ]
    for reply in bad:
        teacher.reply = reply
        gateway.send("POST", CHAT, SAME | {"stream": stream})
        assert gateway.metric('retort_cache_entries{task="triage"}') == 0, reply
    assert "request crashed" not in [record.message for record in caplog.records]
    teacher.reply = "refund"
    assert ask(gateway)[0] == "miss"
    assert gateway.metric('retort_cache_entries{task="triage"}') == 1


def test_a_makeshift_answer_is_not_kept(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI
) -> None:
    gateway = serving(on_teacher_down="degraded", **ON)
    student.reply = Reply(text="parcel", logprob=UNSURE)
    teacher.reply = Reply(status=503)
    assert ask(gateway)[0] == "miss"
    teacher.reply = "refund"
    what, body = ask(gateway)
    assert (what, body["choices"][0]["message"]["content"]) == ("miss", "refund")
    assert ask(gateway)[0] == "hit"


def test_a_client_can_decline(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(**ON)
    assert ask(gateway, cache_control="no-store")[0] is None
    assert ask(gateway)[0] == "miss"
    student.reply = Reply(text="refund", logprob=SURE)
    assert ask(gateway, cache_control="max-age=0, No-Cache")[0] == "bypass"
    # it was asked afresh, and that is what is kept now
    what, body = ask(gateway)
    assert (what, body["choices"][0]["message"]["content"]) == ("hit", "refund")


def test_an_old_answer_is_asked_again(serving: Start) -> None:
    gateway = serving(cache={"enabled": True, "ttl_s": 1e-6})
    assert [ask(gateway)[0] for _ in range(2)] == ["miss", "miss"]


def test_a_task_without_a_cache_says_nothing_of_it(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving()
    asked = len(student.chats)
    assert [ask(gateway)[0] for _ in range(2)] == [None, None]
    assert len(student.chats) == asked + 2


def test_a_reasoning_text_is_repeated_too(
    serving: Start, student: FakeOpenAI, teacher: FakeOpenAI
) -> None:
    gateway = serving(**ON)
    student.reply = Reply(text="parcel", logprob=UNSURE)
    teacher.reply = Reply(text="refund", message={"reasoning_content": "hm", "annotations": []})
    _, first = ask(gateway)
    _, again = ask(gateway)
    assert again["choices"] == first["choices"]
    _, _, data = gateway.send("POST", CHAT, SAME | {"stream": True})
    assert b'"delta":{"reasoning_content":"hm"}' in data
