"""The nights' outcomes, as metrics."""

from datetime import UTC, datetime, timedelta

from prometheus_client import REGISTRY

from gateway.storage import nights
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, Evaluation, Run

EVENING = datetime(2026, 11, 20, 22, tzinfo=UTC)


def add_night(store: Store, task: str, day: int, state: str, verdict: str | None) -> None:
    at = EVENING + timedelta(days=day)
    with store.session() as session:
        session.add(
            Run(
                id=f"{task}-{day}-{state}",
                task=task,
                kind="nightly",
                started_at=at,
                ended_at=None if state == "running" else at + timedelta(hours=1),
                state=state,
                verdict=verdict,
            )
        )
        session.commit()


def add_evaluation(store: Store, task: str, bundle: str, state: str, agreement: float) -> None:
    with store.session() as session:
        at = EVENING + timedelta(minutes=len(bundle))
        session.add(
            Bundle(id=f"{task}-{bundle}", task=task, at=at, state=state, path="-", adapter="-")
        )
        session.flush()
        session.add(
            Evaluation(
                bundle_id=f"{task}-{bundle}",
                dataset_id="d",
                at=at,
                n=100,
                agreement=agreement,
                agreement_low=0.0,
                agreement_high=1.0,
            )
        )
        session.commit()


def ended(task: str, verdict: str) -> float | None:
    labels = {"task": task, "verdict": verdict}
    return REGISTRY.get_sample_value("retort_night_timestamp_seconds", labels)


def agreement(task: str, who: str) -> float | None:
    return REGISTRY.get_sample_value("retort_night_agreement_ratio", {"task": task, "who": who})


def test_each_verdict_shows_when_its_last_night_ended(store: Store) -> None:
    for day, state, verdict in (
        (0, "done", "promote"),
        (1, "done", "hold"),
        (2, "done", "promote"),
        (3, "failed", "hold"),
        (4, "failed", None),
        (5, "running", None),
    ):
        add_night(store, "nights", day, state, verdict)
    add_night(store, "other", 6, "done", "hold")

    nights.show(store, "nights")

    assert ended("nights", "promote") == (EVENING + timedelta(days=2, hours=1)).timestamp()
    assert ended("nights", "hold") == (EVENING + timedelta(days=1, hours=1)).timestamp()
    assert ended("nights", "failed") == (EVENING + timedelta(days=4, hours=1)).timestamp()
    assert ended("nights", "reject") is None


def test_champion_and_challenger_show_their_last_evaluation(store: Store) -> None:
    add_evaluation(store, "judged", "a", "retired", 0.5)
    add_evaluation(store, "judged", "bb", "champion", 0.9)
    add_evaluation(store, "judged", "ccc", "rejected", 0.6)
    add_evaluation(store, "judged", "dddd", "candidate", 0.8)

    nights.show(store, "judged")

    assert agreement("judged", "champion") == 0.9
    assert agreement("judged", "challenger") == 0.8


def test_a_challenger_that_became_champion_is_no_challenger_any_more(store: Store) -> None:
    add_evaluation(store, "moved", "a", "candidate", 0.7)
    nights.show(store, "moved")
    with store.session() as session:
        session.get_one(Bundle, "moved-a").state = "champion"
        session.commit()

    nights.show(store, "moved")

    assert agreement("moved", "champion") == 0.7
    assert agreement("moved", "challenger") is None
