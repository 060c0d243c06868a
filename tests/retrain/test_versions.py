"""Dataset versions never change, and the same rows are the same version."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from night_world import collect, make_config, open_store
from sqlmodel import select

from gateway.config import Task
from gateway.lane import output_spec
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Dataset, DatasetRow, Exchange, State
from retrain.answers import answers_to, read_answers
from retrain.assess import teachers, uncorrected
from retrain.errors import LeakageError, NightError
from retrain.harvest import harvest
from retrain.splits import SPLITS, split_of
from retrain.versions import forget, freeze, read_examples
from router.decision import Answer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(make_config(tmp_path, "http://127.0.0.1:1/v1")) as opened:
        yield opened


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return make_config(tmp_path, "http://127.0.0.1:1/v1").tasks[0]


def take(store: Store, task: Task, count: int, seed: int = 1) -> None:
    collect(store, count, seed)
    harvest(store, "triage", output_spec(task.output), owner="night", lease_s=600.0)


def test_freezing_twice_is_the_same_version(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 120)
    first = freeze(store, task, tmp_path / "a")
    assert freeze(store, task, tmp_path / "b") == first
    for side in SPLITS:
        assert (tmp_path / "a" / f"{side}.jsonl").read_bytes() == (
            tmp_path / "b" / f"{side}.jsonl"
        ).read_bytes()
    with store.session() as session:
        assert [row.id for row in session.exec(select(Dataset))] == [first.id]


def test_members_are_on_their_side_and_in_the_dataset(
    store: Store, task: Task, tmp_path: Path
) -> None:
    take(store, task, 120)
    version = freeze(store, task, tmp_path)
    with store.session() as session:
        members = session.exec(
            select(DatasetRow, Exchange).join(Exchange, Exchange.id == DatasetRow.exchange_id)  # type: ignore[arg-type]
        ).all()
    assert len(members) == version.train + version.calibration + version.test
    for member, row in members:
        assert member.split == split_of(row.group_key)
        assert row.state == State.IN_DATASET
    assert exchanges.show(store, members[0][1].id)[1][-1].detail == version.id


def test_versions_are_cumulative(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 80)
    first = freeze(store, task, tmp_path / "a")
    take(store, task, 80, seed=2)
    second = freeze(store, task, tmp_path / "b")
    assert second.id != first.id
    for side in SPLITS:
        old = {row.id for row in read_examples(tmp_path / "a", side)}
        assert old <= {row.id for row in read_examples(tmp_path / "b", side)}


def test_erased_rows_are_not_in_the_next_version(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 80)
    first = freeze(store, task, tmp_path / "a")
    gone = read_examples(tmp_path / "a", "train")[0].id
    erasure = exchanges.erase(store, [gone])
    assert erasure.datasets == (first.id,)
    second = freeze(store, task, tmp_path / "b")
    assert second.id != first.id
    assert gone not in {row.id for row in read_examples(tmp_path / "b", "train")}


def test_forgotten_rows_leave_every_copy(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 80)
    rows = tmp_path / "runs" / "run-1" / "rows"
    freeze(store, task, rows)
    one, other = read_examples(rows, "test")[:2]
    answers = tmp_path / "answers" / "bundle.jsonl"
    answers_to(
        answers,
        [(row.id, row.messages) for row in (one, other)],
        lambda prompts: [Answer(text="refund") for _ in prompts],
    )
    assert forget(tmp_path, {one.id}) == 2
    assert one.prompt not in (rows / "test.jsonl").read_text()
    assert read_answers(answers).keys() == {other.id}
    assert forget(tmp_path, {one.id}) == 0


def test_examples_are_what_the_student_will_see(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 60)
    freeze(store, task, tmp_path)
    row = read_examples(tmp_path, "train")[0]
    assert row.messages == [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": row.prompt},
    ]
    assert row.answer in ("delivery", "refund", "account") and row.sampled


def test_training_rows_may_be_capped_and_held_out_ones_stay(
    store: Store, task: Task, tmp_path: Path
) -> None:
    take(store, task, 120)
    whole, some = (
        freeze(store, task, tmp_path / "a"),
        freeze(store, task, tmp_path / "b", max_rows=20),
    )
    assert (some.train, some.calibration, some.test) == (20, whole.calibration, whole.test)


def test_training_rows_like_held_out_ones_are_left_out_for_good(
    store: Store, task: Task, tmp_path: Path
) -> None:
    take(store, task, 120)
    with store.session() as session:
        rows = session.exec(select(Exchange)).all()
        test = next(row for row in rows if split_of(row.group_key) == "test")
        train = next(row for row in rows if split_of(row.group_key) == "train")
        train.prompt = test.prompt + "!"
        train.body = {"messages": [{"role": "user", "content": train.prompt}]}
        session.add(train)
        session.commit()
    version = freeze(store, task, tmp_path)
    assert version.left_out == 1 and train.id in version.example
    assert train.id not in {row.id for row in read_examples(tmp_path, "train")}
    row, events = exchanges.show(store, train.id)
    assert row.state == State.REJECTED and events[-1].detail.startswith("leaks into")


def test_widespread_leakage_fails_the_run(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 60)
    with store.session() as session:
        for row in session.exec(select(Exchange)):
            row.body = {"messages": [{"role": "user", "content": "the very same question"}]}
            row.prompt = "the very same question"
            session.add(row)
        session.commit()
    with pytest.raises(LeakageError, match="near-duplicates of held-out ones"):
        freeze(store, task, tmp_path)


def test_a_template_that_swallows_the_traffic_is_named(
    store: Store, task: Task, tmp_path: Path
) -> None:
    take(store, task, 60)
    with store.session() as session:
        for row in session.exec(select(Exchange)):
            row.group_key = "one"
            session.add(row)
        session.commit()
    with pytest.raises(NightError, match="user_regex"):
        freeze(store, task, tmp_path)


def test_nothing_to_train_on_is_said(store: Store, task: Task, tmp_path: Path) -> None:
    with pytest.raises(NightError, match="no rows to train on"):
        freeze(store, task, tmp_path)


def test_only_the_newest_held_out_rows_are_kept(store: Store, task: Task, tmp_path: Path) -> None:
    take(store, task, 120)
    version = freeze(store, task, tmp_path, max_held_out=5)
    assert (version.calibration, version.test) == (5, 5)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(NightError, match=r"train.jsonl: cannot be read"):
        read_examples(tmp_path, "train")
    with pytest.raises(NightError, match=r"test.jsonl: cannot be read"):
        read_examples(tmp_path, "test")


def test_corrections_are_what_is_learned_and_measured_by(
    store: Store, task: Task, tmp_path: Path
) -> None:
    take(store, task, 120)
    before = freeze(store, task, tmp_path / "one")
    wrong = next(row for row in read_examples(tmp_path / "one", "test") if row.answer != "refund")
    with store.transaction() as session:
        row = session.get(Exchange, wrong.id)
        assert row is not None
        row.correction = "refund"
    assert freeze(store, task, tmp_path / "two").id != before.id
    test = read_examples(tmp_path / "two", "test")
    (right,) = (row for row in test if row.id == wrong.id)
    assert (right.answer, right.gold) == ("refund", "refund")
    assert (right.corrected, right.teacher) == (True, wrong.answer)
    said = uncorrected(test)
    assert [a for a, b in zip(said, teachers(test), strict=True) if a != b] == [wrong.answer]
    # withdrawn from a row that has no other answer: not trained on before it is judged again
    with store.transaction() as session:
        row = session.get(Exchange, wrong.id)
        assert row is not None
        row.correction = row.teacher_text = None
    freeze(store, task, tmp_path / "three")
    assert wrong.id not in {row.id for row in read_examples(tmp_path / "three", "test")}
