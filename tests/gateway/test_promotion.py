"""The champion changes while the gateway runs, and nobody notices."""

import threading
from dataclasses import replace

import openai
from fake_openai import FakeOpenAI, Reply
from running_gateway import wait_until
from small_bundle import SURE
from triage import BODY, MESSAGES, Promote, Start, live_bundle

from gateway.storage import bundles
from router import router as routers
from router.router import Router

CHAT = "/v1/chat/completions"


def test_promotion_and_rollback_under_traffic_lose_no_request(
    serving: Start, promote: Promote, student: FakeOpenAI
) -> None:
    student.reply = lambda body: Reply(text="parcel", logprob=SURE)
    gateway = serving()
    first = live_bundle(gateway)
    stop = threading.Event()
    failures: list[Exception] = []
    served: list[str] = []

    def app() -> None:
        api = gateway.client()
        while not stop.is_set():
            try:
                raw = api.chat.completions.with_raw_response.create(**BODY)
                served.append(raw.headers["x-retort-bundle"])
                list(api.chat.completions.create(**BODY, stream=True))
            except openai.OpenAIError as error:
                failures.append(error)

    threads = [threading.Thread(target=app) for _ in range(3)]
    for thread in threads:
        thread.start()
    second = promote(gateway)
    bundles.rollback(gateway.store, "triage")
    wait_until(lambda: live_bundle(gateway) == first)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(served) == {first, second}
    assert served[-1] in (first, second)
    # both stay loaded: answers that run keep the adapter they began with
    assert set(student.adapters) == {first, second}


def test_adapters_are_loaded_from_the_bundle_under_their_own_name(
    serving: Start, student: FakeOpenAI
) -> None:
    gateway = serving()
    bundle = live_bundle(gateway)
    assert bundle is not None
    expected = gateway.config.state / "bundles" / "triage" / bundle / "adapter"
    assert student.adapters == {bundle: str(expected)}
    gateway.send("POST", CHAT, BODY)
    assert {chat["model"] for chat in student.chats} == {bundle}


def test_a_damaged_bundle_does_not_go_live(start: Start, promote: Promote) -> None:
    gateway = start()
    bundle = promote(gateway, wait=False)
    folder = gateway.config.state / "bundles" / "triage" / bundle
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"bit rot")
    wait_until(lambda: "task triage" in gateway.json("/readyz")[1]["problems"])
    assert "adapter_model.safetensors" in gateway.json("/readyz")[1]["problems"]["task triage"]
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-reason"] == "no_bundle"


def test_a_changed_prompt_contract_is_not_served_by_an_old_student(
    start: Start, promote: Promote
) -> None:
    gateway = start()
    bundle = promote(gateway)
    other = start(prompt={"system": "Other words."})
    assert live_bundle(other) is None
    assert bundle in other.json("/readyz")[1]["problems"]["task triage"]


def test_a_student_without_certificate_leaves_everything_to_the_teacher(
    serving: Start, small_router: Router
) -> None:
    unproven = {"certificate": None, "threshold": 1.01, "start": routers.Start()}
    gateway = serving(router=replace(small_router, **unproven))
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-reason"] == "not_certified"
    row = gateway.exchange()
    assert (row.sampled, row.propensity) == (True, 1.0)
    assert row.p_ood is not None


def test_one_gateway_can_follow_several_tasks(start: Start, promote: Promote) -> None:
    gateway = start()
    promote(gateway)
    assert gateway.metric('retort_threshold{task="triage"}') < 0.1
    assert gateway.metric('retort_certified_coverage_ratio{task="triage"}') > 0.8
    assert MESSAGES
