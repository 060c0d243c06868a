"""A night makes a student from the queue, and only proof moves the pointer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from night_world import StudentServer, WordTrainer, collect, make_config, open_store
from sqlmodel import select

from gateway.canaries import table
from gateway.config import CanarySection, Config
from gateway.errors import BundleError
from gateway.storage import bundles, exchanges
from gateway.storage.store import Store
from gateway.storage.tables import BundleState, Evaluation, Run, State
from retrain.errors import NightError, TrainingError
from retrain.nightly import run
from retrain.report import NightReport, read_report
from retrain.train import TrainReport

HALF = ("parcel", "money", "password", "courier")


class World:
    def __init__(self, folder: Path, server: StudentServer, config: Config, store: Store) -> None:
        self.folder, self.server, self.config, self.store = folder, server, config, store

    def night(self, train: Any = None, **options: Any) -> NightReport:
        return run(
            self.config,
            self.config.tasks[0],
            self.store,
            train=train or WordTrainer(),
            progress=False,
            **options,
        )

    def champion(self) -> str | None:
        found = bundles.champion(self.store, "triage")
        return None if found is None else found.id

    def runs(self) -> list[Run]:
        with self.store.session() as session:
            return list(session.exec(select(Run).order_by(Run.started_at)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with StudentServer() as server:
        config = make_config(tmp_path, server.url)
        with open_store(config) as store:
            yield World(tmp_path, server, config, store)


def test_the_first_night_makes_a_certified_champion(world: World) -> None:
    collect(world.store, 240)
    report = world.night()
    assert report.verdict.kind == "promote" and report.promoted
    assert world.champion() == report.bundle
    assert report.challenger is not None and report.challenger.agreement.share > 0.95
    assert report.routing is not None and report.routing.certificate is not None
    assert report.routing.prediction.served.share > 0.8
    assert world.server.adapters.keys() == {report.bundle}  # the candidate's name is gone
    counts = exchanges.counts(world.store, "triage")
    assert counts[State.CAPTURED] == counts[State.TRAINABLE] == counts[State.HELD_OUT] == 0
    assert counts[State.IN_DATASET] > 180


def test_everything_about_a_night_is_written_down(world: World) -> None:
    collect(world.store, 240)
    report = world.night()
    folder = Path(report.folder)
    assert read_report(folder) == report
    page = (folder / "report.md").read_text()
    assert "# triage: promote" in page and "It is the champion now." in page
    steps = json.loads((folder / "steps.json").read_text())
    assert list(steps) == sorted(
        ["harvest", "freeze", "train", "find the champion", "probe", "evaluate", "recalibrate",
         "gate", "promote"]
    )  # fmt: skip
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in losses] == [(1, 2.0), (2, 1.0)]
    (row,) = world.runs()
    assert (row.state, row.verdict, row.detail["bundle"]) == ("done", "promote", report.bundle)
    with world.store.session() as session:
        (evaluation,) = session.exec(select(Evaluation)).all()
    assert evaluation.bundle_id == report.bundle
    assert evaluation.agreement == report.challenger.agreement.share  # type: ignore[union-attr]


def test_a_better_student_replaces_the_champion(world: World) -> None:
    collect(world.store, 240)
    first = world.night(WordTrainer(blind=HALF))
    collect(world.store, 100, seed=2)
    second = world.night()
    assert second.verdict.kind == "promote"
    assert second.champion == first.bundle
    assert world.champion() == second.bundle != first.bundle
    assert second.verdict.challenge == 1
    assert second.champion_report is not None and second.challenger is not None
    assert second.champion_report.n == second.challenger.n  # the same rows
    assert second.data is not None and first.data is not None
    assert second.data.train > first.data.train  # cumulative


@pytest.mark.slow
def test_a_better_student_begins_as_a_canary_where_that_is_wanted(world: World) -> None:
    task = world.config.tasks[0].model_copy(update={"canary": CanarySection(enabled=True)})
    world.config = world.config.model_copy(update={"tasks": [task]})
    collect(world.store, 240)
    first = world.night(WordTrainer(blind=HALF))
    assert first.promoted  # nothing to be compared with
    collect(world.store, 100, seed=2)
    second = world.night()
    assert second.verdict.kind == "promote" and not second.promoted
    assert (
        "its canary has begun, on 1% of the traffic"
        in (Path(second.folder) / "report.md").read_text()
    )
    assert world.champion() == first.bundle
    canary = table.running(world.store, "triage")
    assert canary is not None and canary.bundle == second.bundle
    # one night later it still runs
    collect(world.store, 100, seed=3)
    third = world.night()
    assert third.verdict.kind == "promote" and third.bundle != second.bundle
    assert third.note == f"the canary of {second.bundle} still runs, so none was begun"
    assert table.running(world.store, "triage") == canary


def test_a_worse_student_is_rejected_and_the_champion_stays(world: World) -> None:
    collect(world.store, 240)
    first = world.night()
    collect(world.store, 100, seed=2)
    second = world.night(WordTrainer(blind=HALF))
    assert second.verdict.kind == "reject" and not second.promoted
    assert world.champion() == first.bundle
    states = {bundle.id: bundle.state for bundle in bundles.history(world.store, "triage")}
    assert states == {
        first.bundle: BundleState.CHAMPION,
        second.bundle: BundleState.REJECTED,
    }


def test_an_equal_student_is_not_promoted(world: World) -> None:
    collect(world.store, 240)
    first = world.night()
    collect(world.store, 60, seed=2)
    second = world.night()
    assert second.verdict.kind in ("hold", "not_enough_evidence")
    assert world.champion() == first.bundle


@pytest.mark.slow
def test_challenges_of_one_champion_share_one_error_budget(world: World) -> None:
    collect(world.store, 240)
    world.night()
    levels = []
    for seed in (2, 3):
        collect(world.store, 60, seed=seed)
        levels.append(world.night().verdict.level)
    assert levels[1] == pytest.approx(levels[0] / 4)


def test_the_champion_is_asked_each_row_once(world: World) -> None:
    collect(world.store, 240)
    first = world.night()
    before = len(world.server.chats)
    collect(world.store, 60, seed=2)
    world.night()
    asked = [body for body in world.server.chats[before:] if body["model"] == first.bundle]
    assert 0 < len(asked) < 40  # only the new test rows


def test_too_few_new_rows_end_the_night_early(world: World) -> None:
    collect(world.store, 6)
    trainer = WordTrainer()
    report = world.night(trainer)
    assert report.verdict.kind == "not_enough_evidence" and trainer.calls == 0
    assert "a night needs 10" in report.verdict.reasons[0]
    collect(world.store, 80, seed=2)  # they add up
    assert world.night(trainer).harvest.waiting > 10 and trainer.calls == 1


def test_force_trains_on_whatever_there_is(world: World) -> None:
    collect(world.store, 8)
    trainer = WordTrainer()
    report = world.night(trainer, force=True)
    assert trainer.calls == 1
    assert report.verdict.kind == "not_enough_evidence"
    assert "a first student is judged on 30 or more" in report.verdict.reasons[0]
    assert world.champion() is None


def test_without_enough_evidence_the_first_student_serves_nothing(world: World) -> None:
    collect(world.store, 240, sampled=False)
    report = world.night()
    assert report.verdict.kind == "promote"
    assert "sends everything to the teacher" in report.verdict.reasons[1]
    assert report.routing is not None and report.routing.certificate is None
    assert report.routing.evidence_needed > 0


def test_an_adapter_without_effect_is_rejected(world: World) -> None:
    class Idle(WordTrainer):
        def __call__(self, *args: Any, **options: Any) -> TrainReport:
            report = super().__call__(*args, **options)
            world.server.reply = "always the same"
            return report

    collect(world.store, 400)
    report = world.night(Idle())
    assert report.verdict.kind == "reject"
    assert "answers like v0" in report.verdict.reasons[0]
    assert world.champion() is None and report.bundle is None
    assert world.server.adapters == {}


def test_promotion_may_be_left_to_a_person(world: World) -> None:
    collect(world.store, 240)
    report = world.night(promote=False)
    assert report.verdict.kind == "promote" and not report.promoted
    assert world.champion() is None
    (bundle,) = bundles.history(world.store, "triage")
    assert (bundle.id, bundle.state) == (report.bundle, BundleState.CANDIDATE)


def test_a_night_that_failed_goes_on_at_the_failed_step(world: World) -> None:
    collect(world.store, 240)
    trainer = WordTrainer()
    world.server.broken = 500
    with pytest.raises((BundleError, NightError)):
        world.night(FailingOnce(trainer, world.server))
    (row,) = world.runs()
    assert (row.state, row.step) == ("failed", "train") and "no memory" in row.detail["error"]
    report = world.night(trainer)
    assert report.promoted and trainer.calls == 1
    assert report.run == row.id
    assert [row.state for row in world.runs()] == ["done"]


class FailingOnce:
    """Fails as training does; the world is whole again afterwards."""

    def __init__(self, trainer: WordTrainer, server: StudentServer) -> None:
        self.server = server

    def __call__(self, *args: Any, **options: Any) -> TrainReport:
        self.server.broken = None
        raise NightError("no memory")


def test_a_sick_student_server_fails_the_night_and_the_next_call_mends_it(world: World) -> None:
    collect(world.store, 240)
    trainer = WordTrainer()

    class Breaking(WordTrainer):
        def __call__(self, *args: Any, **options: Any) -> TrainReport:
            report = trainer(*args, **options)
            world.server.stop()
            return report

    with pytest.raises(BundleError, match="cannot be reached"):
        world.night(Breaking())
    assert world.champion() is None
    world.server.start()
    assert world.night(trainer).promoted
    assert trainer.calls == 1  # not trained again


def test_a_fresh_night_repeats_everything(world: World) -> None:
    def fail(*args: Any, **options: Any) -> TrainReport:
        raise TrainingError("no memory")

    collect(world.store, 240)
    with pytest.raises(TrainingError):
        world.night(fail)
    report = world.night(resume=False)
    assert report.promoted
    failed, done = world.runs()
    assert (failed.state, done.state) == ("failed", "done") and failed.id != done.id


def test_a_champion_of_another_prompt_contract_is_nothing_to_beat(world: World) -> None:
    collect(world.store, 240)
    first = world.night()
    task = world.config.tasks[0]
    prompt = task.prompt.model_copy(update={"system": "Another."})
    world.config = world.config.model_copy(
        update={"tasks": [task.model_copy(update={"prompt": prompt})]}
    )
    collect(world.store, 60, seed=2)
    second = world.night()
    assert second.promoted and world.champion() == second.bundle != first.bundle
    assert "another prompt contract" in second.note


def test_a_damaged_champion_is_nothing_to_beat(world: World) -> None:
    collect(world.store, 240)
    first = world.night()
    path = next((world.config.state / "bundles").rglob(f"{first.bundle}/adapter/*.safetensors"))
    path.write_text("{}")
    collect(world.store, 60, seed=2)
    second = world.night()
    assert second.promoted and "cannot serve" in second.note


def test_unusable_rows_are_counted_by_reason(world: World) -> None:
    collect(world.store, 240)
    collect(world.store, 40, seed=2, answer=lambda text: "")
    collect(world.store, 40, seed=3, answer=lambda text: None)
    report = world.night()
    assert report.harvest.rejected["no_answer"] == 40
    assert exchanges.counts(world.store, "triage")[State.CAPTURED] == 40  # may still be answered
    assert "| rejected: no answer | 40 |" in (Path(report.folder) / "report.md").read_text()


def test_what_was_erased_by_day_leaves_the_run_directories_by_night(world: World) -> None:
    ids = collect(world.store, 240)
    folder = Path(world.night().folder)

    def copies(row_id: str) -> int:
        paths = [*folder.glob("rows/*.jsonl"), *world.config.state.glob("answers/*.jsonl")]
        return sum(path.read_text().count(row_id) for path in paths)

    gone = next(row_id for row_id in ids if copies(row_id))
    exchanges.erase(world.store, [gone], "as the gateway does")
    assert copies(gone) > 0
    world.night()  # with nothing new to train on
    assert copies(gone) == 0
    assert any(copies(row_id) for row_id in ids)
