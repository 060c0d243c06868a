"""Canaries in the database: started, found, stopped. Their locks come after the task's own
(`storage/bundles.py`), which every change of the champion takes."""

from sqlmodel import Session, select

from gateway.canaries import races
from gateway.config import CanarySection
from gateway.errors import BundleError
from gateway.ids import new_id
from gateway.storage import bundles
from gateway.storage.store import Store
from gateway.storage.tables import BundleState, Canary, CanaryState, utcnow


def running(store: Store, task: str) -> Canary | None:
    with store.session() as session:
        return running_in(session, task)


def running_in(session: Session, task: str) -> Canary | None:
    statement = select(Canary).where(Canary.task == task, Canary.state == CanaryState.RUNNING)
    return session.exec(statement).one_or_none()


def start(store: Store, bundle_id: str, settings: CanarySection, detail: str = "") -> Canary:
    """Let the bundle answer the first step's share of its task beside the champion. The canary that
    runs, if it is this bundle's already. Raises BundleError, StoreError."""
    with store.transaction() as session:
        bundle = bundles.known(session, bundle_id)
        bundles.lock(session, bundle.task)
        session.refresh(bundle)
        if bundle.state == BundleState.REJECTED:
            raise BundleError(f"{bundle_id} was rejected and cannot be promoted")
        champion = bundles.champion_in(session, bundle.task)
        if champion is None:
            raise BundleError(f"{bundle.task} has no champion to compare with: promote without")
        if champion.id == bundle_id:
            raise BundleError(f"{bundle_id} is the champion already")
        if (other := running_in(session, bundle.task)) is not None:
            if other.bundle == bundle_id:
                return other
            raise BundleError(f"the canary of {other.bundle} runs: wait, or `retort rollback`")
        now = utcnow()
        canary = Canary(
            id=new_id("canary"),
            task=bundle.task,
            bundle=bundle_id,
            champion=champion.id,
            share=settings.steps[0],
            started_at=now,
            step_at=now,
            frontier_at=now,
            races=races.to_dict(races.begin(settings)),
        )
        session.add(canary)
        bundle.state = BundleState.CANARY
        bundles.write_event(session, bundle, "canary", detail)
    return canary


def stop(store: Store, task: str, reason: str) -> Canary | None:
    """End the canary that runs; the champion stays. None where none ran. Raises StoreError."""
    with store.transaction() as session:
        bundles.lock(session, task)
        return bundles.stop_canary(session, task, reason)
