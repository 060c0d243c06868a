"""People look at a sample nobody picked; nights train only on a teacher that is right enough."""

import io
from collections import Counter
from pathlib import Path

import pytest
from night_world import StudentServer, WordTrainer, collect, make_config, open_store

from gateway.config import Claim, Output, Task
from gateway.storage import exchanges
from gateway.storage.store import Store
from retrain.nightly import run
from retrain.review import ask, label_error, sample, take

TRIAGE = Task(
    name="triage",
    claim=Claim(model=["m"]),
    output=Output(kind="label", labels=["delivery", "refund", "account"]),
)
#: a wrong answer for each right one
OTHER = {"delivery": "refund", "refund": "account", "account": "delivery"}


def test_every_kind_of_answer_is_in_the_sample_and_asking_twice_gives_the_same(
    store: Store,
) -> None:
    collect(store, 200)
    rows = sample(store, TRIAGE, 0.1)
    kinds = Counter(row.teacher_text for row in exchanges.find(store, "triage", limit=999))
    assert Counter(row.teacher_text for row in rows) == {
        kind: -(-count // 10) for kind, count in kinds.items()
    }
    assert [row.id for row in sample(store, TRIAGE, 0.1)] == [row.id for row in rows]
    # more of the same, and what was seen is not shown again
    seen = rows[:5]
    take(store, TRIAGE, {row.id: row.teacher_text or "" for row in seen})
    left = {row.id for row in sample(store, TRIAGE, 0.1)}
    assert left == {row.id for row in rows[5:]}


def test_the_error_of_the_teacher_has_an_interval_and_the_last_review_counts(store: Store) -> None:
    rows = exchanges.find(store, "triage", limit=0)
    assert label_error(store, "triage").n == 0
    collect(store, 60)
    rows = exchanges.find(store, "triage", limit=40)
    answers = {row.id: row.teacher_text or "" for row in rows}
    answers |= {row.id: OTHER[row.teacher_text or ""] for row in rows[:4]}
    done = take(store, TRIAGE, answers)
    assert (done.right, done.wrong) == (36, 4)
    found = label_error(store, "triage")
    assert (found.n, found.wrong) == (40, 4)
    assert found.low < 0.1 < found.high
    assert exchanges.show(store, rows[0].id)[0].correction == OTHER[rows[0].teacher_text or ""]
    # the reviewer thinks again
    take(store, TRIAGE, {rows[0].id: rows[0].teacher_text or ""})
    assert label_error(store, "triage").wrong == 3


def test_a_person_confirms_corrects_skips_and_stops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(store, 30)
    rows = sample(store, TRIAGE, 1.0)[:5]
    keys = io.StringIO("\ns\nrefund\nq\n")
    said: list[str] = []
    given = list(ask(rows, lambda _: keys.readline().removesuffix("\n"), said.append))
    assert given == [(rows[0].id, rows[0].teacher_text), (rows[2].id, "refund")]
    assert rows[0].prompt in said[1]


@pytest.mark.parametrize(
    ("rules", "wrong", "verdict"),
    [
        ({"min_reviewed": 30}, 0, "not_enough_evidence"),
        ({"max_label_error": 0.1}, 12, "hold"),
        ({"max_label_error": 0.1, "min_reviewed": 20}, 2, "promote"),
    ],
)
def test_a_night_does_not_train_on_a_teacher_that_is_shown_to_be_wrong(
    tmp_path: Path, rules: dict[str, float], wrong: int, verdict: str
) -> None:
    with StudentServer() as server:
        config = make_config(tmp_path, server.url, **rules)
        with open_store(config) as store:
            collect(store, 240)
            rows = sample(store, TRIAGE, 1.0)[:20]
            answers = {row.id: row.teacher_text or "" for row in rows}
            answers |= {row.id: OTHER[row.teacher_text or ""] for row in rows[:wrong]}
            take(store, TRIAGE, answers)
            trainer = WordTrainer()
            report = run(config, config.tasks[0], store, train=trainer, progress=False)
    assert report.verdict.kind == verdict, report.verdict.reasons
    assert (trainer.calls > 0) == (verdict == "promote")
