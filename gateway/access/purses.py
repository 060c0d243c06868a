"""What one process holds of the budgets, and the transactions that take it from their accounts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, bindparam, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.storage.database import transaction
from gateway.storage.tables import Spending

#: a slice is at most this share of the budget
SLICE = 0.01
#: of rounding, in dollars
DUST_USD = 1e-12
_spending = Spending.metadata.tables["spending"]

Name = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class Purse:
    """What this process has taken of one budget in one period. ``free_usd`` below zero: calls
    cost more than was held for them, which the account has still to be told."""

    account: str
    period: str
    limit_usd: float
    free_usd: float = 0.0
    used_at: float = 0.0

    @property
    def name(self) -> Name:
        return self.account, self.period

    @property
    def kind(self) -> str:
        """task, audit or key"""
        return self.account.partition(":")[0]


@dataclass(slots=True)
class Hold:
    """Dollars set aside for one call. ``settle`` it with what the call cost; None: nobody knows,
    and the estimate stands. Only the first time counts."""

    purses: Sequence[Purse]
    usd: float
    _open: bool = True

    def settle(self, cost: float | None) -> None:
        if self._open and cost is not None:
            for purse in self.purses:
                purse.free_usd += self.usd - cost
        self._open = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Dollars asked of an account. ``owed_usd`` are taken whatever the budget says: they are
    spent, or given back (below zero)."""

    name: Name
    limit_usd: float = 0.0
    usd: float = 0.0
    owed_usd: float = 0.0


def take_all(engine: Engine, takes: Sequence[Take]) -> Sequence[float]:
    """In one transaction. How much each got: 0, or at least what it asked for."""
    names = sorted({take.name for take in takes})
    got = [0.0] * len(takes)
    with transaction(engine) as connection:
        taken = _locked(connection, names)
        last: dict[Name, int] = {}
        for take in takes:
            taken[take.name] += take.owed_usd
        for place, take in enumerate(takes):
            if 0 < take.usd <= take.limit_usd - taken[take.name] + DUST_USD:
                taken[take.name] += take.usd
                got[place] = take.usd
                last[take.name] = place
        for name, place in last.items():
            # a slice more, so that not every call comes here; small ones where little is left
            limit_usd = takes[place].limit_usd
            extra = max(0.0, min(SLICE * limit_usd, (limit_usd - taken[name]) / 4))
            taken[name] += extra
            got[place] += extra
        connection.execute(
            update(_spending)
            .where(_spending.c.account == bindparam("of"), _spending.c.period == bindparam("at"))
            .values(taken_usd=bindparam("usd")),
            [{"of": name[0], "at": name[1], "usd": usd} for name, usd in taken.items()],
        )
    return got


def _locked(connection: Connection, names: Sequence[Name]) -> dict[Name, float]:
    """What was taken, nobody else's to change until the transaction ends; made where it is new."""
    statement = (
        select(_spending.c.account, _spending.c.period, _spending.c.taken_usd)
        .where(tuple_(_spending.c.account, _spending.c.period).in_(names))
        .order_by(_spending.c.account, _spending.c.period)
        .with_for_update()
    )
    rows = connection.execute(statement).all()
    if len(rows) < len(names):
        found = {(row[0], row[1]) for row in rows}
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(
            insert(_spending).on_conflict_do_nothing(),
            [
                {"account": account, "period": period, "taken_usd": 0.0}
                for account, period in names
                if (account, period) not in found
            ],
        )
        rows = connection.execute(statement).all()
    return {(row[0], row[1]): float(row[2]) for row in rows}


def day(now: datetime) -> str:
    """The period's name in `Spending`."""
    return f"{now:%Y-%m-%d}"


def month(now: datetime) -> str:
    return f"{now:%Y-%m}"
