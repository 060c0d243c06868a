"""The running parts of one gateway process, put together in `app.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.audit import Auditor
from gateway.budgets import Budgets
from gateway.claims import Claims
from gateway.config import Config
from gateway.keys import Keys
from gateway.lane import Lane
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.prices import PriceBook
from gateway.store import Store
from gateway.upstream import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    config: Config
    keys: Keys
    limits: Limits
    budgets: Budgets
    prices: PriceBook
    claims: Claims
    lanes: Mapping[str, Lane]
    store: Store
    teacher: Upstream
    student: Upstream
    ledger: Ledger
    auditor: Auditor

    def readiness(self) -> dict[str, Any]:
        """``ready`` is False only where every request would fail: the teacher is down and no
        student serves. What the gateway works around stands under ``problems``; to take it out of
        service would turn a part's outage into a whole one."""
        serving = self.student.breaker.closed and any(
            lane.live is not None and lane.task.mode == "serve" for lane in self.lanes.values()
        )
        problems = {f"task {name}": lane.problem for name, lane in self.lanes.items()}
        if not self.teacher.breaker.closed:
            problems["teacher"] = "down: only what students are trusted with is answered"
        if not self.student.breaker.closed:
            problems["student"] = "down: the teacher answers"
        if self.keys.database and self.keys.version is None:
            problems["keys"] = "their database could not be read yet: only api_keys_env is known"
        if self.limits.away:
            problems["limits"] = "the database is away: this gateway limits on its own"
        problems["budgets"] = self.budgets.problem
        if not self.store.healthy:
            problems["store"] = "the database is away: rows wait on local disk"
        return {
            "ready": self.teacher.breaker.closed or serving,
            "problems": {name: what for name, what in problems.items() if what is not None},
            "store": {"healthy": self.store.healthy, "spool_rows": self.store.spool_rows},
            "student": "up" if self.student.breaker.closed else "down",
            "teacher": "up" if self.teacher.breaker.closed else "down",
            "tasks": {
                name: {
                    "mode": lane.task.mode,
                    "bundle": None if lane.live is None else lane.live.bundle.id,
                }
                for name, lane in self.lanes.items()
            },
        }
