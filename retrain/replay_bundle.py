"""A bundle that did not answer the logged traffic, put before it: its drafts, its router.

Rows come from the queue: what the teacher answered or audited, with the prompt still there. Groups
that any student is trained on are left out, whichever student it is: on them a bundle shows what it
remembers. The side of a group is a hash and nothing of its content, so the rest is traffic as it
is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import and_, case, func, literal, select

from gateway.config import Config, Task
from gateway.errors import BundleError
from gateway.prompt import prompt_hash, student_messages, user_text
from gateway.storage.bundles import BundleFiles
from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import Bundle, Exchange, Request, State
from retrain.answers import read_answers
from retrain.assess import Asker
from retrain.calibrate import FAILED
from retrain.errors import NightError, ReplayError, StudentError
from retrain.replay import Rows
from retrain.replay_rows import WATCHED, Period, Signal, coin, numbers, within
from retrain.splits import split_of
from retrain.versions import Example
from router.decision import Answer, Reason, Route
from router.kept_signals import as_score, kept_signals
from router.output import check, disagreement
from router.router import Router
from router.threshold import REJECTED

#: Rows a student is asked, if nothing else is said.
LIMIT = 2000
#: of these requests nothing can be learnt: chosen by hand, or by chance of an outage
_OTHERS = (Reason.FORCED, Reason.CACHED, Reason.UNCLAIMED, Reason.DEGRADED, Reason.STUDENT_ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A request that can be put to another student. ``weight``: how many it stands for."""

    example: Example
    weight: float
    served: bool
    supported: bool
    student_usd: Any
    teacher_usd: Any
    student_ms: Any
    teacher_ms: Any


@dataclass(kw_only=True)
class Rehearsal:
    """Another bundle on the stored requests. ``skipped`` counts what could not be used."""

    config: Config
    task: Task
    store: Store
    files: BundleFiles
    router: Router
    signal: Signal = "score"
    period: Period = field(default_factory=Period)
    progress: bool = True
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Rows:
        """Raises ReplayError where the bundle's drafts cannot be had, BundleError where it is made
        for another prompt contract, StoreError."""
        if self.files.prompt_hash != prompt_hash(self.task.prompt):
            raise BundleError(
                f"{self.files.id} was trained for another prompt contract than "
                f"tasks.{self.task.name}.prompt"
            )
        stored = self._stored()
        if not stored:
            raise ReplayError(
                f"task {self.task.name}: no stored request of the held-out sides with an answer of"
                " the teacher in this time"
            )
        known = self._drafts([item.example for item in stored if item.supported])
        rows = [item for item in stored if not item.supported or item.example.id in known]
        self.skipped["no draft of this bundle"] += len(stored) - len(rows)
        scores, losses = [], []
        for item in rows:
            draft = known.get(item.example.id, FAILED)
            scores.append(self._score(item, draft))
            losses.append(disagreement(self.router.spec, draft.text, item.example.answer))
        weight = numbers(item.weight for item in rows)
        score = np.minimum(numbers(scores), 1.0)
        used = np.isfinite(score)
        self.skipped["no log-probabilities"] += int((~used).sum())
        return Rows(
            score=score[used],
            weight=weight[used],
            loss=numbers(losses)[used],
            label_weight=weight[used],
            audited=np.array([item.served for item in rows], dtype=bool)[used],
            student_usd=numbers(item.student_usd for item in rows)[used],
            teacher_usd=numbers(item.teacher_usd for item in rows)[used],
            student_ms=numbers(item.student_ms for item in rows)[used],
            teacher_ms=numbers(item.teacher_ms for item in rows)[used],
        )

    def _score(self, item: _Stored, draft: Answer) -> float:
        """REJECTED where the gates of this bundle would not let it through."""
        router, prompt = self.router, item.example.prompt
        if not item.supported or check(router.spec, draft) is not None:
            return REJECTED
        if router.ood.p_value(prompt) <= router.ood_epsilon:
            return REJECTED
        match self.signal:
            case "score":
                return router.score(prompt, draft)
            case "random":
                return coin(item.example.id)
            case "length":
                return 1.0 / (1.0 + len(prompt))
        return as_score(self.signal, kept_signals(router.spec, draft))

    def _stored(self) -> list[_Stored]:
        """The newest first, without those of the training side."""
        limit = self.period.limit or LIMIT
        found: list[_Stored] = []
        engine = self.store.engine
        with refused_in_one_line(engine), engine.connect() as connection:
            streamed = connection.execution_options(stream_results=True, yield_per=500)
            for row in streamed.execute(_statement(self.task.name, self.period)).mappings():
                if split_of(row["group_key"]) == "train":
                    self.skipped["on the training side of the split"] += 1
                elif (item := self._item(row)) is not None:
                    found.append(item)
                    if len(found) >= limit:
                        break
        return found

    def _item(self, row: Mapping[Any, Any]) -> _Stored | None:
        served = row["route"] == Route.STUDENT.value
        drawn = served or row["reason"] in WATCHED
        if drawn and not (row["sampled"] and row["propensity"] > 0.0):
            return None
        weight = row["seen"] / (row["propensity"] if drawn else 1.0)
        answer = row["teacher_text"] if row["correction"] is None else row["correction"]
        messages = row["body"]["messages"]
        return _Stored(
            example=Example(
                id=row["id"],
                prompt=user_text(self.task.prompt, messages),
                messages=student_messages(self.task.prompt, messages),
                answer=answer,
                sampled=row["sampled"],
            ),
            weight=weight,
            served=served,
            supported=row["reason"] != Reason.UNSUPPORTED.value,
            student_usd=row["student_usd"],
            teacher_usd=row["teacher_usd"],
            student_ms=row["student_ms"],
            teacher_ms=row["teacher_ms"],
        )

    def _drafts(self, rows: Sequence[Example]) -> dict[str, Answer]:
        """What is remembered, and the rest asked of the student server, if it runs."""
        asker = Asker(
            config=self.config,
            task=self.task,
            folder=self.config.state / "answers",
            progress=self.progress,
        )
        known: dict[str, Answer] = {}
        for adapter in self._same_weights():
            known |= read_answers(asker.path(adapter))
        missing = [row for row in rows if row.id not in known]
        if not missing:
            return known
        files = self.files
        try:
            drafts = asker.answers(files.adapter, files.adapter_dir, missing, "ask the student")
        except (StudentError, BundleError, NightError) as error:
            lacking = f"{len(missing)} of {len(rows)} stored requests have no draft of {files.id}"
            if len(missing) == len(rows):
                raise ReplayError(
                    f"{lacking}, and the student server cannot be asked for them ({error})"
                ) from None
            self.notes.append(
                f"{lacking}, and the student server cannot be asked for them ({error}): they are "
                "left out"
            )
            return known
        pairs = zip(missing, drafts, strict=True)
        # where the student fails there is nothing to serve
        return known | {row.id: draft or FAILED for row, draft in pairs}

    def _same_weights(self) -> list[str]:
        """This bundle's adapter, and those it was recalibrated from: other names, one student."""
        names = [self.files.adapter]
        with self.store.session() as session:
            row = session.get(Bundle, self.files.id)
            while row is not None and row.summary.get("recalibrated"):
                row = session.get(Bundle, row.summary["recalibrated"])
                if row is None or row.adapter in names:
                    break
                names.append(row.adapter)
        return names[::-1]


def _statement(task: str, period: Period) -> Any:
    e = Exchange.metadata.tables["exchange"]
    request = Request.metadata.tables["request"]
    r, audit = request.alias("answer"), request.alias("audit")
    served = e.c.route == Route.STUDENT.value
    found = e.outerjoin(r, r.c.id == e.c.id).outerjoin(
        audit, and_(audit.c.id == e.c.id + literal("-audit"), served)
    )
    return (
        select(
            *(e.c.id, e.c.route, e.c.reason, e.c.seen),
            func.coalesce(r.c.sampled, e.c.sampled).label("sampled"),
            func.coalesce(r.c.propensity, e.c.propensity).label("propensity"),
            *(e.c.group_key, e.c.body, e.c.teacher_text, e.c.correction),
            r.c.student_usd,
            func.coalesce(audit.c.teacher_usd, r.c.teacher_cost_usd).label("teacher_usd"),
            r.c.student_ms,
            case((served, audit.c.teacher_ms), else_=r.c.teacher_ms).label("teacher_ms"),
        )
        .select_from(found)
        .where(
            e.c.task == task,
            e.c.state != State.ERASED.value,
            e.c.consent,
            e.c.teacher_text.is_not(None) | e.c.correction.is_not(None),
            e.c.reason.not_in([reason.value for reason in _OTHERS]),
            *within(e.c, period),
        )
        .order_by(e.c.at.desc(), e.c.id.desc())
    )
