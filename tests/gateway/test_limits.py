"""Requests and tokens per minute, and the teacher's dollars: over all gateways, exactly."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import limits_process
import openai
import pytest
from another_process import processes
from fake_openai import FakeOpenAI, Reply
from postgres import Postgres
from running_gateway import RunningGateway, wait_until
from small_bundle import UNSURE
from sqlmodel import select
from triage import BODY, Start

from gateway.access import key_store
from gateway.access.buckets import Ask, Want, decide, duration, refusal
from gateway.access.budgets import Budgets
from gateway.access.estimate import guess, model_named
from gateway.access.keys import Caller
from gateway.access.limits import Limits
from gateway.access.metering import any_usage
from gateway.access.purses import Hold
from gateway.config import Task
from gateway.errors import InsufficientQuota, RateLimited
from gateway.money.pricing import Usage
from gateway.storage.store import Store
from gateway.storage.tables import RateBucket, Spending
from gateway.wire.protocol import Incoming, Sink

CHAT = "/v1/chat/completions"
UNCLAIMED: dict[str, Any] = {"model": "gpt-large", "messages": [{"role": "user", "content": "hi"}]}
#: a call of the toy task: 100 tokens at 10 dollars and 10 at 30, per million
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
CALL_USD = 0.0013


class Key:
    """A key, and a gateway that asks for it."""

    def __init__(self, gateway: RunningGateway, value: str) -> None:
        self.gateway = gateway
        self.value = value
        self.client = gateway.client(value)

    def send(self, body: dict[str, Any] = BODY, path: str = CHAT) -> tuple[int, dict[str, str]]:
        headers = {"authorization": f"Bearer {self.value}"}
        status, headers, _ = self.gateway.send("POST", path, body, headers)
        return status, headers


def keyed(
    start: Start, tmp_path: Path, limits: dict[str, Any], *, sections: Any = None, **task: Any
) -> Key:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    key = key_store.new_key("app")
    for name, value in limits.items():
        setattr(key, name, value)
    with Store.open(url, tmp_path / "spool") as store:
        value = key_store.create(store, key)
    made = {"server": {"keys": "database"}, "store": {"url": url}} | (sections or {})
    return Key(start(sections=made, **({"mode": "collect"} | task)), value)


# -- requests and tokens


def want(amount: int = 1, limit: int = 60, kind: str = "requests") -> Want:
    return Want(kind=kind, bucket=kind, limit=limit, amount=amount)


def test_no_stretch_of_time_holds_more_than_the_limit_and_its_refill() -> None:
    chance = random.Random(7)
    for limit in (1, 7, 60, 1000):
        full_at: dict[str, float] = {}
        now, taken = 1.8e9, []
        for _ in range(3000):
            now += chance.choice([0.0, 0.0, 0.001, 0.3, 5.0 / limit, 200.0 if limit < 9 else 2.0])
            amount = chance.randint(1, max(1, limit // 5))
            if decide(full_at, now, Ask(wants=(want(amount, limit),))).refused is None:
                taken.append((now, amount))
        assert len(taken) > 20
        for first in range(0, len(taken), 7):
            began, total = taken[first][0], 0
            for at, amount in taken[first : first + 400]:
                total += amount
                assert total <= limit * (1 + (at - began) / 60) + 1e-3


def test_what_takes_nothing_passes_a_bucket_that_is_overdrawn() -> None:
    full_at = {"tokens": 1e9 + 500}
    nothing, one = want(0, 60, "tokens"), want(1, 60, "tokens")
    assert decide(full_at, 1e9, Ask(wants=(nothing,))).refused is None
    refused = decide(full_at, 1e9, Ask(wants=(one,)))
    assert refused.refused == one
    assert refusal(one, refused).headers["retry-after"] == "441"


def test_a_request_that_one_limit_refuses_costs_the_other_nothing() -> None:
    full_at: dict[str, float] = {}
    small, large = want(1, 60, "requests"), want(100, 150, "tokens")
    ask = Ask(wants=(small, large))
    assert decide(full_at, 1e9, ask).refused is None
    before = dict(full_at)
    for _ in range(100):
        assert decide(full_at, 1e9, ask).refused == large
    assert full_at == before
    assert decide(full_at, 1e9 + 20, ask).refused is None


def test_a_key_over_its_requests_is_told_when_to_come_again(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    teacher.reply = Reply(text="parcel", headers={"x-ratelimit-remaining-tokens": "9"})
    key = keyed(start, tmp_path, {"rpm": 2})
    _, first = key.send()
    assert first["x-ratelimit-limit-requests"] == "2"
    assert first["x-ratelimit-remaining-requests"] == "1"
    assert 25 < float(first["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
    # the teacher's limits are the gateway's business
    assert "x-ratelimit-remaining-tokens" not in first
    # every endpoint counts, and so do streams
    assert key.send(BODY | {"stream": True})[1]["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as caught:
        key.client.models.list()
    error, headers = caught.value, caught.value.response.headers
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 20 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers
    assert len(teacher.chats) == 2
    assert key.gateway.metric('retort_limited_requests_total{kind="requests"}') >= 1


@pytest.mark.parametrize("body", [BODY, UNCLAIMED], ids=["task", "unclaimed"])
def test_a_limited_key_sees_its_own_limits_with_the_teachers_error(
    start: Start, teacher: FakeOpenAI, tmp_path: Path, body: dict[str, Any]
) -> None:
    theirs = {"x-ratelimit-limit-requests": "9", "x-ratelimit-reset-tokens": "1s"}
    teacher.reply = Reply(status=429, headers=theirs | {"retry-after": "33"})
    status, headers = keyed(start, tmp_path, {"rpm": 2}).send(body)
    assert (status, headers["retry-after"]) == (429, "33")
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert "x-ratelimit-reset-tokens" not in headers


def test_a_key_without_limits_sees_the_teachers(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    teacher.reply = Reply(text="parcel", headers={"x-ratelimit-remaining-tokens": "9"})
    key = keyed(start, tmp_path, {})
    for body in (BODY, UNCLAIMED):
        assert key.send(body)[1]["x-ratelimit-remaining-tokens"] == "9"
    with key.gateway.store.session() as session:
        assert session.exec(select(RateBucket)).all() == []


def left(headers: dict[str, str]) -> int:
    return int(headers["x-ratelimit-remaining-tokens"])


@pytest.mark.parametrize("body", [BODY, UNCLAIMED], ids=["task", "unclaimed"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tokens_are_estimated_first_and_then_counted(
    start: Start, teacher: FakeOpenAI, tmp_path: Path, body: dict[str, Any], stream: bool
) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE)
    key = keyed(start, tmp_path, {"tpm": 2_000})
    body = body | {"max_tokens": 1_000, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    _, first = key.send(body)
    assert first["x-ratelimit-limit-tokens"] == "2000"
    assert left(first) < 1_000
    # four more, each estimated at half of the limit, because each took no more than 110
    for _ in range(4):
        status, headers = key.send(body)
        assert status == 200
    assert 300 < left(headers) < 1000
    status, headers = key.send(body | {"max_tokens": 5_000})
    # it will never fit, so coming again does not help
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in headers


def test_a_stream_that_tells_no_usage_is_counted(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    teacher.reply = Reply(text="word " * 300)
    key = keyed(start, tmp_path, {"tpm": 1_000})
    key.send(UNCLAIMED | {"max_tokens": 5, "stream": True})
    _, headers = key.send(UNCLAIMED | {"max_tokens": 5})
    assert left(headers) < 720


def test_the_tokens_of_a_request_that_failed_are_given_back(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    key = keyed(start, tmp_path, {"tpm": 1_000})
    teacher.reply = Reply(status=500)
    for body in (BODY, UNCLAIMED, BODY | {"messages": "no"}):
        assert key.send(body | {"max_tokens": 600})[0] >= 400
    teacher.reply = Reply(text="parcel", usage=USAGE)
    assert key.send(BODY | {"max_tokens": 600})[0] == 200


class Door:
    """One gateway's limits on a store, without the gateway."""

    def __init__(self, store: Store, **limits: int) -> None:
        self.limits = Limits(store.engine, wait_s=20)
        self.caller = Caller(id="key-1", **limits)  # type: ignore[arg-type]

    async def knock(self, body: bytes = b"{}") -> bool:
        request = incoming(self.caller, body)
        try:
            await self.limits.admit(request, Sink(_nowhere, "req-1"))
        except RateLimited:
            return False
        return True


async def _nowhere(message: Any) -> None:
    return None


def incoming(caller: Caller, raw: bytes) -> Incoming:
    return Incoming(id="r", method="POST", path="/", query="", headers={}, caller=caller, raw=raw)


async def test_gateways_share_one_limit(store: Store) -> None:
    doors = [Door(store, rpm=30, tpm=1_000_000) for _ in range(3)]
    began = datetime.now(UTC)
    opened = await asyncio.gather(*(door.knock() for door in doors for _ in range(40)))
    took_s = (datetime.now(UTC) - began).total_seconds()
    assert 30 <= sum(opened) <= 30 + took_s / 2 + 1
    for door in doors:
        await door.limits.stop()


async def test_limits_hold_without_the_database_and_are_made_up_for_later(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    with postgres_server.database() as url, Store.open(url, tmp_path / "spool") as store:
        door, other = Door(store, rpm=10), Door(store, rpm=10)
        door.limits.start()
        assert [await door.knock() for _ in range(4)] == [True] * 4
        postgres_server.close_to(url, closed=True)
        # the four from before count; nobody else's can be known
        assert sum([await door.knock() for _ in range(20)]) in (6, 7)
        assert door.limits.away
        postgres_server.close_to(url, closed=False)
        for _ in range(400):
            if not door.limits.away:
                break
            await asyncio.sleep(0.05)
        assert sum([await other.knock() for _ in range(5)]) <= 2
        await door.limits.stop()
        await other.limits.stop()


# -- dollars


def test_a_spent_budget_of_a_task_keeps_its_requests_from_the_teacher(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE)
    gateway = start(mode="collect", budget={"daily_usd": 3.2 * CALL_USD})
    client = gateway.client()
    body = BODY | {"max_tokens": 10}
    for _ in range(3):
        client.chat.completions.create(**body)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**body, stream=stream)
        assert (caught.value.code, caught.value.type) == ("insufficient_quota",) * 2
        assert "daily budget of the task 'triage'" in caught.value.message
        assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(teacher.chats) == 3
    # the budget is the task's: other traffic goes on
    client.chat.completions.create(**UNCLAIMED)
    wait_until(
        lambda: gateway.metric('retort_budget_spent_usd{period="day",task="triage"}') > 0, 20
    )
    assert gateway.metric('retort_limited_requests_total{kind="task_budget"}') >= 2


def test_a_budget_that_is_spent_is_an_outage_for_the_task(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    student.reply = Reply(text="parcel", logprob=UNSURE)
    gateway = serving(budget={"monthly_usd": 0.0}, on_teacher_down="degraded")
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-degraded"] == "true"
    assert teacher.chats == []
    (row,) = gateway.exchanges()
    assert (row.reason, row.teacher_text) == ("degraded", None)


def test_an_audit_is_paid_by_the_task_or_not_promised(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    gateway = serving(budget={"daily_usd": 0.0}, audit_rate=1.0)
    assert gateway.send("POST", CHAT, BODY)[0] == 200
    (row,) = gateway.ledger(1)
    assert (row.route, row.sampled, row.propensity) == ("student", False, 0.0)
    assert teacher.chats == []


def test_a_keys_budget_covers_tasks_and_unclaimed_traffic_and_counts_true_costs(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    teacher.reply = Reply(text="parcel", usage=USAGE)
    key = keyed(start, tmp_path, {"daily_usd": 6 * CALL_USD})
    calls = [BODY, UNCLAIMED, BODY | {"stream": True}, UNCLAIMED | {"stream": True}]
    for body in calls:
        body = body | {"max_tokens": 100, "stream_options": {"include_usage": True}}
        assert key.send(body)[0] == 200
    # four calls are spent, so this estimate does not fit any more, and a smaller one does
    status, headers = key.send(BODY | {"max_tokens": 100})
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert key.send(BODY | {"max_tokens": 10})[0] == 200
    teacher.reply = Reply(status=500)
    for body in (BODY, UNCLAIMED) * 3:
        assert key.send(body | {"max_tokens": 5})[0] >= 500  # and costs nothing
    assert key.send(UNCLAIMED | {"max_tokens": 1_000})[0] == 429
    # what is not the teacher's work is free
    assert key.client.models.list().data
    # and the operator sees it, by key
    with Store.open(f"sqlite:///{tmp_path / 'keys.db'}", tmp_path / "spool") as store:
        spent = key_store.spent_usd(store, datetime.now(UTC))
    assert sum(spent.values()) == pytest.approx(6 * CALL_USD, rel=0.3)


def test_a_budget_without_a_price_is_told_of(
    start: Start, teacher: FakeOpenAI, tmp_path: Path
) -> None:
    gateway = start(mode="collect", budget={"daily_usd": 0.0}, sections={"teacher": {"price": {}}})
    gateway.client().chat.completions.create(**BODY)
    assert "teacher.price" in gateway.json("/readyz")[1]["problems"]["budgets"]
    assert "budgets" not in keyed(start, tmp_path, {}).gateway.json("/readyz")[1]["problems"]


def price(usage: Usage, model: str) -> float:
    """10 dollars a million."""
    return usage.completion * 1e-5


DIME = b'{"max_tokens": 10000}'


def task(**budget: float) -> Task:
    return Task.model_validate({"name": "t", "claim": {"model": ["m"]}, "budget": budget})


async def holds(budgets: Budgets, times: int, **of: Any) -> list[Hold]:
    async def one() -> Hold | None:
        try:
            return await budgets.hold(DIME, **of)
        except InsufficientQuota:
            return None

    return [hold for hold in await asyncio.gather(*(one() for _ in range(times))) if hold]


async def test_gateways_share_one_budget_and_periods_begin_anew(store: Store) -> None:
    now = datetime(2026, 11, 29, 23, 59, tzinfo=UTC)
    two = [Budgets(store.engine, price, wait_s=20, now=lambda: now) for _ in range(2)]
    of = task(daily_usd=1.0, monthly_usd=1.55)

    async def spend() -> int:
        made = [hold for one in two for hold in await holds(one, 10, task=of)]
        for hold in made:
            hold.settle(0.1)
        return len(made)

    assert await spend() == 10
    now += timedelta(hours=1)
    assert await spend() == 5  # a new day, and the month is spent
    now += timedelta(days=1)
    assert await spend() == 10
    for one in two:
        await one.stop()


async def test_what_a_gateway_does_not_spend_it_gives_back(store: Store) -> None:
    one, other = (Budgets(store.engine, price, wait_s=20) for _ in range(2))
    of = task(daily_usd=1.0)
    made = await holds(one, 10, task=of)
    assert len(made) == 10 and await holds(other, 1, task=of) == []
    for hold in made[:4]:
        hold.settle(0.0)
    made[4].settle(0.3)  # dearer than was thought
    await one.stop()
    # 0.6 were held, 0.2 came on top of it
    assert len(await holds(other, 10, task=of)) == 2
    await other.stop()


async def test_what_was_held_and_not_spent_is_others_soon(store: Store) -> None:
    one, other = (Budgets(store.engine, price, wait_s=20) for _ in range(2))
    of = task(daily_usd=1.0)
    one.start()
    for hold in await holds(one, 10, task=of):
        hold.settle(0.01)
    made: list[Hold] = []
    for _ in range(200):
        made += await holds(other, 1, task=of)
        if len(made) == 8:
            break
        await asyncio.sleep(0.05)
    assert len(made) == 8  # of 0.90, all but the slice in use
    await one.stop()
    await other.stop()


async def test_all_budgets_of_a_call_are_charged_or_none(store: Store) -> None:
    budgets = Budgets(store.engine, price, wait_s=20)
    rich, poor = task(daily_usd=100.0), Caller(id="key-1", daily_usd=0.05)
    assert await holds(budgets, 20, task=rich, caller=poor) == []
    await budgets.stop()
    with store.session() as session:
        assert {row.account: row.taken_usd for row in session.exec(select(Spending))} == {
            "task:t": pytest.approx(0.0, abs=1e-9),
            "key:key-1": 0.0,
        }


async def test_budgets_fail_shut_without_the_database_but_spend_what_they_hold(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    with postgres_server.database() as url, Store.open(url, tmp_path / "spool") as store:
        budgets = Budgets(store.engine, price)
        of = task(daily_usd=50.0)  # a slice is five calls
        assert len(await holds(budgets, 1, task=of)) == 1
        postgres_server.close_to(url, closed=True)
        assert len(await holds(budgets, 20, task=of)) == 5
        with pytest.raises(InsufficientQuota, match="the database is away") as caught:
            await budgets.hold(DIME, task=of)
        assert caught.value.retry
        postgres_server.close_to(url, closed=False)
        assert len(await holds(budgets, 20, task=of)) == 20
        await budgets.stop()


async def test_a_call_that_is_given_up_while_it_waits_loses_no_money(store: Store) -> None:
    budgets = Budgets(store.engine, price, wait_s=20)
    of = task(daily_usd=1.0)
    for _ in range(30):
        waiting = asyncio.create_task(budgets.hold(DIME, task=of))
        await asyncio.sleep(0)
        waiting.cancel()
        (end,) = await asyncio.gather(waiting, return_exceptions=True)
        if isinstance(end, Hold):  # it did not have to wait
            end.settle(0.0)
    # many that want the last cents at once may leave them, for whoever comes next
    made = len(await holds(budgets, 20, task=of))
    assert made >= 9 and made + len(await holds(budgets, 2, task=of)) == 10
    await budgets.stop()


# -- several processes


@pytest.mark.slow
def test_processes_that_race_for_one_limit_get_it_once(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    with postgres_server.database() as url:
        Store.open(url, tmp_path / "spool").close()
        rest = [(200, 400)] * 4  # eight at a time: fifty trips each, side by side
        with processes("knock", (url, tmp_path / "spool"), rest, limits_process) as children:
            said = [child.communicate()[0].split() for child in children]
    opened = sum(int(words[0]) for words in said)
    took_s = max(float(words[2]) for words in said) - min(float(words[1]) for words in said)
    assert 200 <= opened <= 200 + took_s * 200 / 60 + 1
    assert all(child.returncode == 0 for child in children)


@pytest.mark.slow
def test_processes_that_race_for_one_budget_spend_it_once(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    with postgres_server.database() as url, Store.open(url, tmp_path / "spool") as store:
        rest = [(10.0, 40)] * 4  # each can spend 3.30 of the 10 dollars: no three are enough
        with processes("spend", (url, tmp_path / "spool"), rest, limits_process) as children:
            spent = [float(child.communicate()[0]) for child in children]
        with store.session() as session:
            (row,) = session.exec(select(Spending)).all()
    assert sum(spent) <= 10.0 + 1e-9
    assert sum(spent) >= 9.0
    # and the account says so to the cent, once all slices are back
    assert row.taken_usd == pytest.approx(sum(spent))
    assert all(usd > 0 for usd in spent)


# -- small things


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0, "0s"), (0.0119, "12ms"), (8.64, "8.64s"), (60, "1m0s"), (359.5, "5m59.5s"), (7, "7s")],
)
def test_durations_are_written_as_openai_does(value_s: float, text: str) -> None:
    assert duration(value_s) == text


def test_a_guess_reads_what_the_request_says_of_itself() -> None:
    assert guess(b'{"max_tokens" : 7}').completion == 7
    assert guess(b'{"max_completion_tokens":7,"n":3}').completion == 21
    assert guess(b'{"max_output_tokens":9}').completion == 9
    assert model_named(b'{"messages":[], "model": "gpt-5"}') == "gpt-5"
    assert model_named(b"{}") == ""
    # text that looks like a key is none
    assert guess(rb'{"content": "\"max_tokens\": 7"}').completion == guess(b"{}").completion
    image = b'{"url": "data:image/png;base64,' + b"A" * 400_000 + b'"}'
    assert guess(image).prompt < 2_000 < guess(b"a" * 400_000).prompt


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4, 0)),
        ({"usage": {"prompt_tokens": 3, "total_tokens": 3}}, (3, 0, 0)),
        (
            {
                "response": {
                    "usage": {
                        "input_tokens": 5,
                        "input_tokens_details": {"cached_tokens": 2},
                        "output_tokens": 6,
                    }
                }
            },
            (5, 6, 2),
        ),
        ({"usage": {"prompt_tokens": "3"}}, None),
        ({"usage": None}, None),
        ([], None),
    ],
)
def test_usage_is_read_from_answers_of_any_endpoint(body: Any, usage: Any) -> None:
    found = any_usage(body)
    if usage is None:
        assert found is None
    else:
        assert found == Usage(prompt=usage[0], completion=usage[1], cached=usage[2])
