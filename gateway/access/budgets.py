"""Dollars the teacher may cost, by day and month of UTC, per task and per key, over all gateways.

The database holds how much of each budget was taken. A gateway takes small slices, each in one
transaction that never takes more than is left, and pays its calls from them: what all gateways
spend together stays within the budget, up to what a call costs above its estimate, and that is
charged too. What a gateway does not use it gives back.

While the database is away, a gateway spends the slice it has, and then refuses: budgets fail shut.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from gateway import metrics
from gateway.access.batches import Batches
from gateway.access.estimate import guess, model_named
from gateway.access.keys import ANYBODY, Caller
from gateway.access.purses import DUST_USD, SLICE, Hold, Name, Purse, Take, day, month, take_all
from gateway.config import Budget, Task
from gateway.errors import InsufficientQuota
from gateway.money.pricing import Usage
from gateway.storage.tables import Spending, utcnow

logger = logging.getLogger(__name__)

#: how long a request waits for the database
WAIT_S = 2.0
FLUSH_S = 1.0
#: a slice unused for this long is given back
IDLE_S = 10.0
#: how often the tasks' budgets are read for the metrics
SHOW_S = 10.0
_spending = Spending.metadata.tables["spending"]

#: dollars for a usage of a model, None where they are unknown
Cost = Callable[[Usage, str], float | None]


class Budgets:
    """``hold`` before the teacher is asked."""

    def __init__(
        self,
        engine: Engine,
        cost: Cost,
        tasks: Sequence[Task] = (),
        *,
        wait_s: float = WAIT_S,
        now: Callable[[], datetime] = utcnow,
    ) -> None:
        self._engine = engine
        self.cost = cost
        self._tasks = [task for task in tasks if _exists(task.budget)]
        self._wait_s = wait_s
        self._now = now
        self._batches: Batches[Take, float] = Batches("budgets", partial(take_all, engine))
        self._purses: dict[Name, Purse] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._unpriced = False
        self._show_at = 0.0
        self._refused = {
            kind: metrics.limited_requests_total.labels(f"{kind}_budget")
            for kind in ("task", "key", "audit")
        }

    @property
    def problem(self) -> str | None:
        """What the operator should know."""
        if self._unpriced:
            return "budgets are not kept: teacher.price is not known"
        return None

    async def hold(
        self, raw: bytes, *, task: Task | None = None, caller: Caller = ANYBODY, audit: bool = False
    ) -> Hold | None:
        """Set aside what a call with this body may cost, in every budget it falls under; None
        where it falls under none. ``audit``: those of the task's audits too. Raises
        InsufficientQuota."""
        wanted = self._wanted(task, caller, audit=audit)
        if not wanted:
            return None
        usd = self.estimate(raw)
        if usd is None:
            return None
        return await self._hold(wanted, usd)

    async def room(self, task: Task, usd: float) -> bool:
        """Whether an audit of this task that costs so much would be paid now."""
        held: list[Purse] = []
        try:
            for purse in self._wanted(task, ANYBODY, audit=True):
                if not await self._try(purse, usd):
                    return False
                held.append(purse)
        except InsufficientQuota:
            return False
        finally:
            Hold(held, usd).settle(0.0)
        return True

    def overdraw(self, task: Task) -> Hold:
        """For an audit that was promised, and is made whatever the budgets have left: what it costs
        is charged all the same."""
        return Hold(self._wanted(task, ANYBODY, audit=True), 0.0)

    def estimate(self, raw: bytes) -> float | None:
        """What a call with this body may cost; None where no price is known."""
        return self._priced(self.cost(guess(raw), model_named(raw)))

    async def _hold(self, wanted: Sequence[Purse], usd: float) -> Hold:
        held: list[Purse] = []
        try:
            for purse in wanted:
                await self._take(purse, usd)
                held.append(purse)
        except BaseException:
            Hold(held, usd).settle(0.0)
            raise
        return Hold(held, usd)

    def start(self, *, check: bool = True) -> None:
        """``check``: see now whether the teacher has a price, and not only at its first call."""
        if check and self._tasks:
            self._priced(self.cost(Usage(prompt=1, completion=1), ""))
        self._flushing = asyncio.create_task(self._flush_on())

    async def stop(self) -> None:
        """Give back what is not spent."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        returns = [self._return(purse) for purse in self._purses.values()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                await asyncio.gather(*returns, return_exceptions=True)
        await self._batches.close(self._wait_s)

    def _wanted(self, task: Task | None, caller: Caller, *, audit: bool = False) -> list[Purse]:
        audits = audit and task is not None and _exists(task.audit.budget)
        if (task is None or not _exists(task.budget)) and not caller.budgeted and not audits:
            return []
        now = self._now()
        found = []
        if task is not None:
            account = f"task:{task.name}"
            found += self._of(account, task.budget.daily_usd, task.budget.monthly_usd, now)
            if audits:
                of = task.audit.budget
                found += self._of(f"audit:{task.name}", of.daily_usd, of.monthly_usd, now)
        found += self._of(f"key:{caller.id}", caller.daily_usd, caller.monthly_usd, now)
        return found

    def _of(
        self, account: str, daily_usd: float | None, monthly_usd: float | None, now: datetime
    ) -> list[Purse]:
        found = []
        for period, limit_usd in ((day(now), daily_usd), (month(now), monthly_usd)):
            if limit_usd is not None:
                purse = self._purses.get((account, period))
                if purse is None:
                    purse = Purse(account=account, period=period, limit_usd=limit_usd)
                    self._purses[purse.name] = purse
                purse.limit_usd = limit_usd  # the key may have been given another
                found.append(purse)
        return found

    async def _take(self, purse: Purse, usd: float) -> None:
        """Raises InsufficientQuota."""
        purse.used_at = time.monotonic()
        if await self._try(purse, usd):
            return
        # others may have settled meanwhile: their change and what the account has may be enough
        if purse.free_usd > DUST_USD and await self._try(purse, usd):
            return
        self._refused[purse.kind].inc()
        raise _spent(purse)

    async def _try(self, purse: Purse, usd: float) -> bool:
        """Take from the purse, and from the account what it lacks. False: that is not there."""
        own = min(max(purse.free_usd, 0.0), usd)
        owed = max(-purse.free_usd, 0.0)
        purse.free_usd += owed - own
        short = usd - own
        if short <= DUST_USD:
            return True
        taking = self._batches.send(
            Take(name=purse.name, limit_usd=purse.limit_usd, usd=short, owed_usd=owed)
        )
        try:
            async with asyncio.timeout(self._wait_s):
                taken = await asyncio.shield(taking)
        except (SQLAlchemyError, TimeoutError, asyncio.CancelledError) as error:
            purse.free_usd += own
            taking.add_done_callback(lambda done: _keep(purse, owed, done))
            if isinstance(error, asyncio.CancelledError):
                raise
            self._refused[purse.kind].inc()
            raise _away(purse) from None
        purse.free_usd += taken - short if taken > 0 else own
        return taken > 0

    async def _flush_on(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._flush()
            except SQLAlchemyError:
                continue  # later; who asks for money meanwhile is told
            except Exception:
                logger.exception("budgets not written")

    async def _flush(self) -> None:
        now, idle = self._now(), time.monotonic() - IDLE_S
        current = {day(now), month(now)}
        for purse in list(self._purses.values()):
            # calls that cost less than was held for them can leave more than a slice here
            keep = 0.0 if purse.used_at < idle else SLICE * purse.limit_usd
            if purse.free_usd < 0.0 or purse.free_usd > 2 * keep:
                await self._return(purse, keep)
            if purse.period not in current and purse.used_at < idle:
                del self._purses[purse.name]
        if self._tasks and time.monotonic() >= self._show_at:
            self._show_at = time.monotonic() + SHOW_S
            await asyncio.to_thread(self._show, now)

    async def _return(self, purse: Purse, keep: float = 0.0) -> None:
        """Tell the account what it has still to hear: dollars back, or dollars over."""
        usd = purse.free_usd - (keep if purse.free_usd > keep else 0.0)
        purse.free_usd -= usd
        if abs(usd) <= DUST_USD:
            return
        try:
            await asyncio.shield(self._batches.send(Take(name=purse.name, owed_usd=-usd)))
        except BaseException:
            # it may have been done all the same: given back twice it would be spent twice
            purse.free_usd += min(usd, 0.0)
            raise

    def _show(self, now: datetime) -> None:
        today, this_month = day(now), month(now)
        with self._engine.connect() as connection:
            statement = select(
                _spending.c.account, _spending.c.period, _spending.c.taken_usd
            ).where(_spending.c.period.in_((today, this_month)), _spending.c.account.like("task:%"))
            taken = {(row[0], row[1]): float(row[2]) for row in connection.execute(statement)}
        for task in self._tasks:
            budget = task.budget
            for period, label, limit_usd in (
                (today, "day", budget.daily_usd),
                (this_month, "month", budget.monthly_usd),
            ):
                if limit_usd is not None:
                    usd = taken.get((f"task:{task.name}", period), 0.0)
                    metrics.budget_spent_usd.labels(task.name, label).set(usd)
                    left = max(0.0, limit_usd - usd)
                    metrics.budget_remaining_usd.labels(task.name, label).set(left)

    def _priced(self, usd: float | None) -> float | None:
        if usd is None and not self._unpriced:
            logger.warning("budgets are not kept: teacher.price is not known")
        self._unpriced = usd is None
        return usd


def _keep(purse: Purse, owed: float, done: "asyncio.Future[float]") -> None:
    """What came too late for the call it was taken for; what it should have paid off is still
    owed, where it failed."""
    if not done.cancelled() and done.exception() is None:
        purse.free_usd += done.result()
    else:
        purse.free_usd -= owed


def _exists(budget: Budget) -> bool:
    return budget.daily_usd is not None or budget.monthly_usd is not None


def _whose(purse: Purse) -> str:
    which = "monthly" if len(purse.period) == 7 else "daily"
    of = purse.account.partition(":")[2]
    whose = {"task": f"the task '{of}'", "audit": f"the audits of '{of}'"}.get(
        purse.kind, "this API key"
    )
    return f"{which} budget of {whose}"


def _spent(purse: Purse) -> InsufficientQuota:
    begins = "next month" if len(purse.period) == 7 else "at 00:00 UTC"
    return InsufficientQuota(f"The {_whose(purse)} is spent; it begins anew {begins}.")


def _away(purse: Purse) -> InsufficientQuota:
    error = InsufficientQuota(
        f"The {_whose(purse)} cannot be read: the database is away.", headers={"retry-after": "5"}
    )
    error.retry = True
    return error
