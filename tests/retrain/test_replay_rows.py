"""What is read of the ledger and the queue, on both databases."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import Exchange
from retrain.replay import Rows
from retrain.replay_rows import Logged, Period, Signal
from retrain.replay_tally import Tally
from router.output import OutputSpec
from router.threshold import REJECTED

AT = datetime(2026, 11, 20, tzinfo=UTC)
SPEC = OutputSpec(kind="label", labels=("parcel", "refund"), max_tokens=16)


def line(id: str, reason: str, **more: Any) -> Line:
    values: dict[str, Any] = {
        "task": "triage",
        "bundle": "b1",
        "route": "student" if reason == "trusted" else "teacher",
        "status": 200,
        "duration_ms": 1.0,
        "at": AT,
        "propensity": 0.2,
        "student_usd": 0.001,
        "teacher_cost_usd": 0.01,
        "student_ms": 40.0,
        "teacher_ms": None if reason == "trusted" else 600.0,
    }
    return Line(id=id, reason=reason, **(values | more))


def audit(id: str, loss: float, **more: Any) -> Line:
    values = {"kind": "audit", "parent": id, "route": "teacher", "teacher_ms": 700.0}
    return line(f"{id}-audit", "trusted", **(values | {"loss": loss, "teacher_usd": 0.02} | more))


def exchange(id: str, reason: str, **more: Any) -> Exchange:
    values: dict[str, Any] = {
        "at": AT,
        "task": "triage",
        "bundle": "b1",
        "route": "student" if reason == "trusted" else "teacher",
        "dedupe_key": id,
        "group_key": id,
        "prompt": "where is it",
        "body": {"messages": [{"role": "user", "content": "where is it"}]},
        "teacher_text": "parcel",
        "student_text": "parcel",
        "propensity": 0.2,
    }
    return Exchange(id=id, reason=reason, **(values | more))


def read(
    store: Store, rows: Sequence[Any], signal: Signal = "score", period: Period | None = None
) -> tuple[Rows, dict[str, int]]:
    store.insert(rows)
    logged = Logged(
        store=store,
        task="triage",
        bundle="b1",
        spec=SPEC,
        ood_epsilon=0.01,
        signal=signal,
        period=period or Period(),
    )
    chunks = list(logged)
    skipped = {why: n for why, n in logged.skipped.items() if n}
    assert len(chunks) == 1
    return chunks[0], skipped


def by_score(found: Rows) -> list[tuple[float, float, float, float]]:
    """(score, weight, loss, weight of the label), NaN shown as -9."""
    columns = zip(found.score, found.weight, found.loss, found.label_weight, strict=True)
    return sorted(tuple(float(np.nan_to_num(v, nan=-9.0)) for v in row) for row in columns)  # type: ignore[misc]


def test_served_rows_get_the_loss_of_their_audit_and_fallbacks_have_their_own(store: Store) -> None:
    found, skipped = read(
        store,
        [
            line("a", "trusted", score=0.9, sampled=True),
            audit("a", 1.0),
            line("b", "trusted", score=0.8),
            line("c", "unsure", score=0.3, loss=0.0),
            line("d", "ood", student_ms=None, student_usd=0.0),
            line("e", "invalid", score=0.7, loss=1.0),
        ],
    )
    assert skipped == {}
    assert by_score(found) == [
        (REJECTED, 1.0, -9.0, 1.0),
        (REJECTED, 1.0, 1.0, 1.0),
        (0.3, 1.0, 0.0, 1.0),
        (0.8, 1.0, -9.0, 0.0),
        (0.9, 1.0, 1.0, 5.0),
    ]
    served = found.score >= 0.8
    assert found.audited.tolist() == served.tolist()
    # the audit's word in the estimate's place, and its time; not known of the one not audited
    assert sorted(found.teacher_usd) == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.02])
    assert sorted(np.nan_to_num(found.teacher_ms[served], nan=0.0)) == [0.0, 700.0]
    # the one that was never asked waited for the teacher only
    assert sorted(found.student_ms) == [0.0, 40.0, 40.0, 40.0, 40.0]


def test_an_audit_that_is_not_home_yet_is_a_label_still_due(store: Store) -> None:
    found, _ = read(
        store,
        [
            line("a", "trusted", score=0.9, sampled=True),
            line("b", "trusted", score=0.9, sampled=True),
            audit("b", 0.0),
        ],
    )
    tally = Tally()
    tally.add(found)
    assert tally.curve().answered == pytest.approx(0.5)


def test_what_is_no_part_of_the_traffic_is_not_read(store: Store) -> None:
    others = [
        line("f", "forced", score=0.9),
        line("g", "cached"),
        line("h", "student_error"),
        line("i", "collect", bundle=None, propensity=None),
        line("j", "degraded", route="student", score=0.2),
        line("k", "unsure", score=0.2, loss=1.0, task="other"),
        line("l", "unsure", score=0.2, loss=1.0, bundle="b0"),
    ]
    found, _ = read(store, [*others, line("a", "unsure", score=0.5, loss=1.0)])
    assert by_score(found) == [(0.5, 1.0, 1.0, 1.0)]


def test_a_request_that_could_not_be_sampled_is_left_out_and_counted(store: Store) -> None:
    found, skipped = read(
        store,
        [
            line("a", "trusted", score=0.9, propensity=0.0),
            line("b", "unsure", score=0.4, loss=1.0, propensity=0.0),
            line("c", "unsure", score=0.5, loss=1.0),
        ],
    )
    assert by_score(found) == [(0.5, 1.0, 1.0, 1.0)]
    assert skipped == {"not to be sampled": 2}


def test_a_score_that_is_no_number_is_left_out_and_counted(store: Store) -> None:
    found, skipped = read(
        store,
        [
            line("a", "unsure", score=float("inf"), loss=0.0),
            line("b", "unsure", score=None, loss=None),
            line("c", "unsure", score=0.5, loss=0.0),
        ],
    )
    assert by_score(found) == [(0.5, 1.0, 0.0, 1.0)]
    assert skipped == {"a score that is not finite": 1, "no draft": 1}


def test_in_shadow_a_draft_is_judged_as_it_would_have_been(store: Store) -> None:
    """Every sampled request has one; what the gates would have stopped is never served."""
    shadow = {"propensity": 1.0, "sampled": True, "p_ood": 0.5}
    found, skipped = read(
        store,
        [
            line("a", "shadow", score=0.9, loss=0.0, **shadow),
            line("b", "shadow", score=0.8, loss=1.0, **(shadow | {"p_ood": 0.001})),
            line("c", "shadow", score=0.7, loss=1.0, **shadow),
            exchange("c", "shadow", student_text="something else"),
            line("d", "shadow", score=0.6, loss=1.0, **shadow),
            exchange("d", "shadow", check="pii"),
            line("e", "shadow", score=None, **shadow),
        ],
    )
    assert [row[0] for row in by_score(found)] == [REJECTED, REJECTED, REJECTED, 0.9]
    assert skipped == {"no draft": 1}


def test_where_drafts_are_made_of_sampled_requests_they_stand_for_the_others(store: Store) -> None:
    found, _ = read(
        store,
        [
            line("a", "alarm", score=0.9, loss=0.0, sampled=True, p_ood=0.5),
            line("b", "alarm", score=None, sampled=False, p_ood=0.5),
        ],
    )
    assert by_score(found) == [(0.9, 5.0, 0.0, 5.0)]


def test_another_signal_is_read_from_the_queue(store: Store) -> None:
    kept = {"seq": -0.5, "mean": -0.1, "margin": 0.0, "first": 0.7}
    stored = [
        line("a", "trusted", score=0.9, sampled=True),
        audit("a", 1.0),
        exchange("a", "trusted", score=0.9, sampled=True, loss=1.0, signals=kept),
        line("b", "trusted", score=0.8),
        line("c", "unsure", score=0.3, loss=0.0),
        exchange("c", "unsure", score=0.3, loss=0.0, signals=kept | {"margin": 2.0}, seen=3),
        line("d", "unsure", score=0.3, loss=0.0),
        exchange("d", "unsure", score=0.3, loss=0.0),
        line("e", "ood", student_ms=None),
        exchange("e", "ood", student_text=None),
    ]
    found, skipped = read(store, stored, "margin")
    assert skipped == {"no signals kept": 1}
    assert by_score(found) == [
        (REJECTED, 1.0, -9.0, 1.0),
        (pytest.approx(0.5), 5.0, 1.0, 5.0),
        (pytest.approx(1 / (1 + np.exp(-2.0))), 3.0, 0.0, 3.0),
    ]
    assert found.teacher_ms.tolist().count(700.0) == 1


@pytest.mark.parametrize("signal", ["length", "random"])
def test_signals_of_no_model_need_nothing_kept(store: Store, signal: Signal) -> None:
    stored = [
        line("a", "unsure", score=0.9, loss=1.0),
        exchange("a", "unsure", score=0.9, loss=1.0),
    ]
    found, skipped = read(store, stored, signal)
    assert len(found) == 1 and 0.0 <= found.score[0] < 1.0
    assert skipped == {}


def test_a_period_and_the_newest(store: Store) -> None:
    rows = [
        line(str(n), "unsure", score=n / 10, loss=0.0, at=AT + timedelta(hours=n)) for n in range(9)
    ]
    period = Period(since=AT + timedelta(hours=2), until=AT + timedelta(hours=7), limit=3)
    found, _ = read(store, rows, period=period)
    assert sorted(found.score) == [0.4, 0.5, 0.6]
