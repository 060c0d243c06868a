"""What a replay is made of: the bundles, signals and rows asked for, added up to curves."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import MetaData, Table, inspect, select

from gateway.config import Config, Task
from gateway.errors import BundleError
from gateway.money.savings import account
from gateway.storage import bundles
from gateway.storage.bundles import BundleFiles
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from retrain.by_hand import bundle_of
from retrain.errors import ReplayError
from retrain.replay_bundle import Rehearsal
from retrain.replay_report import Replay, Told, period_of
from retrain.replay_rows import Logged, Period, Signal
from retrain.replay_tally import Tally
from router import artifact
from router.errors import RouterError
from router.router import Router
from router.threshold import NEVER

#: Rows between two lines of progress.
PROGRESS = 200_000
#: More rows without signals than this share of the others are said to matter.
MOST_LACKING = 0.05
_STAND_INS = (
    "Its drafts' costs and times are those logged of the student that was live; its gates and "
    "scores are its own."
)


def replayed(
    config: Config,
    task: Task,
    store: Store,
    *,
    bundle_ids: Sequence[str],
    signals: Sequence[Signal],
    thresholds: Sequence[float],
    period: Period,
    say: Callable[[str], None],
) -> Replay:
    """Raises ReplayError where there is nothing to replay, BundleError, StoreError."""
    subjects = []
    champion = bundles.champion(store, task.name)
    for bundle_id in dict.fromkeys(bundle_ids) or [None]:
        files = bundle_of(store, task, bundle_id)
        router = _router(files)
        live = champion is not None and champion.id == files.id
        for signal in dict.fromkeys(signals):
            found = _told(config, task, store, files, router, live, signal, period, say)
            subjects.append(found)
    if len({told.bundle for told in subjects}) == 1:
        subjects = [replace(told, name=told.signal) for told in subjects]
    return Replay(
        task=task.name,
        alpha=task.contract.max_disagreement,
        confidence=task.contract.confidence,
        audit_rate=task.audit.rate,
        period=period,
        subjects=tuple(subjects),
        thresholds=tuple(thresholds),
    )


def _told(
    config: Config,
    task: Task,
    store: Store,
    files: BundleFiles,
    router: Router,
    live: bool,
    signal: Signal,
    period: Period,
    say: Callable[[str], None],
) -> Told:
    tally = Tally()
    remarks: list[str] = []
    skipped: Counter[str]
    if live:
        logged = Logged(
            store=store,
            task=task.name,
            bundle=files.id,
            spec=router.spec,
            ood_epsilon=router.ood_epsilon,
            signal=signal,
            period=period,
        )
        told = PROGRESS
        for rows in logged:
            tally.add(rows)
            if tally.rows >= told:
                say(f"replay: {tally.rows:,} requests")
                told += PROGRESS
        skipped = logged.skipped
        if skipped["no signals kept"] > MOST_LACKING * tally.rows:
            remarks.append(
                "So many rows without signals are no accident: what is left is not the traffic as "
                "it is."
            )
    else:
        rehearsal = Rehearsal(
            config=config,
            task=task,
            store=store,
            files=files,
            router=router,
            signal=signal,
            period=period,
        )
        tally.add(rehearsal.rows())
        skipped, remarks = rehearsal.skipped, [*rehearsal.notes, _STAND_INS]
    where = f"task {task.name}, bundle {files.id}, signal {signal}, {period_of(period)}"
    if not tally.rows:
        left = ", ".join(f"{n:,} {why}" for why, n in skipped.items() if n)
        raise ReplayError(
            f"{where}: no request to replay" + (f" (left out: {left})" if left else "")
        )
    try:
        curve = tally.curve(
            audit_rate=task.audit.rate, fixed_usd=_hardware(config, task, store, period)
        )
    except ValueError as error:
        raise ReplayError(f"{where}: {error}; audits and shadow mode make such rows") from None
    certified: list[tuple[float, str]] = []
    held = None
    if signal == "score":
        if router.certificate is not None:
            certified.append((router.threshold, "offline certificate"))
            held = router.threshold
        online = _live_certificate(store, task.name, files.id)
        if online is None:
            remarks.append("There is no live certificate: the bundle's own is in force.")
        else:
            remarks.append(online.said)
            held = online.threshold if online.threshold < NEVER else None
            if held is not None:
                certified.append((held, "live certificate"))
    return Told(
        name=files.id if signal == "score" else f"{files.id} {signal}",
        curve=curve,
        probable=signal not in ("length", "random"),
        certified=tuple(certified),
        bundle=files.id,
        signal=signal,
        live=live,
        held=held,
        skipped=dict(skipped),
        remarks=tuple(remarks),
    )


def _router(files: BundleFiles) -> Router:
    try:
        return artifact.load(files.router_dir)
    except RouterError as error:
        raise BundleError(f"{files.id}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Online:
    threshold: float
    said: str


def _live_certificate(store: Store, task: str, bundle: str) -> _Online | None:
    """What live traffic has certified of the bundle, where a gateway keeps account of it."""
    with refused_in_one_line(store.engine):
        if not inspect(store.engine).has_table("certificate"):
            return None
        table = Table("certificate", MetaData(), autoload_with=store.engine).c
        chosen = select(table.threshold, table.n, table.audits, table.labels, table.alarm).where(
            table.task == task, table.bundle == bundle
        )
        with store.session() as session:
            row = session.execute(chosen).first()
    if row is None:
        return None
    if row.alarm is not None:
        said = f"Alarm ({row.alarm}): the teacher answers"
    elif row.threshold >= NEVER:
        said = "The live certificate allows nothing yet"
    else:
        said = f"Live certificate: threshold {row.threshold:.4g}"
    evidence = f"{row.n:,} requests, {row.audits:,} audits, {row.labels:,} labels"
    held = NEVER if row.alarm is not None else float(row.threshold)
    return _Online(threshold=held, said=f"{said} ({evidence}).")


def _hardware(config: Config, task: Task, store: Store, period: Period) -> float:
    """Dollars by request for what is paid by the hour, at any threshold."""
    if config.student.price.gpu_hour_usd is None:
        return 0.0
    since = period.since or datetime(2000, 1, 1, tzinfo=UTC)
    sums = account(store, config, since, period.until or datetime.now(UTC)).tasks.get(task.name)
    return 0.0 if sums is None or not sums.answered else sums.hardware_usd / sums.answered
