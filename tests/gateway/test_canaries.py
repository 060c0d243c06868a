"""A new bundle on a share of the traffic: who gets it, what is compared, and how it ends."""

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import canary_process
import pytest
from another_process import address, processes
from fake_openai import Body, FakeOpenAI, Reply
from ledger_rows import TASK, audit_of, request_line
from running_gateway import RunningGateway, wait_until
from small_bundle import SURE
from triage import BODY, Promote, Start, live_bundle

from gateway.canaries import races, table
from gateway.canaries.fold import fold
from gateway.canaries.races import Watch
from gateway.config import CanarySection, Claim, Task
from gateway.errors import BundleError
from gateway.lane import Live, Trial
from gateway.storage import bundles
from gateway.storage.bundles import BundleFiles
from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, BundleState, Canary, CanaryState, utcnow
from router.decision import Reason
from router.router import Router

OLD, NEW = "triage-old", "triage-new"
QUICK = {"certificate": {"settle_s": 0.1}}


def small(**changes: Any) -> CanarySection:
    values: dict[str, Any] = {
        "steps": [0.3, 0.6],
        "min_requests": 20,
        "max_requests": 60,
        "delta": 0.3,
    }
    return CanarySection(**(values | changes))


def triage(settings: CanarySection) -> Task:
    return Task(name=TASK, claim=Claim(model=["m"]), canary=settings)


# -- what is compared


def test_a_block_ends_with_the_challengers_next_request() -> None:
    watch = races.begin(small())["trouble"]
    watch = races.feed(watch, [(False, 1.0), (False, 0.0), (True, 1.0), (True, 0.0), (False, 1.0)])
    # the second of the challenger's ended a block of one against the mean of two
    assert (watch.race.n, watch.race.total) == (1, 0.5)
    assert (watch.challenger.n, watch.champion.n) == (1, 1)
    # in one go or one by one is the same
    one_by_one = races.begin(small())["trouble"]
    for seen in [(False, 1.0), (False, 0.0), (True, 1.0), (True, 0.0), (False, 1.0)]:
        one_by_one = races.feed(one_by_one, [seen])
    assert races.to_dict({"trouble": watch}) == races.to_dict({"trouble": one_by_one})


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_bundles_are_hardly_ever_told_apart(share: float) -> None:
    dice, settings, alarms = random.Random(3), small(delta=0.1), 0
    for _ in range(100):
        watch = races.begin(settings)["trouble"]
        seen = [(dice.random() < share, float(dice.random() < 0.1)) for _ in range(int(60 / share))]
        alarms += races.feed(watch, seen).race.rolled_back
    assert alarms <= 8  # 3.3 at most are to be expected


def test_a_worse_bundle_is_found_in_any_of_the_races() -> None:
    for name in races.RACES:
        watches = races.begin(small())
        seen = [(bool(at % 2), float(at % 2)) for at in range(100)]
        watches[name] = races.feed(watches[name], seen)
        assert races.lost(watches) == name
        assert "100.0% of the canary's 50, 0.0% of the champion's 50" in races.why_lost(
            name, watches[name]
        )


def test_a_few_more_fallbacks_are_no_reason_to_roll_back() -> None:
    dice, watches = random.Random(4), races.begin(CanarySection())
    seen = [(at % 2 == 1, float(dice.random() < 0.2 + 0.03 * (at % 2))) for at in range(20_000)]
    assert not races.feed(watches["fallback"], seen).race.rolled_back
    assert races.feed(watches["loss"], seen).race.rolled_back


def test_the_races_survive_the_database() -> None:
    watches = races.begin(small())
    watches["loss"] = races.feed(watches["loss"], [(bool(at % 3), at / 50) for at in range(50)])
    again = races.from_dict(races.to_dict(watches))
    assert races.to_dict(again) == races.to_dict(watches)
    assert isinstance(again["loss"], Watch)


# -- who gets it


def test_shares_are_right_and_grow_without_moving_anybody_back(
    tmp_path: Path, small_router: Router
) -> None:
    files = BundleFiles(
        id=NEW,
        task=TASK,
        adapter=NEW,
        base_model="",
        prompt_hash="",
        dataset_id="",
        created_at="",
        folder=tmp_path,
    )
    live = Live(bundle=files, router=small_router)
    groups = [f"group-{number}" for number in range(20_000)]
    before: set[str] = set()
    for share in (0.01, 0.05, 0.25, 0.5):
        trial = Trial(id="canary-1", live=live, share=share)
        chosen = {group for group in groups if trial.takes(group)}
        assert abs(len(chosen) / len(groups) - share) < 0.015 * share**0.5 + 0.001
        assert before <= chosen
        before = chosen
    other = {g for g in groups if Trial(id="canary-2", live=live, share=0.5).takes(g)}
    assert 0.45 < len(other & before) / len(before) < 0.55  # another canary, other conversations


# -- in the database


@pytest.fixture
def pair(store: Store) -> Iterator[Store]:
    """A champion and a candidate."""
    with store.transaction() as session:
        for name, state in ((OLD, BundleState.CHAMPION), (NEW, BundleState.CANDIDATE)):
            session.add(Bundle(id=name, task=TASK, at=utcnow(), state=state, path="", adapter=name))
            bundle = session.get_one(Bundle, name)
            if state is BundleState.CHAMPION:
                bundles.write_event(session, bundle, "promoted", "")
    yield store


def state(store: Store, name: str) -> str:
    with store.session() as session:
        return session.get_one(Bundle, name).state


def canary_of(store: Store, canary: Canary) -> Canary:
    with store.session() as session:
        return session.get_one(Canary, canary.id)


def traffic(canary: Canary, rows: int, loss: Callable[[bool], float]) -> list[Line]:
    """Alternately of both bundles, served, every one audited; from the canary's start on."""
    lines = []
    for number in range(rows):
        at = canary.started_at.timestamp() + 0.01 * (number + 1)
        mine = number % 2 == 1
        line = request_line(
            at,
            number,
            Reason.TRUSTED,
            bundle=NEW if mine else OLD,
            score=0.9,
            sampled=True,
            propensity=1.0,
            least=1.0,
        )
        lines += [line, audit_of(line, loss(mine))]
    return lines


def later(canary: Canary) -> datetime:
    return canary.started_at + timedelta(minutes=1)


def fold_all(store: Store, settings: CanarySection, now: datetime, most: int = 50) -> None:
    while fold(store, triage(settings), now=now, most=most, settle_s=0.0)[1]:
        pass


def test_a_bundle_as_good_goes_through_all_steps_and_is_promoted(pair: Store) -> None:
    settings = small()
    canary = table.start(pair, NEW, settings, "by hand")
    assert (state(pair, NEW), canary.share) == ("canary", 0.3)
    pair.insert(traffic(canary, 300, lambda mine: 0.0))
    steps = []
    while (now := table.running(pair, TASK)) is not None:
        steps.append((now.step, now.share))
        fold(pair, triage(settings), now=later(canary), most=20, settle_s=0.0)
    assert sorted(set(steps)) == [*steps[:1], (1, 0.6)] and steps[0] == (0, 0.3)
    ended = canary_of(pair, canary)
    assert ended.state == CanaryState.PROMOTED and ended.ended_at is not None
    assert (state(pair, NEW), state(pair, OLD)) == ("champion", "retired")
    # and it can be rolled back like any champion
    previous = bundles.rollback(pair, TASK)
    assert previous is not None and previous.id == OLD


def test_a_worse_bundle_is_rejected_with_the_reason_in_numbers(pair: Store) -> None:
    settings = small(max_requests=1000)
    canary = table.start(pair, NEW, settings)
    pair.insert(traffic(canary, 200, float))
    fold_all(pair, settings, later(canary))
    ended = canary_of(pair, canary)
    assert ended.state == CanaryState.ROLLED_BACK
    assert ended.reason.startswith("loss: 100.0% of the canary's ")
    assert (state(pair, NEW), state(pair, OLD)) == ("rejected", "champion")
    assert bundles.events(pair, TASK)[-1].detail == f"canary: {ended.reason}"
    with pytest.raises(BundleError, match="rejected"):
        table.start(pair, NEW, settings)


def test_rows_that_tell_nothing_are_left_out(pair: Store) -> None:
    canary = table.start(pair, NEW, small())
    at = canary.started_at.timestamp() + 1
    kinds: list[tuple[Reason, dict[str, Any]]] = [
        (Reason.FORCED, {"loss": 1.0}),
        (Reason.CACHED, {}),
        (Reason.COLLECT, {}),
        (Reason.UNSURE, {"loss": 1.0, "least": 0.0}),  # nobody drew it
        (Reason.SHADOW, {"loss": 1.0, "least": 1.0}),
        (Reason.STUDENT_ERROR, {"status": 502}),
        (Reason.NOT_CERTIFIED, {"loss": 0.5, "least": 1.0}),
    ]
    lines = [
        request_line(at + number, number, reason, bundle=NEW, **columns)
        for number, (reason, columns) in enumerate(kinds)
    ]
    early = request_line(at - 60, 99, Reason.INVALID, bundle=NEW)
    lost = audit_of(request_line(at, 98, Reason.TRUSTED, bundle=NEW, least=1.0), None, status=503)
    pair.insert([*lines, early, lost])
    fold_all(pair, small(), later(canary))
    now = canary_of(pair, canary)
    watches = races.from_dict(now.races)
    assert now.requests == 4
    seen = {name: (w.all_challenger.total, w.all_challenger.n) for name, w in watches.items()}
    assert seen == {"trouble": (1.0, 3), "fallback": (2.0, 3), "loss": (1.5, 2)}


@pytest.mark.slow
def test_three_processes_give_one_result(pair: Store) -> None:
    dice = random.Random(5)
    task = canary_process.PATIENT
    canary = table.start(pair, NEW, task.canary)
    pair.insert(traffic(canary, 120, lambda mine: float(dice.random() < 0.2)))
    work = [(17, later(canary).isoformat())] * 3
    with processes("fold", address(pair), work, canary_process) as children:
        for child in children:
            assert child.wait(30) == 0
    together = canary_of(pair, canary)
    with pair.transaction() as session:
        alone = session.get_one(Canary, canary.id)
        alone.races, alone.requests = canary.races, 0
        alone.frontier_at, alone.frontier = canary.frontier_at, ""
    fold_all(pair, task.canary, later(canary), most=17)
    assert canary_of(pair, canary).races == together.races
    assert canary_of(pair, canary).requests == together.requests == 60


def test_only_one_canary_runs_and_only_beside_a_champion(pair: Store) -> None:
    canary = table.start(pair, NEW, small())
    assert table.start(pair, NEW, small()).id == canary.id  # a night that is resumed
    with pair.transaction() as session:
        session.add(Bundle(id="third", task=TASK, at=utcnow(), path="", adapter="third"))
    with pytest.raises(BundleError, match="the canary of triage-new runs"):
        table.start(pair, "third", small())
    with pytest.raises(BundleError, match="is the champion already"):
        table.start(pair, OLD, small())
    bundles.rollback(pair, TASK)
    with pytest.raises(BundleError, match="no champion"):
        table.start(pair, NEW, small())


@pytest.mark.parametrize("how", ["stop", "rollback", "promote", "reject", "another"])
def test_whatever_moves_the_champion_meanwhile_ends_the_canary(pair: Store, how: str) -> None:
    canary = table.start(pair, NEW, small())
    if how == "stop":
        stopped = table.stop(pair, TASK, "by hand")
        assert stopped is not None and table.stop(pair, TASK, "by hand") is None
    elif how == "rollback":
        bundles.rollback(pair, TASK)
    elif how == "promote":
        bundles.promote(pair, NEW)
    elif how == "reject":
        bundles.reject(pair, NEW, "no")
    else:
        with pair.transaction() as session:
            session.add(Bundle(id="third", task=TASK, at=utcnow(), path="", adapter="third"))
        bundles.promote(pair, "third")
    ended = canary_of(pair, canary)
    assert (ended.state, bool(ended.reason)) == (CanaryState.STOPPED, True)
    expected = {"promote": "champion", "reject": "rejected"}.get(how, "candidate")
    assert state(pair, NEW) == expected
    champion = bundles.champion(pair, TASK)
    assert (None if champion is None else champion.id) == {
        "rollback": None,
        "promote": NEW,
        "another": "third",
    }.get(how, OLD)
    # rows that come late change nothing
    pair.insert(traffic(canary, 100, float))
    assert fold(pair, triage(small()), now=later(canary), settle_s=0.0) == (None, False)
    assert state(pair, NEW) == expected


# -- in a gateway


def converse(gateway: RunningGateway, number: int) -> tuple[str | None, str]:
    """Bundle and route of one conversation's answer."""
    body = BODY | {"metadata": {"conversation_id": f"c-{number}"}}
    _, headers, _ = gateway.send("POST", "/v1/chat/completions", body)
    return headers.get("x-retort-bundle"), headers["x-retort-route"]


def begin(gateway: RunningGateway, bundle: str) -> None:
    table.start(gateway.store, bundle, gateway.config.task().canary)
    wait_until(lambda: shown(gateway) is not None)


def shown(gateway: RunningGateway) -> dict[str, Any] | None:
    found: dict[str, Any] | None = gateway.json("/readyz")[1]["tasks"]["triage"].get("canary")
    return found


def says(bundle: str, text: str, status: int = 200) -> Callable[[Body], Reply]:
    def reply(body: Body) -> Reply:
        mine = body["model"] == bundle
        return Reply(text=text if mine else "parcel", logprob=SURE, status=status if mine else 200)

    return reply


HALF = {"enabled": True, "steps": [0.5], "min_requests": 4, "max_requests": 500, "delta": 0.5}


def test_a_conversation_stays_with_its_bundle(serving: Start, challenger: Promote) -> None:
    gateway = serving(canary=HALF, sections=QUICK)
    old, new = live_bundle(gateway), challenger(gateway)
    begin(gateway, new)
    assert shown(gateway) == {"bundle": new, "share": 0.5}
    assert gateway.metric('retort_canary_share_ratio{task="triage"}') == 0.5
    first = [converse(gateway, number) for number in range(30)]
    assert {bundle for bundle, _ in first} == {old, new}
    assert {route for _, route in first} == {"student"}  # it has a certificate of its own
    assert [converse(gateway, number) for number in range(30)] == first
    wrote = {row.id: row for row in gateway.ledger(60)}
    assert {row.bundle for row in wrote.values()} == {old, new}
    # the same conversations after a restart
    gateway.stop()
    again = RunningGateway(gateway.config)
    with again:
        wait_until(lambda: shown(again) is not None)
        assert [converse(again, number) for number in range(30)] == first
        canary = table.running(again.store, TASK)
        assert canary is not None and canary.bundle == new


@pytest.mark.slow
def test_a_bad_canary_is_rolled_back_within_seconds(
    serving: Start,
    start: Start,
    challenger: Promote,
    student: FakeOpenAI,
    database_url: str,
) -> None:
    sections = QUICK | {"store": {"url": database_url}}
    gateway = serving(audit_rate=1.0, canary=HALF, sections=sections)
    other = start(audit_rate=1.0, canary=HALF, sections=sections)
    old, new = live_bundle(gateway), challenger(gateway)
    student.reply = says(new, "refund" if "postgresql" in database_url else "nonsense")
    ended = 'retort_canary_ended_total{outcome="rolled_back",task="triage"}'
    before = gateway.metric(ended)
    begin(gateway, new)
    wait_until(lambda: shown(other) is not None)
    number = 0

    def gone() -> bool:
        nonlocal number
        number += 1
        converse(gateway if number % 2 else other, number)
        return shown(gateway) is None

    wait_until(gone, 20)
    wait_until(lambda: shown(other) is None)
    assert state(gateway.store, new) == "rejected" and live_bundle(gateway) == old
    for one in (gateway, other):
        assert {converse(one, n) for n in range(20)} == {(old, "student")}
    assert gateway.metric(ended) == before + 1
    assert gateway.metric('retort_canary_share_ratio{task="triage"}') == 0


@pytest.mark.slow
def test_a_good_canary_becomes_the_champion(serving: Start, challenger: Promote) -> None:
    steps = HALF | {"max_requests": 6}
    gateway = serving(canary=steps, sections=QUICK)
    new = challenger(gateway)
    begin(gateway, new)
    number = 0

    def promoted() -> bool:
        nonlocal number
        number += 1
        converse(gateway, number)
        return live_bundle(gateway) == new

    wait_until(promoted, 20)
    assert state(gateway.store, new) == "champion"


@pytest.mark.slow
def test_a_gateway_that_cannot_reach_the_canary_sends_it_nothing(
    serving: Start, challenger: Promote, student: FakeOpenAI
) -> None:
    gateway = serving(canary=HALF, sections=QUICK)
    old, new = live_bundle(gateway), challenger(gateway)
    student.reply = says(new, "parcel", status=500)
    table.start(gateway.store, new, gateway.config.task().canary)

    def missing() -> bool:
        return "canary of triage" in gateway.json("/readyz")[1]["problems"]

    wait_until(missing)
    assert {converse(gateway, number) for number in range(20)} == {(old, "student")}
    student.reply = Reply(text="parcel", logprob=SURE)
    wait_until(lambda: shown(gateway) is not None and not missing())
