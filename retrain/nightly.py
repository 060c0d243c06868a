"""One night: from the queue to a verdict, and to a promoted student where the verdict says so.

`run` is the loop, one line a step. Every step is kept in the run directory and not repeated when a
night that died is taken up again; until the very last one nothing touches what serves.
"""

from collections.abc import Callable

from gateway.config import Config, Task
from gateway.storage.store import Store
from retrain.gate import Verdict
from retrain.harvest import Harvest
from retrain.lineage import Opponent
from retrain.night import Evaluated, Night, Outcome, Probed, Recalibrated, Trainer
from retrain.report import NightReport
from retrain.runs import open_run
from retrain.train import TrainReport, train_adapter
from retrain.versions import Version


def run(
    config: Config,
    task: Task,
    store: Store,
    *,
    train: Trainer = train_adapter,
    gateway_url: str | None = None,
    progress: bool = True,
    resume: bool = True,
    min_rows: int | None = None,
    max_rows: int | None = None,
    force: bool = False,
    promote: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> NightReport:
    """Harvest, train, evaluate, recalibrate, decide, promote on proof, report.

    ``min_rows`` in place of nightly.min_new_rows; ``force``: however few there are; ``max_rows``
    caps the training rows; ``promote`` False stops before the pointer: the bundle stays a
    candidate. With ``gateway_url`` the night waits until that gateway serves a promoted bundle.

    Raises NightBusy, NightError, LeakageError, StudentError, TrainingError, BundleError or
    StoreError; the champion is then untouched, and the next call goes on at the failed step.
    """
    wanted = 1 if force else config.nightly.min_new_rows if min_rows is None else min_rows
    settings = {"max_rows": max_rows, "promote": promote}
    with open_run(config, store, task.name, resume=resume, settings=settings, say=say) as opened:
        night = Night(config=config, task=task, store=store, run=opened, progress=progress)
        do = opened.step
        harvest = do("harvest", Harvest, night.harvest)
        if harvest.waiting < wanted and not night.tainted():
            return night.report(night.too_few(harvest, wanted), harvest=harvest)
        if (unreviewed := night.unreviewed()) is not None:
            return night.report(unreviewed, harvest=harvest)
        data = do("freeze", Version, lambda: night.freeze(max_rows))
        trained = do("train", TrainReport, lambda: night.train(train))
        champion = do("find the champion", Opponent, night.opponent)
        with night.candidate(trained) as adapter:
            probed = do("probe", Probed, lambda: night.probe(adapter))
            if probed.error is not None:
                unfit = night.unfit(probed.error)
                return night.report(unfit, harvest=harvest, data=data, trained=trained)
            scores = do("evaluate", Evaluated, lambda: night.evaluate(adapter, champion))
            routing = do("recalibrate", Recalibrated, lambda: night.recalibrate(adapter, champion))
            verdict = do("gate", Verdict, lambda: night.gate(adapter, champion))
        outcome = do(
            "promote",
            Outcome,
            lambda: night.promote(adapter, data, champion, scores, verdict, gateway_url, promote),
        )
        return night.report(
            verdict,
            harvest=harvest,
            data=data,
            trained=trained,
            champion=champion,
            scores=scores,
            routing=routing,
            outcome=outcome,
        )
