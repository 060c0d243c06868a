"""Several replicas of the student: each has its own adapters, breaker and load."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import SURE
from triage import BODY, MESSAGES, SYSTEM, Promote, Start, live_bundle

from gateway.app import make_pool
from gateway.config import Student
from gateway.errors import UpstreamUnavailable
from gateway.upstreams.pool import Pool, affinity_key

CHAT = "/v1/chat/completions"

Pooled = Callable[..., RunningGateway]


@pytest.fixture
def pooled(serving: Start, student: FakeOpenAI, other_student: FakeOpenAI) -> Pooled:
    """A gateway with two replicas."""

    def run(**section: Any) -> RunningGateway:
        urls = {"base_url": [student.url, other_student.url]}
        return serving(sections={"student": urls | section})

    return run


def ask(gateway: RunningGateway, number: int, **body: Any) -> tuple[str, str]:
    """Route and reason."""
    _, headers, _ = gateway.send("POST", CHAT, BODY | {"user": f"u{number}"} | body)
    return headers["x-retort-route"], headers["x-retort-reason"]


def served(fake: FakeOpenAI) -> int:
    """Requests beside the probes."""
    return sum(body["max_tokens"] > 1 for body in fake.chats)


def test_every_replica_gets_the_adapter_and_its_share(
    pooled: Pooled, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    gateway = pooled()
    assert student.adapters == other_student.adapters and live_bundle(gateway) in student.adapters
    assert {ask(gateway, number)[0] for number in range(24)} == {"student"}
    assert served(student) > 0 and served(other_student) > 0
    assert served(student) + served(other_student) == 24


def test_a_replica_that_fails_costs_the_teacher_nothing(
    pooled: Pooled, teacher: FakeOpenAI, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    gateway = pooled()
    for number, failure in enumerate(
        (Reply(status=500), Reply(raw=b"nonsense"), Reply(text="parcel", cut_after=0))
    ):
        student.reply = failure
        for stream in (False, True):
            for _ in range(2):
                assert ask(gateway, number, stream=stream)[0] == "student"
    student.stop()
    for number in range(12):
        assert ask(gateway, number)[0] == "student"
    assert teacher.chats == []
    code, state = gateway.json("/readyz")
    assert (code, state["student"]) == (200, "up")
    assert "0 down" in state["problems"]["student"]
    assert gateway.metric('retort_upstream_up{upstream="student"}') == 1
    assert gateway.metric('retort_replica_up{replica="0",upstream="student"}') == 0


def test_a_replica_that_restarts_is_not_asked_before_it_has_the_adapter_and_answers(
    pooled: Pooled, teacher: FakeOpenAI, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    gateway = pooled()
    adapter = live_bundle(gateway)
    student.adapters.clear()
    for number in range(12):
        assert ask(gateway, number) == ("student", "trusted")
    wait_until(lambda: adapter in student.adapters)
    before = served(student)
    wait_until(lambda: ask(gateway, 99)[0] == "student" and served(student) > before)
    # it was probed first, and at most one request found out that it had forgotten
    assert [body["max_tokens"] for body in student.chats].count(1) == 2
    assert teacher.chats == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_whichever_replica_works_for_it(
    pooled: Pooled,
    teacher: FakeOpenAI,
    student: FakeOpenAI,
    other_student: FakeOpenAI,
    stream: bool,
) -> None:
    gateway = pooled()
    first: list[FakeOpenAI] = []

    def fails_first(fake: FakeOpenAI) -> Callable[[Any], Reply]:
        def reply(body: Any) -> Reply:
            first.append(fake)
            return Reply(status=500) if len(first) == 1 else Reply(text="parcel", delay_s=20)

        return reply

    for fake in (student, other_student):
        fake.reply = fails_first(fake)
    data = json.dumps(BODY | {"stream": stream}).encode()
    with gateway.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        wait_until(lambda: len(first) == 2 and first[1].in_flight == 1)
    first[1].wait_for(lambda server: server.disconnects == 1)
    assert first[0] is not first[1]
    assert gateway.ledger()[0].status == 499 and teacher.chats == []


def test_a_bundle_is_live_with_one_replica_and_readiness_names_the_others(
    pooled: Pooled, promote: Promote, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    gateway = pooled()
    other_student.reply = Reply(status=500)
    second = promote(gateway)
    wait_until(lambda: "task triage" in gateway.json("/readyz")[1]["problems"])
    problem = gateway.json("/readyz")[1]["problems"]["task triage"]
    assert "replica 1: " in problem and second in problem and "replica 0: " not in problem
    asked = served(other_student)
    assert {ask(gateway, number) for number in range(8)} == {("student", "trusted")}
    assert served(other_student) == asked
    other_student.reply = Reply(text="parcel", logprob=SURE)
    wait_until(lambda: gateway.json("/readyz")[1]["problems"] == {})
    wait_until(lambda: ask(gateway, 1)[0] == "student" and served(other_student) > asked)


def test_a_replica_that_hangs_does_not_hold_up_a_promotion(
    pooled: Pooled, promote: Promote, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    gateway = pooled()
    other_student.reply = Reply(text="parcel", delay_s=20)
    assert promote(gateway) == live_bundle(gateway)
    assert {ask(gateway, number)[0] for number in range(4)} == {"student"}


def test_all_replicas_full_is_the_teachers_turn(
    pooled: Pooled, student: FakeOpenAI, other_student: FakeOpenAI
) -> None:
    gateway = pooled(max_concurrency=1)
    hold = threading.Event()
    for fake in (student, other_student):
        fake.reply = Reply(text="parcel now", logprob=SURE, hold=hold)
    with ExitStack() as connections:
        for _ in range(2):
            data = json.dumps(BODY | {"stream": True}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
            connection = connections.enter_context(gateway.connect())
            connection.sendall(head.encode() + data)
        wait_until(lambda: student.in_flight == other_student.in_flight == 1)
        assert ask(gateway, 1) == ("teacher", "student_error")
        hold.set()


@pytest.mark.parametrize("affinity", ["session", "prefix"])
def test_affinity_keeps_a_conversation_on_one_replica(
    pooled: Pooled, student: FakeOpenAI, other_student: FakeOpenAI, affinity: str
) -> None:
    gateway = pooled(affinity=affinity)
    for conversation in range(6):
        before = served(student), served(other_student)
        for turn in range(3):
            if affinity == "session":
                body: dict[str, Any] = {"metadata": {"conversation_id": f"c{conversation}"}}
            else:
                words = f"{conversation} " * 600 + f"turn {turn}"
                body = {"messages": [MESSAGES[0], {"role": "user", "content": words}]}
                body["metadata"] = {"turn": str(turn)}
            gateway.send("POST", CHAT, BODY | body, {"x-retort-route": "student"})
        now = served(student), served(other_student)
        assert sorted((now[0] - before[0], now[1] - before[1])) == [0, 3]


# -- the choice itself


def pool(replicas: int, **section: Any) -> Pool:
    urls = [f"http://127.0.0.1:{9 + k}/v1" for k in range(replicas)]
    made = make_pool(Student(base_url=urls, **section))
    for replica in made.replicas:
        replica.ready.add("a")
    return made


def test_of_two_the_less_busy_replica_is_taken() -> None:
    made = pool(3)
    made.replicas[1].server.in_flight = 5
    picked = Counter(made.pick("a", None).server.replica for _ in range(200))
    assert picked[1] == 0 and picked[0] > 20 and picked[2] > 20


def test_a_replica_without_the_adapter_or_down_or_full_is_not_taken() -> None:
    made = pool(3, max_concurrency=2)
    first, second, third = made.replicas
    first.ready.clear()
    for _ in range(5):
        second.server.breaker.failure()
    assert {made.pick("a", key).server.replica for key in (None, "k")} == {2}
    third.server.in_flight = 2
    with pytest.raises(UpstreamUnavailable) as caught:
        made.pick("a", None)
    assert caught.value.code == "overloaded"
    third.ready.clear()
    with pytest.raises(UpstreamUnavailable) as caught:
        made.pick("a", None)
    assert caught.value.code == "circuit_open"


def test_affinity_moves_only_the_keys_of_a_replica_that_left_and_yields_under_load() -> None:
    made = pool(4)
    keys = [f"conversation {k}" for k in range(200)]
    before = {key: made.pick("a", key).server.replica for key in keys}
    assert min(Counter(before.values()).values()) > 25
    made.replicas[2].ready.clear()
    after = {key: made.pick("a", key).server.replica for key in keys}
    assert all(before[key] == 2 for key in keys if after[key] != before[key])
    key = next(key for key in keys if before[key] == 0)
    made.replicas[0].server.in_flight = 20
    assert made.pick("a", key).server.replica != 0


def test_what_a_session_is_known_by() -> None:
    rendered: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    body: dict[str, Any] = {
        "user": "ann",
        "prompt_cache_key": "cache",
        "metadata": {"thread_id": "t"},
    }
    for name in ("metadata", "prompt_cache_key", "user"):
        value = body.pop(name)
        expected = value["thread_id"] if isinstance(value, dict) else value
        assert affinity_key("session", body | {name: value}, rendered) == expected
    assert affinity_key("session", {}, rendered) is None
    assert affinity_key("none", {"user": "ann"}, rendered) is None
    assert affinity_key("prefix", {}, rendered) == SYSTEM
