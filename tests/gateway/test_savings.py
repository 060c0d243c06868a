"""What distilling saves once everything is charged. Every sum is worked out by hand beside it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import SQLModel

from gateway.config import Config
from gateway.money.savings import Plan, Sums, account, together, usd
from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import Run
from retrain.cli import main

SINCE = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL = SINCE + timedelta(days=10)
REFERENCE = Plan(
    calls=2_000_000,
    teacher_tokens=(2200, 300),
    teacher_price=(2.5, 10),
    student_tokens=(250, 300),
    student_price=(0.10, 0.30),
)
CALLS = ["--calls", "2000000", "--teacher-tokens", "2200/300", "--teacher-price", "2.5/10"]
STUDENT = ["--student-tokens", "250/300", "--student-price", "0.10/0.30"]


# -- a plan


def test_the_reference() -> None:
    """(2200 * 2.5 + 300 * 10) / 1e6 = 0.0085 a call, (250 * 0.1 + 300 * 0.3) / 1e6 = 0.000115."""
    sums = REFERENCE.sums()
    assert sums.all_teacher_usd == pytest.approx(17_000)
    assert sums.paid_usd == pytest.approx(230)
    assert sums.times_cheaper == pytest.approx(73.913, abs=0.001)


def test_the_honest_one_with_a_tenth_of_fallback() -> None:
    """The student is asked every time: 230 + 0.1 * 17,000 = 1,930; 17,000 / 1,930 = 8.808."""
    sums = replace(REFERENCE, fallback=0.1).sums()
    assert sums.paid_usd == pytest.approx(1_930)
    assert sums.times_cheaper == pytest.approx(8.808, abs=0.001)
    assert sums.coverage == pytest.approx(0.9)
    # 230 of 17,000: below that share the drafts alone cost more than they save
    assert sums.break_even_coverage == pytest.approx(230 / 17_000)


def test_audits_hardware_and_training_are_charged() -> None:
    plan = replace(
        REFERENCE, fallback=0.1, audit=0.02, gpu_hour_usd=2.5, gpus=2, hours=730, training_usd=50
    )
    sums = plan.sums()
    # 2 % of the 90 % that the student answers, asked of the teacher again: 306
    assert sums.audit_usd == pytest.approx(306)
    # by the hour it costs nothing by the token
    assert (sums.student_usd, sums.hardware_usd) == (0.0, 2.5 * 2 * 730)
    assert sums.paid_usd == pytest.approx(1_700 + 306 + 3_650 + 50)
    assert sums.saved_usd == pytest.approx(17_000 - 5_706)
    # at coverage c: saved 17,000 c, audits 340 c, fixed 3,700
    assert sums.break_even_coverage == pytest.approx(3_700 / (17_000 - 340))
    # a request saves 0.9 * 0.0085 * 0.98
    assert sums.break_even_requests == pytest.approx(3_700 / (0.9 * 0.0085 * 0.98))
    assert sums.verdict() == "Distilling pays: $11,294 of $17,000 saved (66.4%), 3.0 times cheaper."


def test_at_the_break_even_nothing_is_saved_and_nothing_lost() -> None:
    plan = replace(REFERENCE, audit=0.05, gpu_hour_usd=1.0, hours=1000, training_usd=10)
    at = replace(plan, fallback=0.4).sums().break_even_coverage
    assert at is not None
    assert replace(plan, fallback=1 - at).sums().saved_usd == pytest.approx(0, abs=1e-6)
    calls = replace(plan, fallback=0.4).sums().break_even_requests
    assert calls is not None
    few = replace(plan, fallback=0.4, calls=round(calls)).sums()
    assert few.saved_usd == pytest.approx(0, abs=0.01)


def test_it_is_said_when_distilling_does_not_pay() -> None:
    little = replace(REFERENCE, calls=20_000, gpu_hour_usd=2.5, hours=730)
    sums = little.sums()
    assert sums.saved_usd == pytest.approx(170 - 1_825)
    assert sums.verdict() == (
        "Distilling does not pay: it costs $1,655 more than the teacher alone, and with this "
        "traffic it would at no coverage: the student costs $1,825."
    )
    hard = replace(REFERENCE, student_price=(10, 10), fallback=0.8).sums()
    # 11,000 of 17,000 for the drafts
    assert hard.verdict() == (
        "Distilling does not pay: it costs $7,600 more than the teacher alone; it would from "
        "64.7% coverage on (now 20.0%)."
    )
    assert "Nothing can be compared" in Sums().verdict()


def test_the_examples_of_the_page_are_right() -> None:
    page = (Path(__file__).parents[2] / "docs/savings.md").read_text()
    fallback = replace(REFERENCE, fallback=0.1)
    audited = replace(fallback, audit=0.02)
    hours = replace(audited, gpu_hour_usd=2.5, hours=730)
    shown = re.findall(r"\| ([0-9.]+) × \|", page)
    assert shown == [
        f"{plan.sums().times_cheaper:.1f}" for plan in (REFERENCE, fallback, audited, hours)
    ]
    few = replace(hours, calls=20_000).sums()
    assert f"costs {usd(few.paid_usd)} instead of {usd(few.all_teacher_usd)}" in page
    assert audited.sums().verdict() in page


def test_dollars_are_readable() -> None:
    shown = [usd(x) for x in (17_000, 1930.4, 12.345, 0.965, 0.0000123, 0, -1655.2)]
    assert shown == ["$17,000", "$1,930", "$12.35", "$0.965", "$0.0000123", "$0", "-$1,655"]


# -- the ledger


@pytest.fixture
def write(store: Store) -> Callable[..., None]:
    """``write(rows)``: into the store."""

    def run(*rows: SQLModel | Line) -> None:
        store.insert(rows)

    return run


def line(id: str, route: str, **more: Any) -> Line:
    known: dict[str, Any] = {
        "task": "triage",
        "reason": "x",
        "status": 200,
        "duration_ms": 1.0,
        "at": SINCE + timedelta(hours=24),
    }
    return Line(id=id, route=route, **(known | more))


def student(id: str, **more: Any) -> Line:
    known = {
        "student_usd": 0.01,
        "teacher_usd": 0.0,
        "cost_usd": 0.01,
        "teacher_cost_usd": 1.0,
        "estimated": True,
        "student_ms": 100.0,
    }
    return line(id, "student", **(known | more))


def teacher(id: str, **more: Any) -> Line:
    known = {
        "student_usd": 0.01,
        "teacher_usd": 2.0,
        "cost_usd": 2.01,
        "teacher_cost_usd": 2.0,
        "student_ms": 50.0,
    }
    return line(id, "teacher", **(known | more))


def audit(of: str, usd: float | None, **more: Any) -> Line:
    known = {"kind": "audit", "parent": of, "student_usd": 0.0, "teacher_usd": usd, "cost_usd": usd}
    return line(f"{of}-audit", "teacher", **(known | more))


def test_the_account_of_a_period(store: Store, write: Callable[..., None]) -> None:
    write(
        *(student(f"s{k}") for k in range(4)),
        teacher("t1"),
        # it says what one of the four would have cost: 1.5 and not 1
        audit("s0", 1.5),
        line("j1", "teacher", kind="judge", teacher_usd=0.25),
        line("l1", "teacher", kind="label", teacher_usd=0.5),
        line("u1", "teacher", task="-", teacher_usd=3.0, cost_usd=3.0, teacher_cost_usd=3.0),
        # outside the period
        student("old", at=SINCE - timedelta(seconds=1)),
        student("new", at=UNTIL),
    )
    found = account(store, Config(), SINCE, UNTIL)
    assert list(found.tasks) == ["triage", "-"]
    sums = found.tasks["triage"]
    assert (sums.requests, sums.answered, sums.served, sums.audits) == (5, 5, 4, 1)
    assert sums.student_usd == pytest.approx(0.05)
    assert sums.teacher_usd == pytest.approx(2.0)
    assert (sums.audit_usd, sums.judge_usd, sums.label_usd) == (1.5, 0.25, 0.5)
    assert sums.all_teacher_usd == pytest.approx(4 * 1.0 + 0.5 + 2.0)
    assert sums.estimated_usd == pytest.approx(3.0)
    assert sums.saved_usd == pytest.approx(6.5 - 4.3)
    assert sums.coverage == 0.8
    assert found.total.paid_usd == pytest.approx(4.3 + 3.0)
    assert found.total.saved_usd == pytest.approx(sums.saved_usd)
    assert sums.usd_per_1000 == pytest.approx(1000 * 4.3 / 5)


def test_what_is_unknown_is_left_out_and_said(store: Store, write: Callable[..., None]) -> None:
    write(
        student("s1"),
        # its price is unknown: what it saved is unknown as well
        student("s2", student_usd=None, cost_usd=None),
        # paid, and nothing to compare it with
        student("s3", teacher_cost_usd=None),
        # the teacher broke off: the draft is paid all the same
        teacher("t1", teacher_usd=None, cost_usd=None, teacher_cost_usd=None, status=502),
        audit("s1", None),
        audit("s2", 1.5),
    )
    sums = account(store, Config(), SINCE, UNTIL).tasks["triage"]
    assert (sums.requests, sums.answered, sums.unknown) == (4, 3, 2)
    assert (sums.priced, sums.compared) == (2, 1)
    assert sums.student_usd == pytest.approx(0.03)
    assert sums.all_teacher_usd == pytest.approx(1.0)
    assert (sums.audits, sums.audits_unknown, sums.audit_usd) == (2, 1, 1.5)


def test_hours_of_hardware_are_shared_as_the_student_was_busy(
    store: Store, write: Callable[..., None]
) -> None:
    start = SINCE + timedelta(days=2)
    write(
        student("a1", at=start, student_ms=300.0),
        student("b1", at=start + timedelta(hours=1), task="other", student_ms=100.0),
        line("u1", "teacher", task="-", at=start + timedelta(hours=1)),
    )
    config = Config.model_validate({"student": {"price": {"gpu_hour_usd": 2.0, "gpus": 3}}})
    found = account(store, config, SINCE, UNTIL)
    # from the first request on: 8 of the 10 days
    assert found.hours == pytest.approx(192)
    assert found.total.hardware_usd == pytest.approx(192 * 2 * 3)
    assert found.tasks["triage"].hardware_usd == pytest.approx(192 * 6 * 0.75)
    assert found.tasks["other"].hardware_usd == pytest.approx(192 * 6 * 0.25)
    assert found.tasks["-"].hardware_usd == 0.0


def test_hours_of_nights_are_charged_where_they_have_a_price(
    store: Store, write: Callable[..., None]
) -> None:
    def night(id: str, hours: float | None, **detail: Any) -> Run:
        ended = None if hours is None else SINCE + timedelta(hours=hours)
        return Run(
            id=id, task="triage", kind="nightly", started_at=SINCE, ended_at=ended, detail=detail
        )

    write(
        student("s1"),
        night("n1", 1.5),
        night("n2", 0.5),
        night("n3", None),
        night("n4", 24.0, error="died, and was not resumed"),
    )
    free = account(store, Config(), SINCE, UNTIL)
    assert (free.free_h, free.died, free.total.training_usd) == (2.0, 1, 0.0)
    config = Config.model_validate({"training": {"hour_usd": 3.0}})
    charged = account(store, config, SINCE, UNTIL)
    assert (charged.free_h, charged.total.training_usd) == (0.0, 6.0)
    assert charged.tasks["triage"].training_h == 2.0


def test_the_total_is_the_sum_of_the_tasks() -> None:
    parts = [Sums(requests=2), Sums(requests=3)]
    assert together(parts).requests == 5
    assert together([]) == Sums()


# -- the command


@pytest.fixture
def config(tmp_path: Path, store: Store, database_url: str) -> str:
    path = tmp_path / "retort.yaml"
    task = {"name": "triage", "claim": {"model": ["gpt-4.1"]}}
    store_section = {"url": database_url}
    state = str(tmp_path / "state")
    path.write_text(json.dumps({"state_dir": state, "store": store_section, "tasks": [task]}))
    return str(path)


def command(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["savings", *args]) == 0
    return capsys.readouterr().out


def test_the_calculator_needs_neither_configuration_nor_database(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = command(capsys, *CALLS, *STUDENT)
    assert "$17,000" in shown and "$230" in shown and "73.9 times cheaper" in shown
    assert "8.8 times cheaper" in command(capsys, *CALLS, *STUDENT, "--fallback", "0.1")
    found = json.loads(command(capsys, *CALLS, *STUDENT, "--fallback", "0.1", "--json"))
    assert found["paid_usd"] == pytest.approx(1930)
    assert found["verdict"].startswith("Distilling pays: $15,070 of $17,000")
    hours = command(capsys, *CALLS, "--gpu-hour", "2.5", "--gpus", "1", "--hours", "730")
    assert "$1,825" in hours
    both = command(capsys, *CALLS, *STUDENT, "--gpu-hour", "2.5")
    assert "not charged on top" in both and "$230" not in both
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--calls", "5"], "--teacher-tokens, --teacher-price, --student-tokens, --student-price"),
        ([*CALLS, "--student-tokens", "1/1"], "--calls needs --student-price as well"),
    ],
)
def test_a_calculation_that_lacks_figures_says_which(
    capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    assert main(["savings", *args]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--calls", "0"],
        ["--calls", "5", "--fallback", "1.5"],
        ["--calls", "5", "--teacher-price", "2.5"],
        ["--since", "yesterday"],
    ],
)
def test_figures_that_cannot_be_are_refused(args: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["savings", *args])
    assert end.value.code == 2


def test_the_account_is_printed_for_people_and_for_programs(
    config: str, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(*(student(f"s{k}") for k in range(4)), teacher("t1"), audit("s0", 1.5))
    write(line("u1", "teacher", task="-", teacher_usd=3.0, cost_usd=3.0, teacher_cost_usd=3.0))
    period = ["--config", config, "--since", "2026-11-01", "--until", "2026-11-11"]
    shown = command(capsys, *period)
    for said in ("task triage", "no task", "all together", "coverage 80.0%", "46% of it estimated"):
        assert said in shown, said
    # 6.5 without, 0.05 + 2 + 1.5 with
    assert "Distilling pays: $2.95 of $6.50 saved (45.4%), 1.8 times cheaper." in shown
    data = json.loads(command(capsys, *period, "--json", "--task", "triage"))
    assert list(data["tasks"]) == ["triage"]
    assert data["total"]["saved_usd"] == pytest.approx(2.95)
    assert data["total"]["estimated_share"] == pytest.approx(3 / 6.5)


def test_an_empty_ledger_is_no_error(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no request in this time" in command(capsys, "--config", config, "--days", "1")
