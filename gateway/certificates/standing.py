"""What the certificate of a bundle says now: all that a gateway needs of it, and the gauges."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gateway import metrics
from gateway.storage.tables import Certificate as CertificateRow
from router.threshold import NEVER, Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """``version`` counts the changes of the row it was read from. ``threshold``: the score from
    which a draft may be served, NEVER where none may. ``alarm``: why nothing is served, where an
    alarm stands. ``detail``: as `figures` of `state.py` makes it."""

    version: int
    threshold: float = NEVER
    epoch: int = 1
    alarm: str | None = None
    coverage: float = 0.0
    detail: Mapping[str, Any] = field(default_factory=dict)


#: Before the certificate was read: nothing is served.
UNKNOWN = Standing(version=-1)


def standing_of(row: CertificateRow) -> Standing:
    return Standing(
        version=row.version,
        threshold=row.threshold,
        epoch=row.epoch,
        alarm=row.alarm,
        coverage=row.coverage,
        detail=row.detail,
    )


def show(task: str, offline: Certificate | None, standing: Standing | None) -> None:
    """Set the gauges of a task; None: no bundle is live."""
    standing = standing or UNKNOWN
    detail = standing.detail
    metrics.threshold.labels(task).set(standing.threshold)
    metrics.certified_coverage.labels(task).set(standing.coverage)
    certified = standing.threshold < NEVER
    bound = detail.get("alpha", 0.0) if certified else 0.0
    if certified and offline is not None and standing.threshold == offline.threshold:
        bound = min(bound, offline.upper_bound)
    metrics.certified_disagreement.labels(task).set(bound)
    metrics.alarm.labels(task).set(0.0 if standing.alarm is None else 1.0)
    metrics.certificate_wealth.labels(task).set(detail.get("wealth", 0.0))
    needed = detail.get("audits_needed")
    metrics.certificate_audits_needed.labels(task).set(
        float("inf") if needed is None else float(needed)
    )
    for which in ("estimate", "low", "high"):
        value = detail.get(f"disagreement_{which}")
        if value is None:
            with suppress(KeyError):
                metrics.served_disagreement.remove(task, which)
        else:
            metrics.served_disagreement.labels(task, which).set(value)
