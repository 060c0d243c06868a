"""One row for every request and for every audit: what it cost, how long, who answered. No text."""

import gzip
import json
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import SURE, UNSURE
from sqlmodel import select
from triage import BODY, Start

from gateway.money.savings import account
from gateway.storage.line import Line
from gateway.storage.spool import Spool
from gateway.storage.store import Store
from gateway.storage.tables import Request, utcnow
from gateway.surfaces.unclaimed import LARGEST, REMEMBERED

CHAT = "/v1/chat/completions"
#: no task claims it
OTHER: dict[str, Any] = {"model": "gpt-large", "messages": [{"role": "user", "content": "hi"}]}
#: 10 and 30 dollars a million: 0.0103 dollars
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 10,
    "total_tokens": 1010,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
PRICED = {"pricing": {"models": {"gpt-large": {"input_usd": 10.0, "output_usd": 30.0}}}}


def the_row(gateway: RunningGateway) -> Request:
    (row,) = gateway.ledger()
    return row


def test_a_line_is_a_row_of_the_ledger() -> None:
    line = Line(id="r", task="t", route="student", reason="trusted", status=200, duration_ms=1.0)
    columns = Request.metadata.tables["request"].columns
    assert {field.name for field in fields(Line)} == set(columns.keys())
    row = Request(id="r", task="t", route="student", reason="trusted", status=200, duration_ms=1.0)
    for name in set(columns.keys()) - {"at"}:
        assert getattr(line, name) == getattr(row, name), name


def test_a_line_survives_a_database_that_is_away(store: Store, tmp_path: Path) -> None:
    line = Line(id="r", task="t", route="student", reason="trusted", status=200, duration_ms=1.0)
    spool = Spool(tmp_path / "another")
    spool.append([line])
    (segment,) = [list(segment.chunks(9)) for segment in spool.segments()]
    store.insert(segment[0])
    store.insert([line])
    with store.session() as session:
        (row,) = session.exec(select(Request)).all()
    assert (row.id, row.at, row.estimated) == ("r", line.at, False)


def test_a_row_says_who_answered_how_long_it_took_and_what_was_paid(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE, model="gpt-large-2026", delay_s=0.05)
    student.reply = Reply(text="refund", logprob=UNSURE, usage=USAGE)
    gateway = serving()
    _, headers, _ = gateway.send("POST", CHAT, BODY, {"x-stainless-retry-count": "2"})
    row = the_row(gateway)
    assert (row.id, row.kind, row.task) == (headers["x-request-id"], "answer", "triage")
    assert (row.route, row.reason, row.status) == ("teacher", "unsure", 200)
    assert (row.model, row.endpoint, row.retries) == ("gpt-large-2026", "chat/completions", 2)
    assert (row.prompt_tokens, row.cached_tokens, row.cache_write_tokens) == (1000, 400, 0)
    assert (row.completion_tokens, row.reasoning_tokens, row.audio_tokens) == (10, 4, 0)
    # the draft that was thrown away is paid as well
    assert row.student_usd == pytest.approx(0.00101)
    assert row.teacher_usd == row.teacher_cost_usd == pytest.approx(0.0103)
    assert row.cost_usd == pytest.approx(0.01131)
    assert not row.estimated
    assert row.student_ms is not None and row.teacher_ms is not None
    assert row.overhead_ms is not None and row.teacher_ms >= 50
    parts_ms = row.student_ms + row.teacher_ms + row.overhead_ms
    assert parts_ms == pytest.approx(row.duration_ms, abs=1.0)


def test_what_the_teacher_would_have_cost_is_marked_as_estimated(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE)
    student.reply = Reply(text="parcel", logprob=SURE, usage=USAGE)
    gateway = serving()
    gateway.send("POST", CHAT, BODY, {"x-retort-route": "teacher"})
    gateway.send("POST", CHAT, BODY)
    _, row = gateway.ledger(2)
    assert row.estimated and row.teacher_cost_usd == pytest.approx(0.0103)
    assert (row.teacher_usd, row.teacher_ms) == (0.0, None)
    assert row.model in student.adapters


def test_audits_are_charged_in_a_row_of_their_own(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    teacher.reply = Reply(text="refund", usage=USAGE)
    gateway = serving(audit_rate=1.0)
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    audit, row = sorted(gateway.ledger(2), key=lambda row: row.kind != "audit")
    assert (row.kind, row.route) == ("answer", "student")
    assert (audit.kind, audit.parent, audit.route) == ("audit", headers["x-request-id"], "teacher")
    assert audit.teacher_usd == audit.cost_usd == pytest.approx(0.0103)
    assert audit.teacher_cost_usd is None and audit.student_usd == 0.0
    assert audit.prompt_tokens == 1000 and audit.model == "gpt-large"


def test_the_ledger_adds_up(serving: Start, teacher: FakeOpenAI, student: FakeOpenAI) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE)
    student.reply = Reply(text="parcel", logprob=SURE, usage=USAGE)
    gateway = serving(audit_rate=1.0)
    gateway.send("POST", CHAT, BODY, {"x-retort-route": "teacher"})
    gateway.send("POST", CHAT, BODY)
    gateway.ledger(3)
    until = utcnow() + timedelta(minutes=1)
    sums = account(gateway.store, gateway.config, until - timedelta(hours=1), until).total
    assert (sums.requests, sums.served, sums.audits, sums.unknown) == (2, 1, 1, 0)
    assert sums.student_usd == pytest.approx(0.00101)
    assert sums.teacher_usd == sums.audit_usd == pytest.approx(0.0103)
    assert sums.all_teacher_usd == pytest.approx(2 * 0.0103)
    # the audit said what it would have cost
    assert sums.estimated_usd == pytest.approx(0.0)
    assert "does not pay" in sums.verdict()


def test_what_a_teacher_charges_for_a_broken_answer_is_unknown_and_not_zero(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    teacher.reply = Reply(text="one two three", cut_after=2)
    gateway.send("POST", CHAT, BODY | {"stream": True})
    row = the_row(gateway)
    assert row.status >= 500
    assert row.teacher_usd is None and row.cost_usd is None and row.teacher_cost_usd is None


def test_a_model_that_is_no_name_harms_no_row(start: Start, teacher: FakeOpenAI) -> None:
    listed = {"provider": "openai", "price": {"input_usd": None, "output_usd": None}}
    gateway = start(sections={"teacher": listed}, store_payloads=False)
    choice = {"index": 0, "message": {"content": "parcel"}, "finish_reason": "stop"}
    models: list[Any] = [7, ["gpt"], {"a": 1}, "x" * 10_000]
    for model in models:
        body = {"model": model, "choices": [choice], "usage": USAGE}
        teacher.reply = Reply(raw=json.dumps(body).encode())
        assert gateway.send("POST", CHAT, BODY | {"model": "gpt-4o"})[0] == 200
        assert gateway.send("POST", CHAT, OTHER)[0] == 200
    rows = gateway.ledger(2 * len(models))
    assert {row.model for row in rows} == {None}
    # by the name that was asked for: 600 * 2.5 + 400 * 1.25 + 10 * 10
    assert [row.cost_usd for row in rows] == [pytest.approx(0.0021), None] * len(models)


def test_what_nobody_answered_costs_nothing(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(status=400)
    gateway.send("POST", CHAT, BODY)
    row = the_row(gateway)
    assert (row.status, row.cost_usd, row.teacher_cost_usd) == (400, 0.0, None)


def test_a_student_paid_by_the_hour_costs_nothing_by_the_request(serving: Start) -> None:
    by_hour = {"price": {"gpu_hour_usd": 2.5, "input_usd": None, "output_usd": None}}
    gateway = serving(sections={"student": by_hour})
    gateway.send("POST", CHAT, BODY)
    assert the_row(gateway).cost_usd == 0.0


def test_unknown_prices_are_counted(serving: Start, teacher: FakeOpenAI) -> None:
    def unknown(who: str) -> float:
        return gateway.metric(f'retort_price_unknown_total{{who="{who}"}}')

    free: dict[str, Any] = {"price": {}}
    gateway = serving(sections={"student": free, "teacher": free}, audit_rate=1.0)
    before = {who: unknown(who) for who in ("student", "teacher", "audit", "unclaimed")}
    gateway.send("POST", CHAT, BODY)
    gateway.send("POST", CHAT, BODY, {"x-retort-route": "teacher"})
    gateway.send("POST", CHAT, OTHER)
    gateway.ledger(4)
    assert {who: unknown(who) - count for who, count in before.items()} == {
        "student": 1,
        "teacher": 1,
        "audit": 1,
        "unclaimed": 1,
    }


def test_unclaimed_traffic_has_rows_without_a_byte_of_it_changed(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start(sections=PRICED)
    answer = json.dumps({"model": "gpt-large", "usage": USAGE, "object": "x"}).encode()
    teacher.reply = Reply(raw=answer)
    cost = 'retort_cost_usd_total{route="teacher",task="-"}'
    before = gateway.metric(cost)
    for path in (CHAT, "/v1/completions", "/v1/embeddings"):
        _, headers, data = gateway.send("POST", path, OTHER)
        assert data == answer and headers["x-retort-reason"] == "unclaimed"
    rows = gateway.ledger(3)
    assert [row.endpoint for row in rows] == ["chat/completions", "completions", "embeddings"]
    for row in rows:
        assert (row.task, row.route, row.reason) == ("-", "teacher", "unclaimed")
        assert (row.model, row.prompt_tokens, row.cached_tokens) == ("gpt-large", 1000, 400)
        assert row.cost_usd == row.teacher_cost_usd == pytest.approx(0.0103)
        assert row.teacher_ms is not None and row.overhead_ms is not None
    assert gateway.metric(cost) - before == pytest.approx(3 * 0.0103)


def test_usage_is_read_from_compressed_answers_too(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start(sections=PRICED)
    answer = gzip.compress(json.dumps({"model": "gpt-large", "usage": USAGE}).encode())
    teacher.reply = Reply(raw=answer, headers={"content-encoding": "gzip"})
    _, _, data = gateway.send("POST", CHAT, OTHER, {"accept-encoding": "gzip"})
    assert data == answer
    assert the_row(gateway).cost_usd == pytest.approx(0.0103)


def test_usage_is_read_from_streams_that_tell_it(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start(sections=PRICED)
    head = {"model": "gpt-large", "choices": [{"delta": {"content": "x" * 1000}}], "usage": None}
    tails: list[Any] = [
        {"model": "gpt-large", "choices": [], "usage": USAGE},
        {"type": "response.completed", "response": {"model": "gpt-large", "usage": USAGE}},
    ]
    for tail in tails:
        # far more than is remembered
        events = [head] * (2 * REMEMBERED // 1000) + [tail]
        raw = b"".join(b"data: " + json.dumps(event).encode() + b"\r\n\r\n" for event in events)
        raw += b"data: [DONE]\n\n"
        teacher.reply = Reply(raw=raw, content_type="text/event-stream")
        assert gateway.send("POST", CHAT, OTHER | {"stream": True})[2] == raw
    for row in gateway.ledger(2):
        assert row.stream and row.first_token_ms is not None
        assert row.cost_usd == pytest.approx(0.0103)


def test_answers_that_tell_nothing_have_an_unknown_cost(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start(sections=PRICED)
    replies = [
        Reply(text="hi", send_usage=False),
        Reply(raw=b"no json"),
        Reply(raw=b'["a list"]'),
        Reply(raw=b'{"model": 7, "usage": {"prompt_tokens": -3}}'),
        Reply(raw=b'{"usage": "' + b"x" * LARGEST + b'"}'),
        Reply(raw=b"not gzip", headers={"content-encoding": "gzip"}),
        Reply(raw=gzip.compress(b" " * LARGEST + b"{}"), headers={"content-encoding": "gzip"}),
        Reply(raw=b"?", headers={"content-encoding": "br"}),
    ]
    for reply in replies:
        teacher.reply = reply
        assert gateway.send("POST", CHAT, OTHER)[0] == 200
    rows = gateway.ledger(len(replies))
    assert {(row.prompt_tokens, row.cost_usd) for row in rows} == {(None, None)}


def test_look_ups_and_refusals_cost_nothing(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    gateway.send("GET", "/v1/files")
    teacher.reply = Reply(status=429)
    gateway.send("POST", CHAT, OTHER)
    teacher.reply = "ok"
    # nobody knows what a picture costs
    gateway.send("POST", "/v1/images/generations", OTHER)
    rows = gateway.ledger(3)
    assert [(row.endpoint, row.cost_usd) for row in rows] == [
        ("other", 0.0),
        ("chat/completions", 0.0),
        ("other", None),
    ]


def test_a_client_that_left_unclaimed_traffic_has_a_row(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(text="slow", delay_s=5)
    with gateway.connect() as connection:
        data = json.dumps(OTHER).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        wait_until(lambda: teacher.in_flight == 1)
    row = the_row(gateway)
    assert (row.status, row.cost_usd) == (499, None)
