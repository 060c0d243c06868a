"""`retort calibrate`: the certificate of live traffic, worked out anew from the ledger."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlmodel import col, select

from gateway.certificates import incidents
from gateway.certificates.fold import Subject, recompute, window_of
from gateway.certificates.outcomes import Audit, read_audits, read_rows
from gateway.certificates.state import State, figures, same, terms_of, threshold_of, unpack
from gateway.config import Config, Task
from gateway.errors import BundleError, RetortError
from gateway.storage.store import Store
from gateway.storage.tables import Certificate, Incident, Request
from retrain.by_hand import bundle_of, sentences
from retrain.evaluate import Share, mean_share
from router import artifact
from router import certificate as live
from router.decision import Reason
from router.drift import Agreement, agreement
from router.errors import RouterError
from router.router import Start
from router.threshold import NEVER
from router.threshold import Certificate as Offline

#: audits looked at for slices and the teacher's own noise
RECENT = 20_000
#: ids in one statement
CHUNK = 500


class NoCertificateYet(RetortError):
    """the bundle has no live certificate"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What `retort calibrate` found. ``counts``: requests by what became of them; ``agrees``:
    whether the stored state is the recomputed one, to the last bit; ``noise``: how often the
    teacher disagreed with itself when asked again."""

    task: str
    bundle: str
    epoch: int
    alarm: str | None
    frontier: str
    threshold: float
    certified: bool
    online_threshold: float
    offline_threshold: float | None
    max_disagreement: float
    confidence: float
    coverage: float
    coverage_low: float
    coverage_high: float
    n: int
    started_on: int
    audits: int
    labels: int
    counts: Mapping[str, int]
    disagreement: Mapping[str, float | None]
    noise: Share | None
    next_threshold: float | None
    audits_needed: int | None
    agrees: bool
    slices: Sequence[Agreement] = ()
    incidents: Sequence[Mapping[str, Any]] = field(default_factory=list)


def calibrate(args: argparse.Namespace, config: Config, store: Store) -> int:
    """0: a threshold is certified (with --check: and the stored state is right); else 1."""
    task = config.task(args.task)
    if args.refit:
        return _refit(config, task, store, args.bundle)
    found = examine(config, task, store, args.bundle)
    if args.json:
        print(json.dumps(asdict(found), indent=1, default=str))
    else:
        print(*words(found), sep="\n")
    if args.check and not found.agrees:
        print(
            f"retort: the stored certificate of {found.bundle} is not what the ledger says",
            file=sys.stderr,
        )
        return 1
    return 0 if found.certified else 1


def examine(config: Config, task: Task, store: Store, bundle_id: str | None) -> Calibration:
    """Everything about a bundle's live certificate. Raises RetortError."""
    files = bundle_of(store, task, bundle_id)
    try:
        router = artifact.load(files.router_dir)
    except RouterError as error:
        raise BundleError(str(error)) from None
    with store.session() as session:
        row = session.get(Certificate, (task.name, files.id))
    if row is None:
        raise NoCertificateYet(
            f"{files.id} has no live certificate yet: a gateway starts it when the bundle goes live"
        )
    terms = terms_of(config, task)
    subject = Subject(terms=terms, bundle=files.id, offline=router.certificate, start=router.start)
    state, counts = recompute(
        store,
        subject,
        turn=row.turn,
        since=row.since,
        until=row.frontier,
        window=window_of(row),
    )
    return _calibration(store, subject, row, state, counts)


def _calibration(
    store: Store, subject: Subject, row: Certificate, state: State, counts: Mapping[str, int]
) -> Calibration:
    terms, offline = subject.terms, subject.offline
    threshold = threshold_of(terms, state, offline, row.since)
    certified = threshold < NEVER
    value, low, high = live.coverage(state.wealth, threshold) if certified else (0.0, 0.0, 0.0)
    shown = figures(terms, state, threshold)
    slices, noise = _slices(store, row), _noise(store, row)
    return Calibration(
        task=row.task,
        bundle=row.bundle,
        epoch=row.epoch,
        alarm=row.alarm,
        frontier=row.frontier,
        threshold=threshold,
        certified=certified,
        online_threshold=shown["online_threshold"],
        offline_threshold=_offline(offline, row),
        max_disagreement=terms.alpha,
        confidence=1.0 - terms.delta - terms.offline_delta,
        coverage=value,
        coverage_low=low,
        coverage_high=high,
        n=state.wealth.n,
        started_on=_started_on(subject.start, row),
        audits=state.wealth.audits,
        labels=state.wealth.labels,
        counts=counts,
        disagreement={name: shown[f"disagreement_{name}"] for name in ("estimate", "low", "high")},
        noise=noise,
        next_threshold=shown["next_threshold"],
        audits_needed=shown["audits_needed"],
        agrees=same(state, unpack(row.state)) and threshold == row.threshold,
        slices=slices,
        incidents=[_incident(one) for one in incidents.history(store, row.task)],
    )


def words(found: Calibration) -> list[str]:
    """The same for a person."""
    lines = [f"{found.bundle}, epoch {found.epoch} of its certificate"]
    if found.alarm is not None:
        lines.append(f"ALARM ({found.alarm}): the teacher answers everything")
    if found.certified:
        by = "live traffic" if found.online_threshold <= found.threshold else "calibration rows"
        lines.append(
            f"threshold {found.threshold:.4f}, certified by {by}: coverage"
            f" {_span(found.coverage, found.coverage_low, found.coverage_high)}, at most"
            f" {found.max_disagreement:.1%} served in disagreement ({found.confidence:.0%}"
            " confidence, at all times)"
        )
    else:
        lines.append("no threshold is certified: too little evidence, the teacher answers")
    left = ", ".join(f"{count} {what}" for what, count in found.counts.items() if count)
    lines.append(
        f"evidence: {found.n} requests, {found.started_on} of them calibration rows;"
        f" {found.audits} audits, {found.labels} free labels (of the ledger: {left or 'nothing'})"
    )
    estimate, low, high = (found.disagreement[name] for name in ("estimate", "low", "high"))
    if estimate is not None and low is not None and high is not None:
        lines.append(f"served in disagreement, by audits: {_span(estimate, low, high)}")
    if found.noise is not None:
        lines.append(
            "the teacher disagreed with itself: "
            f"{_span(found.noise.share, found.noise.low, found.noise.high)} of"
            f" {found.noise.n} audits asked again"
        )
    if found.next_threshold is None:
        lines.append("the laxest threshold is certified")
    elif found.audits_needed is None:
        lines.append(
            f"next threshold {found.next_threshold:.4f}: not to be certified at the observed rates"
        )
    else:
        lines.append(
            f"next threshold {found.next_threshold:.4f}: about {found.audits_needed} more audits"
        )
    lines += [
        f"  agreement {one.name}: {_span(one.value, one.low, one.high)} of {one.n}"
        for one in found.slices
    ]
    for one in found.incidents:
        over = f"cleared {one['cleared_at']:%Y-%m-%d %H:%M}" if one["cleared_at"] else "open"
        lines.append(
            f"  {one['at']:%Y-%m-%d %H:%M} {one['kind']} ({over}): {one['detail']}; {one['done']}"
        )
    same_or_not = "is" if found.agrees else "IS NOT"
    lines.append(f"the stored certificate {same_or_not} what the ledger says")
    return lines


def _refit(config: Config, task: Task, store: Store, bundle_id: str | None) -> int:
    from retrain.by_hand import calibrate_bundle

    bundle, routed = calibrate_bundle(config, task, store, bundle_id)
    print(f"candidate {bundle}", *sentences(routed), sep="\n")
    print(f"retort promote {bundle}    # to make it the champion")
    return 0


def _slices(store: Store, row: Certificate) -> list[Agreement]:
    """Agreement of audited answers by endpoint, by how they were sent, by how strange they were, by
    day: what the ledger knows of a request without its text."""
    names: list[str] = []
    losses: list[float] = []
    propensities: list[float] = []
    with store.session() as session:
        rows = read_rows(session, row.task, row.bundle, row.since, row.frontier, RECENT)
        served = [one for one in rows if one.reason == Reason.TRUSTED and one.sampled]
        audits: dict[str, Audit] = {}
        for at in range(0, len(served), CHUNK):
            audits |= read_audits(session, served[at : at + CHUNK])
        told = _told(store, [one.id for one in served])
    for one in served:
        audit = audits.get(one.id)
        if audit is None or audit.loss is None or audit.status >= 400 or not one.propensity:
            continue
        strange = one.p_ood is not None and one.p_ood < 0.05
        for name in (*told[one.id], "p_ood < 0.05" if strange else "p_ood >= 0.05"):
            names.append(name)
            losses.append(audit.loss)
            propensities.append(one.propensity)
    return agreement(names, losses, propensities) if names else []


def _told(store: Store, ids: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    found = {}
    with store.session() as session:
        for at in range(0, len(ids), CHUNK):
            statement = select(Request.id, Request.endpoint, Request.stream, Request.at)
            chunk = statement.where(col(Request.id).in_(ids[at : at + CHUNK]))
            for row_id, endpoint, stream, when in session.exec(chunk):
                found[row_id] = (endpoint, "streamed" if stream else "whole", f"{when:%Y-%m-%d}")
    return found


def _noise(store: Store, row: Certificate) -> Share | None:
    statement = (
        select(Request.loss)
        .where(Request.task == row.task, Request.kind == "reaudit", col(Request.loss).is_not(None))
        .order_by(col(Request.id).desc())
        .limit(RECENT)
    )
    with store.session() as session:
        losses = [loss for loss in session.exec(statement) if loss is not None]
    return mean_share(losses) if losses else None


def _offline(offline: Offline | None, row: Certificate) -> float | None:
    return None if offline is None or row.since != "" else offline.threshold


def _started_on(start: Start, row: Certificate) -> int:
    return len(start.scores) if row.since == "" else 0


def _incident(one: Incident) -> dict[str, Any]:
    return one.model_dump(exclude={"id", "task"})


def _span(value: float, low: float, high: float) -> str:
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"
