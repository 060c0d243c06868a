"""Checks between the decision to serve a draft and its release."""

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from fake_openai import FakeOpenAI, Reply
from small_bundle import SURE, UNSURE
from store_process import exchange
from triage import BODY, MESSAGES, Start, configuration

from gateway import schemas
from gateway.checks import Checks, Failed
from gateway.config import Check, Config
from gateway.draft import read_draft
from gateway.errors import ConfigError
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.wire.protocol import Incoming, read_chat
from router.decision import Reason

CHAT = "/v1/chat/completions"
#: drafts of the serving tests are labels of the toy task: the router lets nothing else through
BLOCKED = {"kind": "blocked", "patterns": ["^PAR"]}


def checks_of(*given: dict[str, Any]) -> list[Check]:
    config = Config.model_validate(
        {"tasks": [{"name": "t", "claim": {"model": ["m"]}, "checks": list(given)}]}
    )
    return config.task().checks


def judge(
    text: str, *given: dict[str, Any], request: dict[str, Any] | None = None, **message: Any
) -> Failed | None:
    """The word of these checks on a draft, without any server."""
    checks = Checks(checks_of(*given))
    body = {"choices": [{"message": {"content": text, **message}, "finish_reason": "stop"}]}
    raw = orjson.dumps({**BODY, **(request or {})})
    incoming = Incoming(id="r", method="POST", path="/", query="", headers={}, raw=raw)
    return asyncio.run(checks.first_failed(read_draft(body), read_chat(incoming)))


def failed(check: str, reason: Reason = Reason.UNSAFE) -> Failed:
    return Failed(check=check, reason=reason)


OBJECT = {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["parcel"]}}}


def wants(schema: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    }


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"label": "parcel"}', True),
        ('{"label": "refund"}', False),
        ("{}", False),
        ('{"label": "parcel"', False),
        ("parcel", False),
        ("", False),
        ('{"label": NaN}', False),
    ],
)
def test_a_draft_fits_the_schema_of_the_task_or_of_the_request(text: str, fits: bool) -> None:
    expected = None if fits else failed("json_schema", Reason.INVALID)
    assert judge(text, {"kind": "json_schema", "definition": OBJECT}) == expected
    assert judge(text, {"kind": "json_schema"}, request=wants(OBJECT)) == expected
    assert judge(text, {"kind": "json_schema"}) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}},
        {"$defs": {"a": {"$id": "http://x/", "type": "string"}}},
        {"pattern": "("},
        {"pattern": "\\p{L}{100}"},
        {"allOf": [{"pattern": f"x{number}"} for number in range(50)]},
        {"patternProperties": {f"x{number}": True for number in range(50)}},
        {"pattern": "(a)\\1"},
        {"description": "x" * 200_000},
        {"enum": list(range(30_000))},
        "string",
        [],
        7,
    ],
)
def test_a_clients_schema_that_cannot_be_trusted_goes_to_the_teacher(schema: Any) -> None:
    verdict = judge('{"label": "parcel"}', {"kind": "json_schema"}, request=wants(schema))
    assert verdict == failed("json_schema", Reason.INVALID)


def test_references_that_double_at_every_step_are_refused_before_they_run() -> None:
    defs: dict[str, Any] = {"d0": {"type": "string"}}
    for step in range(1, 60):
        reference = {"$ref": f"#/$defs/d{step - 1}"}
        defs[f"d{step}"] = {"anyOf": [reference, {"allOf": [reference]}]}
    with pytest.raises(schemas.BadSchema, match="nodes"):
        schemas.clients({"$defs": defs, "$ref": "#/$defs/d59"})


def test_references_within_a_clients_schema_are_followed() -> None:
    schema = {
        "$id": "https://example.com/s.json",
        "$defs": {"a/b": {"type": "integer"}},
        "properties": {"x": {"$ref": "#/$defs/a~1b"}, "id": {"type": "string"}},
    }
    fits = schemas.clients(schema)
    assert fits({"x": 1, "id": "z"}) and not fits({"x": "1"})


def test_no_reference_is_ever_fetched() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/s.json"
        with pytest.raises(schemas.BadSchema):
            schemas.compiled({"$ref": url})
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_refusal_fails_in_words_and_in_its_own_field() -> None:
    refusal = {"kind": "refusal", "phrases": ["beyond my remit"]}
    assert judge("Lo siento, pero no puedo ayudarte.", refusal) == failed("refusal")
    assert judge("Beyond my remit!", refusal) == failed("refusal")
    assert judge("parcel", refusal, refusal="I cannot say.") == failed("refusal")
    assert judge("parcel", refusal) is None


def test_blocked_expressions_are_searched_in_all_that_is_released() -> None:
    blocked = {"kind": "blocked", "patterns": [r"\bacme\b", "straße"]}
    assert judge("Buy ACME now", blocked) == failed("blocked")
    assert judge("Hauptstraße 1", blocked) == failed("blocked")
    assert judge("HAUPTSTRAẞE 1", blocked) == failed("blocked")
    assert judge("acmes", blocked) is None
    assert judge("parcel", blocked, reasoning="maybe acme") == failed("blocked")
    assert judge("parcel", blocked, audio={"transcript": ["acme"]}) == failed("blocked")
    assert judge("Acme", {**blocked, "case_sensitive": True}) is None


def test_expressions_that_explode_elsewhere_are_harmless() -> None:
    evil = {"kind": "blocked", "patterns": ["^(a+)+$", "(x+x+)+y"]}
    assert judge("a" * 100_000 + "!" + "x" * 100_000, evil) is None


def test_length_fails_as_the_form_of_an_answer() -> None:
    length = {"kind": "length", "name": "short", "max_chars": 3}
    assert judge("abcd", length) == failed("short", Reason.INVALID)
    assert judge("abc", length) is None


def test_language_fails_only_where_it_can_be_told() -> None:
    german = {"kind": "language", "languages": ["de"]}
    assert judge("This is not what you wanted from the student.", german) == failed("language")
    assert judge("parcel", german) is None


def test_personal_data_fails_unless_the_request_holds_it() -> None:
    pii = {"kind": "pii"}
    text = "jane@corp.com"
    assert judge(text, pii) == failed("pii")
    asked = [*MESSAGES, {"role": "user", "content": [{"type": "text", "text": "JANE@corp.com?"}]}]
    assert judge(text, pii, request={"messages": asked}) is None
    assert judge(text, {"kind": "pii", "kinds": ["card"]}) is None


def never_content(text: str, request: dict[str, Any]) -> str | None:
    request.clear()
    return "not this one" if "bad" in text else None


async def slow(text: str, request: dict[str, Any]) -> str | None:
    await asyncio.sleep(60 if "slow" in text else 0)
    return None


def broken(text: str, request: dict[str, Any]) -> str | None:
    raise ZeroDivisionError


def test_your_own_function_decides_and_an_exception_or_delay_fails() -> None:
    def own(name: str) -> dict[str, Any]:
        return {"kind": "python", "function": f"{__name__}:{name}", "timeout_s": 0.05}

    request = {"seed": 1}
    assert judge("bad", own("never_content"), request=request) == failed("python")
    assert judge("good", own("never_content"), request=request) is None
    assert judge("slow", own("slow")) == failed("python")
    assert judge("quick", own("slow")) is None
    assert judge("any", own("broken")) == failed("python")


def test_the_first_check_that_fails_names_the_failure() -> None:
    assert judge("abcd", BLOCKED, {"kind": "length", "max_chars": 3}) == failed(
        "length", Reason.INVALID
    )
    assert judge("parcel", BLOCKED, {"kind": "length", "max_chars": 3}) == failed("blocked")


def test_no_draft_breaks_a_check(caplog: pytest.LogCaptureFixture) -> None:
    """Not even text that no decoder should leave; a check that broke would say so in the log."""
    checks = Checks(
        checks_of(
            {"kind": "refusal", "phrases": ["\ud800"]},
            {"kind": "length", "max_chars": 10**6},
            {"kind": "language", "languages": ["en", "de"], "scripts": ["latin", "han"]},
            {"kind": "pii"},
            {"kind": "blocked", "patterns": ["no such thing", "[^\\x00-\U0010ffff]"]},
            {"kind": "json_schema"},
        )
    )
    chat = read_chat(
        Incoming(
            id="r",
            method="POST",
            path="/",
            query="",
            headers={},
            raw=orjson.dumps(BODY | wants({"type": ["string", "number"]})),
        )
    )
    dice = random.Random(5)
    seeds = ["@", "+49 ", "::", "\0", "1", "DE89", "eyJ", "sk-", '"', "[", "{", "1e999", "\ud800"]
    verdicts = set()

    async def run() -> None:
        for _ in range(400):
            wild = [chr(dice.randrange(0x110000)) for _ in range(4)]
            text = "".join(dice.choices(seeds + wild, k=dice.randrange(60)))
            message = {"content": text, "reasoning": text[::-1]}
            draft = read_draft({"choices": [{"message": message, "finish_reason": "stop"}]})
            verdicts.add(await checks.first_failed(draft, chat))

    asyncio.run(run())
    assert caplog.records == []
    assert failed("json_schema", Reason.INVALID) in verdicts


def test_a_draft_too_deep_to_look_through_fails() -> None:
    deep = orjson.loads("[" * 1000 + "]" * 1000)
    assert judge("parcel", {"kind": "pii"}, annotations=deep) == failed("pii")


def test_a_failed_check_is_kept_on_every_database(store: Store) -> None:
    store.insert([exchange("a", check="pii"), exchange("b")])
    assert [exchanges.show(store, name)[0].check for name in ("a", "b")] == ["pii", None]


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ({"kind": "blocked", "patterns": ["(?=x)"]}, "linear time"),
        ({"kind": "blocked", "patterns": ["(?s)a.*b"]}, "flags"),
        ({"kind": "blocked", "patterns": []}, "patterns"),
        ({"kind": "json_schema", "definition": {"type": 7}}, "not a usable JSON Schema"),
        ({"kind": "language"}, "must be given"),
        ({"kind": "language", "languages": ["xx"]}, "'xx' is none of"),
        ({"kind": "pii", "kinds": ["shoe_size"]}, "shoe_size|email"),
        ({"kind": "python", "function": "os.system"}, "function"),
        ({"kind": "magic"}, "magic"),
    ],
)
def test_a_check_that_could_never_work_stops_the_start(check: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checks_of(check)


@pytest.mark.parametrize(
    "check",
    [
        {"kind": "python", "function": "no_such_module:f"},
        {"kind": "python", "function": "json:no_such_function"},
        {"kind": "python", "function": "json:__doc__"},
        {"kind": "moderation", "api_key_env": "RETORT_TEST_NO_SUCH_KEY"},
    ],
)
def test_what_a_check_needs_must_be_there_at_start(check: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.checks"):
        Checks(checks_of(check))


# -- in the gateway


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsafe_draft_is_never_seen_and_its_row_says_why(
    serving: Start, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving(checks=[{**BLOCKED, "name": "parcels"}])
    teacher.reply = "refund"
    metric = 'retort_checks_failed_total{check="parcels",task="triage"}'
    before = gateway.metric(metric)
    _, headers, data = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert (headers["x-retort-route"], headers["x-retort-reason"]) == ("teacher", "unsafe")
    assert headers["x-retort-check"] == "parcels"
    assert b"refund" in data and b"parcel" not in data
    row = gateway.exchange()
    assert (row.reason, row.check) == ("unsafe", "parcels")
    assert (row.student_text, row.teacher_text) == ("parcel", "refund")
    assert gateway.metric(metric) == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_draft_that_passes_is_served(serving: Start, stream: bool) -> None:
    gateway = serving(checks=[{"kind": "refusal"}, {"kind": "pii"}, {"kind": "length"}])
    _, headers, _ = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert headers["x-retort-reason"] == "trusted"
    assert "x-retort-check" not in headers


def test_a_check_of_the_form_fails_as_invalid(serving: Start) -> None:
    gateway = serving(checks=[{"kind": "length", "max_chars": 3}])
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-reason"] == "invalid"
    assert headers["x-retort-check"] == "length"


def test_a_draft_the_score_turned_away_is_not_checked(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving(checks=[BLOCKED])
    student.reply = Reply(text="parcel", logprob=UNSURE)
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-reason"] == "unsure"
    assert "x-retort-check" not in headers
    assert gateway.exchange().check is None


def test_who_may_force_the_student_cannot_force_an_unsafe_draft(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(checks=[BLOCKED])
    teacher.reply = "refund"
    _, headers, data = gateway.send("POST", CHAT, BODY, {"x-retort-route": "student"})
    assert headers["x-retort-reason"] == "unsafe"
    assert b"parcel" not in data


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsafe_draft_is_not_served_as_degraded_either(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI, stream: bool
) -> None:
    gateway = serving(checks=[BLOCKED], on_teacher_down="degraded")
    teacher.reply = Reply(status=503)
    student.reply = Reply(text="refund", logprob=UNSURE)
    status, headers, _ = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert (status, headers["x-retort-reason"]) == (200, "degraded")
    student.reply = Reply(text="parcel", logprob=UNSURE)
    status, _, data = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert status == 503
    assert b"parcel" not in data
    # sure, but unsafe
    student.reply = Reply(text="parcel", logprob=SURE)
    status, _, data = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert status == 503
    assert b"parcel" not in data


@pytest.mark.parametrize("stream", [False, True])
def test_in_shadow_checks_run_and_nothing_comes_of_it(
    serving: Start, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving(checks=[BLOCKED], mode="shadow")
    teacher.reply = Reply(text="refund", delay_s=0.1)
    _, headers, _ = gateway.send("POST", CHAT, BODY | {"stream": stream})
    assert headers["x-retort-reason"] == "shadow"
    assert "x-retort-check" not in headers
    row = gateway.exchange()
    assert (row.student_text, row.check) == ("parcel", "blocked")


# -- moderation


@dataclass
class Endpoint:
    """A moderation endpoint; ``answer`` and ``status`` are what it says next."""

    url: str
    server: FakeOpenAI

    def says(self, answer: Any, **reply: Any) -> None:
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.server.reply = Reply(raw=raw, **reply)


@pytest.fixture
def moderation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("RETORT_TEST_MODERATION_KEY", "mod-key")
    with FakeOpenAI(api_key="mod-key") as server:
        yield Endpoint(server.url, server)


def verdict(flagged: bool, **categories: bool) -> dict[str, Any]:
    return {"id": "m", "model": "m", "results": [{"flagged": flagged, "categories": categories}]}


def moderated(endpoint: Endpoint, **settings: Any) -> dict[str, Any]:
    return {
        "kind": "moderation",
        "base_url": endpoint.url,
        "api_key_env": "RETORT_TEST_MODERATION_KEY",
        **settings,
    }


def test_a_flagged_draft_is_not_served(
    serving: Start, moderation: Endpoint, teacher: FakeOpenAI
) -> None:
    gateway = serving(checks=[moderated(moderation, model="omni")])
    teacher.reply = "refund"
    moderation.says(verdict(False, hate=False))
    assert gateway.send("POST", CHAT, BODY)[1]["x-retort-reason"] == "trusted"
    moderation.says(verdict(True, hate=True))
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert (headers["x-retort-reason"], headers["x-retort-check"]) == ("unsafe", "moderation")
    asked = moderation.server.requests
    assert [request.path for request in asked] == ["/v1/moderations"] * 2
    assert asked[0].body == {"input": "parcel", "model": "omni"}


def test_only_the_named_categories_fail_a_draft(serving: Start, moderation: Endpoint) -> None:
    gateway = serving(checks=[moderated(moderation, categories=["hate", "violence"])])
    moderation.says(verdict(True, hate=False, violence=False, harassment=True))
    assert gateway.send("POST", CHAT, BODY)[1]["x-retort-reason"] == "trusted"
    moderation.says(verdict(False, hate=False, violence=True))
    assert gateway.send("POST", CHAT, BODY)[1]["x-retort-reason"] == "unsafe"


@pytest.mark.parametrize(("on_error", "reason"), [("escalate", "unsafe"), ("allow", "trusted")])
def test_an_endpoint_without_a_word_does_as_configured(
    serving: Start, moderation: Endpoint, on_error: str, reason: str
) -> None:
    check = moderated(moderation, on_error=on_error, timeout_s=0.3, categories=["hate"])
    gateway = serving(checks=[check])

    def reason_now() -> str:
        return gateway.send("POST", CHAT, BODY)[1]["x-retort-reason"]

    for answer in (b"<html>", b"[]", b"{}", {"results": []}, {"results": [{"categories": {}}]}):
        moderation.says(answer)
        assert reason_now() == reason
    moderation.says(verdict(False, hate=False), status=500)
    assert reason_now() == reason
    moderation.says(verdict(False, hate=False), delay_s=5)
    assert reason_now() == reason
    moderation.server.stop()
    assert reason_now() == reason
    moderation.server.start()
    moderation.says(verdict(False, hate=False))
    assert reason_now() == "trusted"


def test_a_task_without_checks_has_none(tmp_path: Path) -> None:
    config = configuration(tmp_path, (FakeOpenAI(), FakeOpenAI()), {})
    assert not Checks(config.task().checks)
