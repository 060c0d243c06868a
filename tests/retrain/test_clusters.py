"""Fallbacks are grouped by what they ask, the dearest group first."""

from datetime import timedelta

import pytest
from store_process import TASK, exchange

from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import utcnow
from retrain.clusters import Fallback, clusters, fallbacks


def fallback(prompt: str, usd: float | None, reason: str = "unsure") -> Fallback:
    return Fallback(prompt=prompt, reason=reason, teacher_usd=usd, student_usd=0.1)


def test_groups_are_told_apart_and_the_dearest_comes_first() -> None:
    rows = [fallback(f"where is my parcel number {n}", 1.0, "ood") for n in range(30)]
    rows += [fallback(f"refund the card charge of {n} dollars", 5.0) for n in range(20)]
    dear, cheap = clusters(rows, groups=2)
    assert (dear.rows, dear.share, dear.usd) == (20, 0.4, 100.0)
    assert dear.saving_usd == pytest.approx(98.0)
    assert {"refund", "card"} <= set(dear.words) and "parcel" in cheap.words
    assert cheap.reasons == {"ood": 1.0}
    assert "parcel" in cheap.example


def test_unknown_prices_are_no_free_calls() -> None:
    (only,) = clusters([fallback("a question", None)] * 3)
    assert (only.rows, only.usd, only.saving_usd) == (3, None, None)
    assert clusters([]) == []


def test_only_what_a_better_student_would_change_counts(store: Store) -> None:
    lines = []
    rows = []
    for name, reason, route, days in (
        ("a", "unsure", "teacher", 1),
        ("b", "ood", "teacher", 40),
        ("c", "forced", "teacher", 1),
        ("d", "trusted", "student", 1),
        ("e", "student_error", "teacher", 1),
    ):
        at = utcnow() - timedelta(days=days)
        rows.append(exchange(name, reason=reason, route=route, at=at))
        lines.append(
            Line(
                id=name,
                task=TASK,
                route=route,
                reason=reason,
                status=200,
                duration_ms=1.0,
                teacher_usd=0.5,
                student_usd=0.25,
            )
        )
    store.insert([*rows, *lines])
    (found,) = fallbacks(store, TASK, 30)
    assert (found.reason, found.teacher_usd, found.student_usd) == ("unsure", 0.5, 0.25)
    assert len(fallbacks(store, TASK, 60)) == 2
