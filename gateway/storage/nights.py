"""What the nights left in the database, as metrics: when the last one of each verdict ended, and
how the students agreed with the teacher in their last evaluation."""

from contextlib import suppress

from sqlmodel import col, func, select

from gateway import metrics
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, BundleState, Evaluation, Run

#: a night that did not end has no verdict
FAILED = "failed"
WHO = {
    BundleState.CHAMPION.value: "champion",
    BundleState.CANDIDATE.value: "challenger",
    BundleState.CANARY.value: "challenger",
    BundleState.REJECTED.value: "challenger",
}
#: evaluations to look through for the newest of champion and challenger
RECENT = 50


def show(store: Store, task: str) -> None:
    """Set the gauges of the task. Any gateway may: they all read the same rows."""
    with store.session() as session:
        nights = session.exec(
            select(Run.state, Run.verdict, func.max(Run.ended_at))
            .where(Run.task == task, Run.kind == "nightly", col(Run.ended_at).is_not(None))
            .group_by(col(Run.state), col(Run.verdict))
        ).all()
        evaluations = session.exec(
            select(Bundle.state, Evaluation.agreement)
            .join(Evaluation, col(Evaluation.bundle_id) == col(Bundle.id))
            .where(Bundle.task == task)
            .order_by(col(Evaluation.at).desc())
            .limit(RECENT)
        ).all()
    ended: dict[str, float] = {}
    for state, verdict, at in nights:
        name = FAILED if state == "failed" else verdict
        if name is not None and at is not None:
            ended[name] = max(ended.get(name, 0.0), at.timestamp())
    for name, timestamp in ended.items():
        metrics.night_timestamp.labels(task, name).set(timestamp)
    latest = {WHO[state]: agreement for state, agreement in reversed(evaluations) if state in WHO}
    for who in ("champion", "challenger"):
        if who in latest:
            metrics.night_agreement.labels(task, who).set(latest[who])
        else:
            with suppress(KeyError):
                metrics.night_agreement.remove(task, who)
