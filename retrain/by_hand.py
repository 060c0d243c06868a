"""Steps of the night on a bundle that is there already: evaluate anew, recalibrate its router."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from gateway.config import Config, Task
from gateway.errors import BundleError
from gateway.lane import output_spec
from gateway.prompt import prompt_hash
from gateway.storage import bundles
from gateway.storage.bundles import BundleFiles
from gateway.storage.store import Store
from retrain.assess import Asker, Routing, fit, routing, teachers, uncorrected
from retrain.evaluate import Report, Share, evaluate
from retrain.lineage import record_evaluation
from retrain.promote import read_registered
from retrain.vectors import load_router
from retrain.versions import freeze, read_examples
from router import artifact
from router.output import learn


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a bundle is worth on the held-out rows there are now."""

    bundle: str
    dataset: str
    report: Report
    routing: Routing


def bundle_of(store: Store, task: Task, bundle_id: str | None) -> BundleFiles:
    """The bundle of that id, else the task's champion. Raises BundleError."""
    if bundle_id is None:
        champion = bundles.champion(store, task.name)
        if champion is None:
            raise BundleError(f"task {task.name!r} has no champion: name a bundle")
        bundle_id = champion.id
    files = read_registered(store, bundle_id)
    if files.task != task.name:
        raise BundleError(f"{bundle_id} is a bundle of task {files.task!r}, not {task.name!r}")
    return files


def evaluate_bundle(
    config: Config, task: Task, store: Store, bundle_id: str | None, *, progress: bool = True
) -> Findings:
    """Ask the bundle's student every test row, compare with the teacher, record the evaluation."""
    files = bundle_of(store, task, bundle_id)
    asker = Asker(config=config, task=task, folder=config.state / "answers", progress=progress)
    with tempfile.TemporaryDirectory() as rows:
        data = freeze(store, task, Path(rows))
        train, test = (read_examples(Path(rows), side) for side in ("train", "test"))
    answers = asker.answers(files.adapter, files.adapter_dir, test, "ask the student")
    spec = learn(output_spec(task.output), teachers(train))
    gold = [row.gold for row in test]
    report = evaluate(spec, answers, teachers(test), gold, uncorrected(test))
    record_evaluation(store, files.id, data.id, report)
    router = load_router(files.router_dir, task)
    return Findings(
        bundle=files.id, dataset=data.id, report=report, routing=routing(router, test, answers)
    )


def calibrate_bundle(
    config: Config, task: Task, store: Store, bundle_id: str | None, *, progress: bool = True
) -> tuple[str, Routing]:
    """Fit the bundle's router anew on all evidence there is now: a new candidate with the same
    adapter weights. Returns its id and what it would do with the test rows."""
    files = bundle_of(store, task, bundle_id)
    asker = Asker(config=config, task=task, folder=config.state / "answers", progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = freeze(store, task, work)
        train = read_examples(work, "train")
        calibration = [row for row in read_examples(work, "calibration") if row.sampled]
        test = read_examples(work, "test")
        drafts = asker.answers(files.adapter, files.adapter_dir, calibration, "ask the student")
        seed = config.training.seed
        router = fit(task, output_spec(task.output), train, calibration, drafts, seed=seed)
        artifact.save(router, work / "router")
        made = bundles.write_bundle(
            config.state / "bundles",
            task=task.name,
            adapter_dir=files.adapter_dir,
            router_dir=work / "router",
            base_model=files.base_model,
            prompt_hash=prompt_hash(task.prompt),
            dataset_id=data.id,
            detail={"recalibrated": files.id},
        )
    bundles.register(store, made, files.id, None, {"recalibrated": files.id})
    answers = asker.answers(files.adapter, files.adapter_dir, test, "ask the student")
    return made.id, routing(router, test, answers)


def sentences(routed: Routing) -> list[str]:
    """A routing in words, for the command line."""
    served, harm = routed.prediction.served, routed.prediction.harm
    if routed.certificate is None:
        return [
            "no certificate: the teacher answers everything; at least "
            f"{routed.evidence_needed} more held-out requests are needed"
        ]
    certificate = routed.certificate
    return [
        f"threshold {routed.threshold:.4f}, certified on {certificate.n} held-out requests: at "
        f"most {certificate.upper_bound:.1%} served in disagreement with the teacher "
        f"({certificate.confidence:.0%} confidence)",
        f"on the test rows: coverage {shown(served)}, served in disagreement {shown(harm)}",
    ]


def shown(share: Share) -> str:
    return f"{share.share:.1%} [{share.low:.1%}, {share.high:.1%}] of {share.n}"
