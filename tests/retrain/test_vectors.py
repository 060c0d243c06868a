"""A router is fitted on the vectors of the task's embedder, and used with those only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from small_bundle import LABELS, STRANGE, drafted, prompts

from gateway.config import Task
from gateway.lane import output_spec
from retrain.calibrate import calibrate, decide_each
from retrain.errors import NightError
from retrain.vectors import BATCH, embedder_for, load_router
from router.artifact import save
from router.decision import Reason
from router.errors import WrongEmbedder
from router.router import Labelled


def embedded(body: dict[str, Any]) -> Reply:
    rows = []
    for at, text in enumerate(body["input"]):
        about = [float(label in text) for label in LABELS]
        rows.append({"index": at, "embedding": [*about, float(not any(about))]})
    return Reply(raw=json.dumps({"data": rows}).encode())


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        server.reply = embedded
        yield server


def task(embedder: dict[str, Any] | None = None, **changes: Any) -> Task:
    data: dict[str, Any] = {"name": "triage", "claim": {"system": "s"}, **changes}
    data["output"] = {"kind": "label", "labels": [*LABELS], "max_tokens": 16}
    if embedder is not None:
        data["embedder"] = embedder
    return Task.model_validate(data)


def asked_of(endpoint: FakeOpenAI) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": endpoint.url, "model": "tiny"}


def test_an_endpoint_is_asked_in_batches_and_each_text_once(endpoint: FakeOpenAI) -> None:
    asked = embedder_for(task(asked_of(endpoint)))
    assert asked is not None
    texts = [f"parcel {at}" for at in range(BATCH + 3)]
    rows = asked.many([*texts, *texts])
    assert rows.shape == (2 * len(texts), asked.size) and asked.size == 4
    assert (asked("parcel 1") == rows[1]).all()
    assert sorted(len(request.body["input"]) for request in endpoint.requests) == [3, BATCH]


def test_an_endpoint_that_fails_ends_the_night_with_a_reason(endpoint: FakeOpenAI) -> None:
    asked = embedder_for(task(asked_of(endpoint)))
    assert asked is not None
    endpoint.reply = Reply(status=500)
    with pytest.raises(NightError, match="endpoint:tiny: no vectors"):
        asked.many(["parcel"])


def test_a_calibration_uses_the_embedder_and_its_router_no_other(
    endpoint: FakeOpenAI, tmp_path: Path
) -> None:
    with_it, without = task(asked_of(endpoint)), task()
    train = [Labelled(prompt=prompt, answer=label) for prompt, label in prompts(150, seed=1)]
    rows = prompts(200, seed=2)
    answers = [drafted(label, -0.01) for _, label in rows]
    texts, teachers = [prompt for prompt, _ in rows], [label for _, label in rows]
    spec = output_spec(with_it.output)
    router = calibrate(with_it, spec, train, texts, answers, teachers, seed=1)
    save(router, tmp_path)
    again = load_router(tmp_path, with_it)
    some = [*texts[:3], STRANGE]
    decisions = decide_each(again, some, [*answers[:3], answers[0]])
    assert [decision.reason for decision in decisions][-1] is Reason.OOD
    assert decisions == decide_each(router, some, [*answers[:3], answers[0]])
    with pytest.raises(WrongEmbedder, match="endpoint:tiny"):
        load_router(tmp_path, without)
