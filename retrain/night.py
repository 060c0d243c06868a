"""The steps of one night, each a method that returns what it found; `retrain.nightly` orders them.

What a step hands on is either its small output or a file in the run directory: the rows, the
adapter, the router. So any step can be the first one after a crash.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.canaries import table
from gateway.config import Config, Task, Training
from gateway.errors import BundleError
from gateway.lane import output_spec
from gateway.prompt import prompt_hash
from gateway.storage import bundles, exchanges
from gateway.storage.store import Store
from retrain.assess import Asker, Routing, contender, fit, routing, teachers, uncorrected
from retrain.errors import NightError
from retrain.evaluate import Report, evaluate
from retrain.gate import Verdict, decide, decide_first
from retrain.harvest import Harvest, harvest
from retrain.lineage import Opponent, find_opponent, record_evaluation
from retrain.promote import ensure_loaded, probe_adapter, promote_bundle, read_registered, unload
from retrain.report import NightReport, write_report
from retrain.review import label_error
from retrain.runs import NightRun
from retrain.splits import Split
from retrain.train import Row, TrainReport
from retrain.vectors import embedder_for, load_router
from retrain.versions import Example, Version, forget, freeze, read_examples
from router import artifact
from router.decision import Answer
from router.output import OutputSpec, label_of, learn
from router.router import Router

#: Prompts the probe asks.
PROBES = 8


class Trainer(Protocol):
    """What `retrain.train.train_adapter` does; tests pass something faster."""

    def __call__(
        self,
        rows: Sequence[Row],
        *,
        base_model: Path,
        out: Path,
        training: Training,
        progress: bool = True,
        done: Callable[[int, float], None] | None = None,
    ) -> TrainReport: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """``error``: why the adapter must not serve; None: it answers, and not as the base model."""

    asked: int = 0
    changed: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Agreement on all test rows, of the challenger and of the champion if there is one."""

    challenger: Report
    champion: Report | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibrated:
    """What each would serve of the sampled test rows; ``calibration``: rows behind the
    challenger's certificate."""

    challenger: Routing
    champion: Routing | None = None
    calibration: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``live``: whether the gateway that was to be watched serves the bundle; None: not watched."""

    bundle: str
    promoted: bool
    note: str = ""
    live: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    config: Config
    task: Task
    store: Store
    run: NightRun
    progress: bool = True

    @property
    def rows(self) -> Path:
        return self.run.folder / "rows"

    @property
    def adapter_dir(self) -> Path:
        return self.run.folder / "adapter"

    @property
    def router_dir(self) -> Path:
        return self.run.folder / "router"

    @property
    def asker(self) -> Asker:
        folder = self.config.state / "answers"
        return Asker(config=self.config, task=self.task, folder=folder, progress=self.progress)

    def harvest(self) -> Harvest:
        # what clients deleted since, for the gateway cannot reach these copies
        forget(self.config.state, exchanges.erased(self.store, self.task.name))
        return harvest(
            self.store,
            self.task.name,
            output_spec(self.task.output),
            owner=self.run.id,
            lease_s=self.config.nightly.lease_s,
        )

    def tainted(self) -> bool:
        """Whether the champion was made with rows that were erased since."""
        champion = bundles.champion(self.store, self.task.name)
        return champion is not None and champion.tainted

    def too_few(self, harvested: Harvest, wanted: int) -> Verdict:
        return Verdict(
            kind="not_enough_evidence",
            reasons=(f"{harvested.waiting} new usable rows; a night needs {wanted}",),
            rows_needed=wanted - harvested.waiting,
        )

    def unreviewed(self) -> Verdict | None:
        """Why people's reviews of the teacher's answers forbid to train on them."""
        rules = self.config.nightly
        if rules.min_reviewed == 0 and rules.max_label_error is None:
            return None
        found = label_error(self.store, self.task.name)
        if found.n < rules.min_reviewed:
            missing = rules.min_reviewed - found.n
            reason = f"{found.n} of the teacher's answers were reviewed, not {rules.min_reviewed}"
            return Verdict(kind="not_enough_evidence", reasons=(reason,), rows_needed=missing)
        if rules.max_label_error is None or found.low <= rules.max_label_error:
            return None
        reason = (
            f"the teacher was wrong in {found.wrong} of {found.n} reviewed answers, so in at least "
            f"{found.low:.1%} of all; {rules.max_label_error:.1%} are allowed"
        )
        return Verdict(kind="hold", reasons=(reason,), blocks=(reason,))

    def freeze(self, max_rows: int | None) -> Version:
        return freeze(self.store, self.task, self.rows, max_rows=max_rows)

    def train(self, train: Trainer) -> TrainReport:
        """Always from the frozen base model, on all rows: errors of one night do not pile up in
        the next, and what was erased is gone."""
        if not self.config.training.base_model:
            raise NightError("training.base_model is not set in the configuration")
        return train(
            [Row(messages=row.messages, answer=row.answer) for row in self._examples("train")],
            base_model=Path(self.config.training.base_model).expanduser(),
            out=self.adapter_dir,
            training=self.config.training,
            progress=self.progress,
            done=lambda step, loss: self.run.log(step=step, loss=loss),
        )

    def opponent(self) -> Opponent:
        found = find_opponent(
            self.store,
            self.task.name,
            prompt_hash(self.task.prompt),
            self.run.id,
            embedder_for(self.task),
        )
        self.run.note(champion=found.id)
        return found

    @contextmanager
    def candidate(self, trained: TrainReport) -> Iterator[str]:
        """The name of the adapter while it has no bundle; unloaded at the end, whatever came. The
        bundle's own name holds a hash over the router, which is fitted on this one's answers."""
        name = f"{self.task.name}-candidate-{trained.adapter_sha256[:12]}"
        try:
            yield name
        finally:
            with suppress(BundleError):  # the server may be gone, and with it the adapter
                unload(self.config.student.base_urls[0], name)

    def probe(self, adapter: str) -> Probed:
        """On a server that will serve: vLLM can load an adapter and answer as the base."""
        ensure_loaded(self.config.student.base_urls[0], adapter, self.adapter_dir)
        prompts = [row.messages for row in self._examples("train")[:PROBES]]
        try:
            found = probe_adapter(self.config, adapter, prompts)
        except BundleError as error:
            return Probed(asked=len(prompts), error=str(error))
        return Probed(asked=found.asked, changed=found.changed)

    def unfit(self, error: str) -> Verdict:
        return Verdict(kind="reject", reasons=(error,), blocks=(error,))

    def evaluate(self, adapter: str, opponent: Opponent) -> Evaluated:
        test, spec = self._examples("test"), self._spec()
        judged_by = teachers(test), [row.gold for row in test], uncorrected(test)
        champion = self._champion_answers(opponent, test)
        return Evaluated(
            challenger=evaluate(spec, self._answers(adapter, test), *judged_by),
            champion=None if champion is None else evaluate(spec, champion, *judged_by),
        )

    def recalibrate(self, adapter: str, opponent: Opponent) -> Recalibrated:
        """OOD gate, score and certificate belong to one student; a new one gets new ones."""
        test = self._examples("test")
        calibration = [row for row in self._examples("calibration") if row.sampled]
        router = fit(
            self.task,
            output_spec(self.task.output),
            self._examples("train"),
            calibration,
            self._answers(adapter, calibration),
            seed=self.config.training.seed,
        )
        artifact.save(router, self.router_dir)
        champion = self._champion_answers(opponent, test)
        return Recalibrated(
            challenger=routing(router, test, self._answers(adapter, test)),
            champion=None
            if champion is None
            else routing(self._champion_router(opponent), test, champion),
            calibration=len(calibration),
        )

    def gate(self, adapter: str, opponent: Opponent) -> Verdict:
        test, spec = self._examples("test"), self._spec()
        router = load_router(self.router_dir, self.task)
        challenger = contender(spec, router, test, self._answers(adapter, test))
        champion = self._champion_answers(opponent, test)
        if champion is None:
            verdict = decide_first(challenger, probe_error=None)
        else:
            verdict = decide(
                contender(spec, self._champion_router(opponent), test, champion),
                challenger,
                challenge=opponent.challenge,
                alpha=self.config.nightly.alpha,
                margin=self.config.nightly.margin,
                max_disagreement=self.task.contract.max_disagreement,
                labels=[label_of(spec, row.answer) for row in test],
                tainted=opponent.tainted,
            )
        self.run.note(verdict=verdict.kind)
        return verdict

    def promote(
        self,
        adapter: str,
        data: Version,
        opponent: Opponent,
        scores: Evaluated,
        verdict: Verdict,
        gateway_url: str | None,
        allowed: bool,
    ) -> Outcome:
        """Write and register the bundle whatever the verdict; move the pointer only on promote."""
        files = bundles.write_bundle(
            self.config.state / "bundles",
            task=self.task.name,
            adapter_dir=self.adapter_dir,
            router_dir=self.router_dir,
            base_model=Path(self.config.training.base_model).name,
            prompt_hash=prompt_hash(self.task.prompt),
            dataset_id=data.id,
            detail={"run": self.run.id, "verdict": verdict.kind},
        )
        self.asker.adopt(adapter, files.id)
        summary = {"verdict": verdict.kind, "agreement": scores.challenger.agreement.share}
        bundles.register(self.store, files, opponent.id, self.run.id, summary)
        record_evaluation(self.store, files.id, data.id, scores.challenger)
        if opponent.id is not None and scores.champion is not None:
            record_evaluation(self.store, opponent.id, data.id, scores.champion)
        if verdict.kind == "reject":
            bundles.reject(self.store, files.id, verdict.reasons[0])
        if verdict.kind != "promote":
            return Outcome(bundle=files.id, promoted=False)
        if not allowed:
            return Outcome(bundle=files.id, promoted=False, note="promotion was not asked for")
        now = bundles.champion(self.store, self.task.name)
        if now is not None and now.id not in (opponent.id, files.id) and not opponent.why:
            return Outcome(
                bundle=files.id,
                promoted=False,
                note=f"{now.id} became champion meanwhile, and was not compared with",
            )
        canary = self.task.canary.enabled and now is not None and now.id != files.id
        if canary and not opponent.tainted and not opponent.why:
            return self._canary(files.id, verdict)
        live = promote_bundle(
            self.config,
            self.store,
            files.id,
            detail=verdict.reasons[0],
            gateway_url=gateway_url,
            probes=[row.messages for row in self._examples("train")[:PROBES]],
        )
        return Outcome(
            bundle=files.id,
            promoted=True,
            note="" if live else f"{gateway_url} does not serve it yet; its /readyz says why",
            live=None if gateway_url is None else live,
        )

    def _canary(self, bundle: str, verdict: Verdict) -> Outcome:
        """Its share of the traffic, and no more yet."""
        running = table.running(self.store, self.task.name)
        if running is not None and running.bundle != bundle:
            note = f"the canary of {running.bundle} still runs, so none was begun"
            return Outcome(bundle=bundle, promoted=False, note=note)
        promote_bundle(
            self.config,
            self.store,
            bundle,
            detail=verdict.reasons[0],
            probes=[row.messages for row in self._examples("train")[:PROBES]],
            canary=True,
        )
        share = self.task.canary.steps[0]
        note = f"its canary has begun, on {share:.0%} of the traffic (`retort bundles`)"
        return Outcome(bundle=bundle, promoted=False, note=note)

    def report(
        self,
        verdict: Verdict,
        *,
        harvest: Harvest,
        data: Version | None = None,
        trained: TrainReport | None = None,
        champion: Opponent | None = None,
        scores: Evaluated | None = None,
        routing: Recalibrated | None = None,
        outcome: Outcome | None = None,
    ) -> NightReport:
        """report.md and report.json in the run directory."""
        made = NightReport(
            run=self.run.id,
            task=self.task.name,
            folder=str(self.run.folder),
            verdict=verdict,
            bundle=None if outcome is None else outcome.bundle,
            promoted=outcome is not None and outcome.promoted,
            note=(outcome.note if outcome else "") or (champion.why if champion else ""),
            champion=None if champion is None else champion.id,
            harvest=harvest,
            data=data,
            trained=trained,
            challenger=None if scores is None else scores.challenger,
            champion_report=None if scores is None else scores.champion,
            routing=None if routing is None else routing.challenger,
            champion_routing=None if routing is None else routing.champion,
            max_disagreement=self.task.contract.max_disagreement,
            confidence=self.task.contract.confidence,
            seconds=self.run.seconds(),
        )
        write_report(made, self.run.folder)
        self.run.note(
            verdict=verdict.kind,
            bundle=made.bundle,
            promoted=made.promoted,
            reasons=list(verdict.reasons),
        )
        return made

    def _examples(self, split: Split) -> list[Example]:
        return read_examples(self.rows, split)

    def _spec(self) -> OutputSpec:
        """With what the task leaves open read off the teacher's answers."""
        return learn(output_spec(self.task.output), teachers(self._examples("train")))

    def _answers(self, adapter: str, rows: Sequence[Example]) -> list[Answer | None]:
        return self.asker.answers(adapter, self.adapter_dir, rows, "ask the new student")

    def _champion_answers(
        self, opponent: Opponent, rows: Sequence[Example]
    ) -> list[Answer | None] | None:
        if opponent.id is None:
            return None
        files = read_registered(self.store, opponent.id)
        return self.asker.answers(files.adapter, files.adapter_dir, rows, "ask the champion")

    def _champion_router(self, opponent: Opponent) -> Router:
        assert opponent.id is not None
        return load_router(read_registered(self.store, opponent.id).router_dir, self.task)
