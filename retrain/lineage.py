"""What a night reads from and writes into the history of bundles and evaluations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from sqlmodel import col, func, select

from gateway.errors import BundleError
from gateway.storage import bundles
from gateway.storage.store import Store
from gateway.storage.tables import Evaluation, Run, utcnow
from retrain.evaluate import Report
from router import artifact
from router.embedder import STATIC, Embedder, Outside
from router.errors import RouterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Opponent:
    """The champion to beat; ``id`` None: there is none, and ``why`` says if one is only unfit.
    ``challenge``: how often it will have been challenged, this time included; ``tainted``: it was
    made with rows that were erased since."""

    id: str | None = None
    why: str = ""
    challenge: int = 0
    tainted: bool = False


def find_opponent(
    store: Store, task: str, prompt_hash: str, run_id: str, embedder: Embedder | None = None
) -> Opponent:
    """The champion of the task as the gateway serves it. One that the gateway cannot serve (other
    prompt contract, other embedder, damaged) is nothing to beat: the teacher answers everything
    now."""
    champion = bundles.champion(store, task)
    if champion is None:
        return Opponent()
    try:
        files = bundles.read_bundle(Path(champion.path))
        artifact.load(files.router_dir, embedder or Outside(name=STATIC))
    except (BundleError, RouterError) as error:
        return Opponent(why=f"the champion {champion.id} cannot serve: {error}")
    if files.prompt_hash != prompt_hash:
        return Opponent(
            why=f"the champion {champion.id} was trained for another prompt contract and cannot "
            "serve"
        )
    challenge = _challenges(store, task, champion.id, run_id) + 1
    return Opponent(id=champion.id, challenge=challenge, tainted=champion.tainted)


def _challenges(store: Store, task: str, champion: str, run_id: str) -> int:
    """Verdicts spoken over this champion in other runs. They share one error budget."""
    with store.session() as session:
        runs = session.exec(
            select(Run).where(Run.task == task, Run.id != run_id, col(Run.verdict).is_not(None))
        ).all()
    return sum(run.detail.get("champion") == champion for run in runs)


def record_evaluation(store: Store, bundle: str, dataset: str, report: Report) -> None:
    """Once per bundle and dataset version, however often the step is repeated."""
    with store.session() as session:
        found = session.exec(
            select(func.count())
            .select_from(Evaluation)
            .where(Evaluation.bundle_id == bundle, Evaluation.dataset_id == dataset)
        ).one()
        if found:
            return
        session.add(
            Evaluation(
                bundle_id=bundle,
                dataset_id=dataset,
                at=utcnow(),
                n=report.n,
                agreement=report.agreement.share,
                agreement_low=report.agreement.low,
                agreement_high=report.agreement.high,
                detail=plain(Report, report),
            )
        )
        session.commit()


def plain(kind: type[Any], value: Any) -> Any:
    """A dataclass as JSON values."""
    return TypeAdapter(kind).dump_python(value, mode="json")
