"""What all gateways together did lately, from the ledger: the floors of sampling need it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, func, select
from sqlmodel import Session

from gateway.audits.sampling import Known
from gateway.lane import Lane
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, Request, utcnow
from router.decision import Reason, Route
from router.sampler import Counts, shape

HOUR = timedelta(hours=1)
HOURS = 24
#: guesses from which sampling by doubt takes its shape
GUESSES = 500
#: of the row of an audit that will never be made
LOST = "lost"
_request = Request.metadata.tables["request"].c


@dataclass(frozen=True, slots=True)
class Hour:
    served: int
    promised: int
    audits: int
    loss: float


class Reader:
    """Hours that are over are read once, and once more in the hour after them: rows come a little
    late. So a reading touches at most two hours of the ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hours: dict[tuple[str, datetime], Hour] = {}
        #: bundles that have had their first requests
        self._seasoned: set[str] = set()

    def read(self, lane: Lane) -> Known:
        """Raises StoreError."""
        task, now = lane.task, utcnow()
        this = now.replace(minute=0, second=0, microsecond=0)
        wanted = [this - HOUR * back for back in range(HOURS)]
        with refused_in_one_line(self._store.engine), self._store.session() as session:
            for hour in wanted:
                if (task.name, hour) not in self._hours or hour >= this - HOUR:
                    self._hours[task.name, hour] = _hour(session, task.name, hour)
            requests = self._requests(session, lane)
            guesses = _guesses(session, lane, wanted[-1]) if lane.sampling.by_doubt else []
        for key in [key for key in self._hours if key[1] < wanted[-1]]:
            del self._hours[key]
        hours = [self._hours[task.name, hour] for hour in wanted]
        today = [self._hours[task.name, hour] for hour in wanted if hour.date() == now.date()]
        audits = sum(hour.audits for hour in hours)
        return Known(
            counts=Counts(
                requests=requests,
                served=sum(hour.served for hour in hours),
                promised=sum(hour.promised for hour in today),
            ),
            typical=sum(hour.loss for hour in hours) / audits if audits else 0.0,
            shape=shape(guesses),
        )

    def _requests(self, session: Session, lane: Lane) -> int:
        """Of the live bundle, counted no further than its first ones."""
        live, first = lane.live, lane.task.audit.first_requests
        if live is None or live.bundle.id in self._seasoned:
            return first
        row = session.get(Bundle, live.bundle.id)
        some = select(_request.id).where(
            _request.task == lane.task.name,
            _request.bundle == live.bundle.id,
            _request.kind == "answer",
        )
        if row is not None:
            some = some.where(_request.at >= row.at)
        count = session.scalar(select(func.count()).select_from(some.limit(first).subquery())) or 0
        if count >= first:
            self._seasoned.add(live.bundle.id)
        return count


def _hour(session: Session, task: str, hour: datetime) -> Hour:
    request = _request
    served = (
        (request.kind == "answer")
        & (request.route == Route.STUDENT.value)
        & (request.reason != Reason.CACHED.value)
        & (request.status < 400)
    )
    audit = (request.kind == "audit") & (request.reason != LOST)
    row = session.execute(
        select(
            func.sum(case((served, 1), else_=0)),
            func.sum(case((served & request.sampled, 1), else_=0)),
            func.sum(case((audit, 1), else_=0)),
            func.sum(case((audit, request.loss), else_=0.0)),
        ).where(request.task == task, request.at >= hour, request.at < hour + HOUR)
    ).one()
    return Hour(int(row[0] or 0), int(row[1] or 0), int(row[2] or 0), float(row[3] or 0.0))


def _guesses(session: Session, lane: Lane, since: datetime) -> list[float]:
    live = lane.live
    if live is None:
        return []
    statement = (
        select(_request.guess)
        .where(
            _request.task == lane.task.name,
            _request.at >= since,
            _request.bundle == live.bundle.id,
            _request.route == Route.STUDENT.value,
            _request.guess.is_not(None),
        )
        .order_by(_request.at.desc())
        .limit(GUESSES)
    )
    return [guess for guess in session.scalars(statement) if guess is not None]
