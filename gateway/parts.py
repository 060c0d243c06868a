"""The running parts of one gateway process, put together in `app.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any

from gateway.access.budgets import Budgets
from gateway.access.keys import Keys
from gateway.access.limits import Limits
from gateway.audits.auditor import Auditor
from gateway.claims import Claims
from gateway.config import Config
from gateway.lane import Lane
from gateway.ledger import Ledger
from gateway.money.prices import PriceBook
from gateway.storage.store import Store
from gateway.upstreams.chain import Chain
from gateway.upstreams.pool import Pool


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
    teacher: Chain
    student: Pool
    ledger: Ledger
    auditor: Auditor
    #: set when the process was told to stop
    draining: Event

    def readiness(self) -> dict[str, Any]:
        """``ready`` is False only where every request would fail, the teachers are down and no
        student serves, or where the process is about to end. What the gateway works around stands
        under ``problems``; to take it out of service would turn a part's outage into a whole one.
        """
        serving = self.student.up and any(
            lane.live is not None and lane.task.mode == "serve" for lane in self.lanes.values()
        )
        problems = {f"task {name}": lane.problem for name, lane in self.lanes.items()}
        for name, lane in self.lanes.items():
            if lane.live is not None and lane.live.standing.alarm is not None:
                problems[f"student of {name}"] = (
                    f"alarm ({lane.live.standing.alarm}): the teacher answers until it is"
                    " certified anew"
                )
        if not self.teacher.up:
            problems["teacher"] = "down: only what students are trusted with is answered"
        elif down := self.teacher.down:
            problems["teacher"] = f"number {named(down)} down: the others answer"
        if not self.student.up:
            problems["student"] = "down: the teacher answers"
        elif down := self.student.down:
            problems["student"] = f"number {named(down)} down: the others answer"
        draining = self.draining.is_set()
        if draining:
            problems["gateway"] = "stopping: running requests are answered"
        if self.keys.database and self.keys.version is None:
            problems["keys"] = "their database could not be read yet: only api_keys_env is known"
        if self.limits.away:
            problems["limits"] = "the database is away: this gateway limits on its own"
        problems["budgets"] = self.budgets.problem
        if not self.store.healthy:
            problems["store"] = "the database is away: rows wait on local disk"
        return {
            "ready": not draining and (self.teacher.up or serving),
            "problems": {name: what for name, what in problems.items() if what is not None},
            "store": {"healthy": self.store.healthy, "spool_rows": self.store.spool_rows},
            "student": "up" if self.student.up else "down",
            "teacher": "up" if self.teacher.up else "down",
            "tasks": {
                name: {
                    "mode": lane.task.mode,
                    "bundle": None if lane.live is None else lane.live.bundle.id,
                }
                for name, lane in self.lanes.items()
            },
        }


def named(places: list[int]) -> str:
    """Replicas and teachers are known by their place in the configuration, from 0."""
    return ", ".join(map(str, places))
