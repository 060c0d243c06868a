"""Student or teacher down, slow or broken: what the client gets, and what it costs."""

import json
import time

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import wait_until
from small_bundle import STRANGE, UNSURE
from triage import BODY, MESSAGES, Promote, Start, live_bundle

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
def test_student_outage_costs_nothing_but_the_teachers_price(
    serving: Start, student: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    student.stop()
    for number in range(8):
        body = BODY | {"stream": stream, "user": str(number)}
        status, headers, data = gateway.send("POST", CHAT, body)
        assert (status, headers["x-retort-reason"]) == (200, "student_error")
        assert b"parcel" in data
    assert len(gateway.exchanges()) == 8
    # by now nobody tries any more
    code, state = gateway.json("/readyz")
    assert code == 200
    assert state["student"] == "down"
    assert "student" in state["problems"]
    assert gateway.metric('retort_upstream_up{upstream="student"}') == 0


def test_student_is_found_again_after_an_outage(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving()
    student.stop()
    for number in range(6):
        gateway.send("POST", CHAT, BODY | {"user": str(number)})
    # as after a restart: it knows no adapter
    student.adapters.clear()
    student.start()

    def served() -> bool:
        _, headers, _ = gateway.send("POST", CHAT, BODY)
        return headers["x-retort-route"] == "student"

    wait_until(served, 20)
    assert student.adapters == {live_bundle(gateway): student.adapters[live_bundle(gateway) or ""]}


def test_a_lost_adapter_is_loaded_again(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving()
    student.adapters.clear()
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-reason"] == "student_error"
    wait_until(lambda: live_bundle(gateway) in student.adapters)

    def served() -> bool:
        # it is asked only once it has also answered a probe
        _, headers, _ = gateway.send("POST", CHAT, BODY)
        return headers["x-retort-route"] == "student"

    wait_until(served)


def test_a_slow_student_is_left_for_the_teacher(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(sections={"student": {"timeout_s": 0.3}})
    student.reply = Reply(text="parcel", delay_s=10)
    for stream in (False, True):
        started = time.monotonic()
        _, headers, _ = gateway.send("POST", CHAT, BODY | {"stream": stream})
        assert headers["x-retort-reason"] == "student_error"
        assert time.monotonic() - started < 5
    student.reply = Reply(text="par ce l", chunk_delay_s=0.2)
    _, headers, _ = gateway.send("POST", CHAT, BODY | {"stream": True})
    assert headers["x-retort-reason"] == "student_error"


def test_an_overloaded_student_sheds_to_the_teacher(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(sections={"student": {"max_concurrency": 1}})
    student.reply = Reply(text="parcel", delay_s=1.0, logprob=-0.01)
    with gateway.connect() as connection:
        data = json.dumps(BODY).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        student.wait_for(lambda server: server.in_flight == 1)
        _, headers, _ = gateway.send("POST", CHAT, BODY | {"user": "second"})
        assert headers["x-retort-reason"] == "student_error"
        assert b"x-retort-route: student" in connection.recv(65536)


@pytest.mark.parametrize("stream", [False, True])
def test_teacher_outage_leaves_the_student_serving_what_it_may(
    serving: Start, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    teacher.stop()
    status, headers, _ = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert (status, headers["x-retort-route"]) == (200, "student")
    strange = [MESSAGES[0], {"role": "user", "content": STRANGE}]
    status, headers, data = gateway.send(
        "POST", CHAT, {"model": "m", "messages": strange, "stream": stream}
    )
    error = json.loads(data)["error"]
    assert (status, error["code"]) == (503, "upstream_unavailable")
    assert "teacher" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("policy", ["error", "degraded"])
def test_teacher_outage_policy_decides_about_the_held_draft(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI, policy: str, stream: bool
) -> None:
    gateway = serving(on_teacher_down=policy)
    student.reply = Reply(text="refund", logprob=UNSURE)
    body = BODY | {"stream": stream}
    for outage in (Reply(status=503), Reply(raw=b"nonsense"), Reply(text="parcel", cut_after=0)):
        teacher.reply = outage
        status, headers, data = gateway.send("POST", CHAT, body)
        if policy == "error":
            assert status in (502, 503)
            assert "x-retort-degraded" not in headers
        else:
            assert status == 200
            assert headers["x-retort-degraded"] == "true"
            assert headers["x-retort-reason"] == "degraded"
            assert b"refund" in data
    if policy == "degraded":
        row = gateway.exchange()
        assert (row.reason, row.student_text, row.teacher_text) == ("degraded", "refund", None)


def test_a_draft_that_breaks_the_rules_is_not_served_in_any_outage(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving(on_teacher_down="degraded")
    student.reply = "banana"
    teacher.reply = Reply(status=500)
    status, _, data = gateway.send("POST", CHAT, BODY)
    assert status == 500
    assert b"banana" not in data


def test_a_request_the_teacher_refuses_is_not_an_outage(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving(on_teacher_down="degraded")
    student.reply = Reply(text="refund", logprob=UNSURE)
    teacher.reply = Reply(status=400)
    assert gateway.send("POST", CHAT, BODY)[0] == 400


def test_teacher_is_asked_again_and_the_client_told_not_to(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start(sections={"teacher": {"retries": 2}})
    failures = [Reply(status=500), Reply(status=429, headers={"retry-after-ms": "10"})]
    teacher.reply = lambda body: failures.pop(0) if failures else "parcel"
    api = gateway.client()
    answer = api.chat.completions.create(**BODY)
    assert answer.choices[0].message.content == "parcel"
    assert len(teacher.chats) == 3

    teacher.reply = Reply(status=500)
    for stream in (False, True):
        teacher.requests.clear()
        with pytest.raises(openai.InternalServerError) as caught:
            api.chat.completions.create(**BODY, stream=stream)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(teacher.chats) == 3


def test_a_stream_that_breaks_before_its_first_word_is_asked_again(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start(sections={"teacher": {"retries": 1}})
    failures = [Reply(text="one two", cut_after=0)]
    teacher.reply = lambda body: failures.pop(0) if failures else "parcel"
    chunks = list(gateway.client().chat.completions.create(**BODY, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "parcel"
    assert len(teacher.chats) == 2


def test_a_slow_teacher_is_a_timeout(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start(sections={"teacher": {"timeout_s": 0.2}})
    teacher.reply = Reply(text="one two", delay_s=5)
    for stream in (False, True):
        status, _, data = gateway.send("POST", CHAT, BODY | {"stream": stream})
        assert (status, json.loads(data)["error"]["code"]) == (504, "upstream_timeout")
    teacher.reply = Reply(text="one two three", chunks=("one", "two"), chunk_delay_s=0.15)
    # slower than the timeout as a whole, but never silent for as long
    assert b"[DONE]" in gateway.send("POST", CHAT, BODY | {"stream": True})[2]


def test_teacher_that_does_not_stream_is_an_error(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(raw=b'{"choices": []}')
    assert gateway.send("POST", CHAT, BODY | {"stream": True})[0] == 502


def test_readiness_says_when_requests_would_fail(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    assert gateway.json("/readyz")[0] == 200
    teacher.stop()
    for _ in range(5):
        assert gateway.send("POST", CHAT, BODY)[0] == 503
    code, state = gateway.json("/readyz")
    assert (code, state["ready"], state["teacher"]) == (503, False, "down")
    assert gateway.json("/healthz")[0] == 200
    teacher.start()
    wait_until(lambda: gateway.json("/readyz")[0] == 200)


def test_bundles_that_cannot_serve_leave_things_as_they_are(
    serving: Start, promote: Promote, student: FakeOpenAI
) -> None:
    gateway = serving()
    first = live_bundle(gateway)
    student.reply = Reply(status=500)
    second = promote(gateway, wait=False)
    wait_until(lambda: "task triage" in gateway.json("/readyz")[1]["problems"])
    assert live_bundle(gateway) == first
    assert second in gateway.json("/readyz")[1]["problems"]["task triage"]
    student.reply = Reply(text="parcel", logprob=-0.01)
    wait_until(lambda: live_bundle(gateway) == second)
    assert gateway.json("/readyz")[1]["problems"] == {}
