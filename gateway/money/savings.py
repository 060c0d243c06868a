"""What distilling saves, after everything it costs is charged; from the ledger, or from a plan."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, case, func, select
from sqlmodel import Session, col

from gateway.config import Config
from gateway.storage.database import refused_in_one_line
from gateway.storage.line import UNCLAIMED
from gateway.storage.store import Store
from gateway.storage.tables import Request, Run, utcnow
from router.decision import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """A period of one task, or of several; dollars. ``student_usd`` are all drafts, those thrown
    away too; ``teacher_usd`` is what it answered itself. ``all_teacher_usd`` is what the teacher
    alone would have cost for the same requests, and ``estimated_usd`` the part of it for which it
    was not asked. Of the answered requests those ``priced`` have a known cost, and those
    ``compared`` a known cost of the teacher too. Those of ``unknown`` cost, answered or not, are in
    none of the sums."""

    requests: int = 0
    answered: int = 0
    served: int = 0
    priced: int = 0
    compared: int = 0
    unknown: int = 0
    audits: int = 0
    audits_unknown: int = 0
    student_usd: float = 0.0
    teacher_usd: float = 0.0
    audit_usd: float = 0.0
    judge_usd: float = 0.0
    label_usd: float = 0.0
    hardware_usd: float = 0.0
    training_usd: float = 0.0
    training_h: float = 0.0
    all_teacher_usd: float = 0.0
    estimated_usd: float = 0.0

    @property
    def coverage(self) -> float:
        """Share of the answered requests that the student answered."""
        return self.served / self.answered if self.answered else 0.0

    @property
    def fixed_usd(self) -> float:
        """What does not grow with the requests."""
        return self.judge_usd + self.label_usd + self.hardware_usd + self.training_usd

    @property
    def paid_usd(self) -> float:
        return self.student_usd + self.teacher_usd + self.audit_usd + self.fixed_usd

    @property
    def saved_usd(self) -> float:
        """Negative where distilling costs more than it saves."""
        return self.all_teacher_usd - self.paid_usd

    @property
    def times_cheaper(self) -> float | None:
        return self.all_teacher_usd / self.paid_usd if self.paid_usd else None

    @property
    def estimated_share(self) -> float | None:
        return self.estimated_usd / self.all_teacher_usd if self.all_teacher_usd else None

    @property
    def usd_per_1000(self) -> float | None:
        """Everything charged."""
        return 1000 * self.paid_usd / self.priced if self.priced else None

    @property
    def all_teacher_usd_per_1000(self) -> float | None:
        return 1000 * self.all_teacher_usd / self.compared if self.compared else None

    @property
    def break_even_coverage(self) -> float | None:
        """Coverage from which it pays: drafts and fixed costs remain as they are, audits grow with
        coverage. Above 1: at no coverage. None where nothing is known of the teacher's cost."""
        audits_if_all_served = self.audit_usd / self.coverage if self.coverage else 0.0
        room = self.all_teacher_usd - audits_if_all_served
        return (self.student_usd + self.fixed_usd) / room if room > 0 else None

    @property
    def break_even_requests(self) -> float | None:
        """Requests in the period from which it pays, at this coverage; None: at no number."""
        margin = self.saved_usd + self.fixed_usd
        return self.requests * self.fixed_usd / margin if margin > 0 else None

    def verdict(self) -> str:
        """One sentence."""
        if not self.all_teacher_usd:
            return (
                "Nothing can be compared: what the teacher costs is not known, or it had no work."
            )
        if self.saved_usd > 0:
            times = f", {self.times_cheaper:.1f} times cheaper" if self.times_cheaper else ""
            share = self.saved_usd / self.all_teacher_usd
            return (
                f"Distilling pays: {usd(self.saved_usd)} of {usd(self.all_teacher_usd)} saved"
                f" ({share:.1%}){times}."
            )
        if not self.served and not self.paid_usd > self.all_teacher_usd:
            return "Nothing is saved yet: the student answered nothing, and cost nothing."
        more = (
            f"Distilling does not pay: it costs {usd(-self.saved_usd)} more than the teacher alone"
        )
        enough = self.break_even_coverage
        if enough is not None and self.coverage < enough <= 1:
            return f"{more}; it would from {enough:.1%} coverage on (now {self.coverage:.1%})."
        beside = usd(self.student_usd + self.fixed_usd)
        return f"{more}, and with this traffic it would at no coverage: the student costs {beside}."


def usd(dollars: float) -> str:
    """For people: whole dollars from 100 on, cents from 1 on, three digits below."""
    size = abs(dollars)
    places = 0 if size >= 100 or size == 0 else 2 if size >= 1 else 2 - math.floor(math.log10(size))
    return f"{'-' if dollars < 0 else ''}${size:,.{places}f}"


def together(parts: Iterable[Sums]) -> Sums:
    totals: dict[str, Any] = {field.name: 0 for field in fields(Sums)}
    for part in parts:
        for name in totals:
            totals[name] += getattr(part, name)
    return Sums(**totals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Requests that were not made yet. Tokens are (prompt, completion) of one call, prices dollars
    per million of them. The student is asked every time; ``fallback`` is the share that the teacher
    answers after all, ``audit`` the share of the student's answers that it checks. By the hour, the
    student costs nothing per token."""

    calls: int
    teacher_tokens: tuple[float, float]
    teacher_price: tuple[float, float]
    student_tokens: tuple[float, float] = (0.0, 0.0)
    student_price: tuple[float, float] = (0.0, 0.0)
    fallback: float = 0.0
    audit: float = 0.0
    gpu_hour_usd: float | None = None
    gpus: float = 1.0
    hours: float = 0.0
    training_usd: float = 0.0

    def sums(self) -> Sums:
        teacher_usd = self.calls * _call_usd(self.teacher_tokens, self.teacher_price)
        student_usd = self.calls * _call_usd(self.student_tokens, self.student_price)
        by_hour = self.gpu_hour_usd is not None
        served = round(self.calls * (1 - self.fallback))
        return Sums(
            requests=self.calls,
            answered=self.calls,
            priced=self.calls,
            compared=self.calls,
            served=served,
            audits=round(served * self.audit),
            student_usd=0.0 if by_hour else student_usd,
            teacher_usd=teacher_usd * self.fallback,
            audit_usd=teacher_usd * (1 - self.fallback) * self.audit,
            hardware_usd=(self.gpu_hour_usd or 0.0) * self.gpus * self.hours,
            training_usd=self.training_usd,
            all_teacher_usd=teacher_usd,
        )


def _call_usd(tokens: tuple[float, float], price: tuple[float, float]) -> float:
    return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``hours``: from the first request in the period to its end; hardware is charged for them.
    ``free_h``: hours of nights that are not charged, for want of ``training.hour_usd``."""

    since: datetime
    until: datetime
    hours: float
    tasks: dict[str, Sums]
    total: Sums
    free_h: float
    died: int
    """Nights that died: nobody knows how long they ran."""


def account(store: Store, config: Config, since: datetime, until: datetime) -> Account:
    """Add up the ledger in the database. Raises StoreError."""
    until = min(until, utcnow())
    with refused_in_one_line(store.engine), store.session() as session:
        rows = session.execute(_by_task(since, until)).all()
        audited = session.execute(_audited(since, until)).all()
        nights, died = _nights(session, since, until)
    first = min((row.first for row in rows), default=until)
    hours = max(0.0, (until - first).total_seconds() / 3600)
    price = config.student.price
    hardware_usd = (price.gpu_hour_usd or 0.0) * price.gpus * hours
    shares = _shares(rows)
    hour_usd = config.training.hour_usd
    found: dict[str, list[Sums]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(_sums(row))
    for row in audited:
        true = Sums(all_teacher_usd=row.more or 0.0, estimated_usd=-(row.known or 0.0))
        found.setdefault(row.task, []).append(true)
    for task, share in shares.items():
        found[task].append(Sums(hardware_usd=hardware_usd * share))
    for task, night_h in nights.items():
        charged = Sums(training_h=night_h, training_usd=night_h * (hour_usd or 0.0))
        found.setdefault(task, []).append(charged)
    # unclaimed traffic stands last
    order = sorted(found, key=lambda task: (task == UNCLAIMED, task))
    tasks = {task: together(found[task]) for task in order}
    return Account(
        since=since,
        until=until,
        hours=hours,
        tasks=tasks,
        total=together(tasks.values()),
        free_h=sum(nights.values()) if hour_usd is None else 0.0,
        died=died,
    )


def _by_task(since: datetime, until: datetime) -> Select[Any]:
    request = Request.metadata.tables["request"].c
    known = request.cost_usd.is_not(None)
    answered = request.status < 400

    def count(*conditions: Any) -> Any:
        return func.sum(case((_all(conditions), 1), else_=0))

    def dollars(column: Any, *conditions: Any) -> Any:
        return func.sum(case((_all((column.is_not(None), *conditions)), column), else_=0.0))

    return (
        select(
            request.task,
            request.kind,
            func.min(request.at).label("first"),
            func.count().label("requests"),
            count(answered).label("answered"),
            count(answered, request.route == Route.STUDENT.value).label("served"),
            count(~known).label("unknown"),
            count(known, answered).label("priced"),
            count(known, answered, request.teacher_cost_usd.is_not(None)).label("compared"),
            dollars(request.student_usd).label("student_usd"),
            dollars(request.teacher_usd).label("teacher_usd"),
            dollars(request.teacher_cost_usd, known).label("all_teacher_usd"),
            dollars(request.teacher_cost_usd, known, request.estimated).label("estimated_usd"),
            func.sum(func.coalesce(request.student_ms, 0.0)).label("student_ms"),
        )
        .where(request.at >= since, request.at < until)
        .group_by(request.task, request.kind)
    )


def _all(conditions: tuple[Any, ...]) -> Any:
    first, *others = conditions
    for other in others:
        first = first & other
    return first


def _audited(since: datetime, until: datetime) -> Select[Any]:
    """An audit tells what the teacher would have cost for its request: its word in the estimate's
    place."""
    table = Request.metadata.tables["request"]
    audits, requests = table.alias("audit"), table.alias("answer")
    audit, request = audits.c, requests.c
    estimate = func.coalesce(request.teacher_cost_usd, 0.0)
    return (
        select(
            audit.task,
            func.sum(audit.teacher_usd - estimate).label("more"),
            func.sum(estimate).label("known"),
        )
        .select_from(audits.join(requests, request.id == audit.parent))
        .where(
            audit.kind == "audit",
            audit.at >= since,
            audit.at < until,
            audit.teacher_usd.is_not(None),
            audit.status < 400,  # a lost one tells nothing
            request.cost_usd.is_not(None),
        )
        .group_by(audit.task)
    )


def _sums(row: Row[Any]) -> Sums:
    spent = float(row.student_usd) + float(row.teacher_usd)
    if row.kind == "audit":
        return Sums(audits=int(row.requests), audits_unknown=int(row.unknown), audit_usd=spent)
    if row.kind == "reaudit":
        return Sums(audits_unknown=int(row.unknown), audit_usd=spent)
    if row.kind == "judge":
        return Sums(judge_usd=spent)
    if row.kind == "label":
        return Sums(label_usd=spent)
    return Sums(
        requests=int(row.requests),
        answered=int(row.answered),
        served=int(row.served),
        unknown=int(row.unknown),
        priced=int(row.priced),
        compared=int(row.compared),
        student_usd=float(row.student_usd),
        teacher_usd=float(row.teacher_usd),
        all_teacher_usd=float(row.all_teacher_usd),
        estimated_usd=float(row.estimated_usd),
    )


def _shares(rows: Iterable[Row[Any]]) -> dict[str, float]:
    """Which share of the hardware is each task's: as it kept the student busy; before it ever did,
    all alike."""
    busy: dict[str, float] = {}
    for row in rows:
        if row.task != UNCLAIMED:
            busy[row.task] = busy.get(row.task, 0.0) + float(row.student_ms)
    whole = sum(busy.values())
    return {task: ms / whole if whole else 1 / len(busy) for task, ms in busy.items()}


def _nights(session: Session, since: datetime, until: datetime) -> tuple[dict[str, float], int]:
    """Hours by task, and how many nights died."""
    hours: dict[str, float] = {}
    died = 0
    runs = select(Run).where(
        col(Run.started_at) >= since, col(Run.started_at) < until, col(Run.ended_at).is_not(None)
    )
    for run in session.scalars(runs):
        if run.ended_at is None or str(run.detail.get("error", "")).startswith("died"):
            died += 1
            continue
        spent_h = (run.ended_at - run.started_at).total_seconds() / 3600
        hours[run.task] = hours.get(run.task, 0.0) + spent_h
    return hours, died
