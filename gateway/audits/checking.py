"""One audit: the teacher is asked, the answers are compared, and what is written down of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from gateway.audits.counts import LOST
from gateway.audits.judge import Judge
from gateway.audits.teacher import answer_text
from gateway.config import Config
from gateway.errors import GatewayError, UpstreamTimeout
from gateway.lane import Lane
from gateway.money.prices import PriceBook
from gateway.money.pricing import Usage, add, read_usage
from gateway.redaction import Redaction
from gateway.storage import exchanges
from gateway.storage.line import Line, milliseconds, name_of
from gateway.storage.pending import audit_id
from gateway.storage.promise import Promise
from gateway.storage.tables import Exchange, utcnow
from gateway.upstreams.chain import Asking, Chain
from gateway.upstreams.refusals import retry_after_s
from gateway.upstreams.retries import another_may
from router.decision import Route
from router.output import disagreement
from router.sampler import coin, sampled

#: reason of an audit whose judge had no verdict: the words were compared
UNJUDGED = "unjudged"
#: the coin for asking the teacher a second time
_REASK = "reask:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The teacher gave nothing. ``again``: it may later, and after ``pause_s`` where it said so.
    ``cost_lost``: it may have cost something, and nobody knows how much."""

    status: int
    again: bool = False
    pause_s: float | None = None
    cost_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """``text`` is None where it is nothing that a student could be compared with."""

    text: str | None
    model: str | None
    usage: Usage | None
    usd: float | None
    seconds: float
    request_bytes: int
    #: its teacher's terms let a student learn from it
    licensed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of a finished audit: its rows for the ledger, that of the queue, and who was paid what."""

    result: str
    loss: float
    lines: list[Line]
    exchange: Exchange
    answers: list[Answered]
    #: of the second answer; None: not asked
    reask_loss: float | None

    @property
    def paid_usd(self) -> float | None:
        return add(*(line.cost_usd for line in self.lines))

    def count(self, lane: Lane) -> None:
        """Into the metrics."""
        children, teacher = lane.metrics, Route.TEACHER.value
        for answer in self.answers:
            lane.estimate.learn(answer.request_bytes, answer.text or "", answer.usage)
            if answer.usage is not None:
                children.tokens[(teacher, "input")].inc(answer.usage.prompt)
                children.tokens[(teacher, "output")].inc(answer.usage.completion)
        for line in self.lines:
            if line.cost_usd is None:
                children.unknown["audit"].inc()
            elif line.cost_usd:
                children.cost[(teacher,)].inc(line.cost_usd)
        children.audits[(self.result,)].inc()
        if self.result != LOST:
            children.audit_loss.inc(self.loss)
        if self.reask_loss is not None:
            children.teacher_reasks.inc()
            children.teacher_loss.inc(self.reask_loss)


@dataclass(slots=True, kw_only=True)
class _Compared:
    loss: float
    unjudged: bool = False
    lines: list[Line] = field(default_factory=list)


class Checker:
    """Asks the teachers, and the judges of the tasks that have one."""

    def __init__(
        self, config: Config, teacher: Chain, prices: PriceBook, lanes: Mapping[str, Lane]
    ) -> None:
        """Raises ConfigError where a judge's key is missing."""
        self._config = config
        self._teacher = teacher
        self._prices = prices
        self._judges = {
            name: Judge(lane.task.audit.judge, prices)
            for name, lane in lanes.items()
            if lane.task.audit.judge is not None
        }

    async def close(self) -> None:
        for judge in self._judges.values():
            await judge.close()

    def request(self, promise: Promise) -> bytes:
        """What the teacher is asked: the client's body, whole."""
        body = {**promise.body, "model": self._config.teacher.model or promise.body.get("model")}
        for name in ("stream", "stream_options"):
            body.pop(name, None)
        return orjson.dumps(body)

    async def check(self, lane: Lane, promise: Promise) -> Found | Failed:
        """Does not raise where the teacher fails."""
        first = await self._ask(promise)
        if isinstance(first, Failed):
            return first
        line = _line(promise, audit_id(promise.id), "audit", first)
        exchange = _exchange(lane, promise, first)
        if first.text is None:
            line.reason, line.loss = LOST, 1.0
            return Found(
                result=LOST,
                loss=1.0,
                lines=[line],
                exchange=exchange,
                answers=[first],
                reask_loss=None,
            )
        if promise.broken:
            compared = _Compared(loss=1.0)
        else:
            ours = promise.student_text
            compared = await self._compare(lane, promise, ours, first.text, promise.id)
        line.loss = exchange.loss = compared.loss
        if compared.unjudged:
            line.reason = UNJUDGED
        lines, answers, reask_loss = [line, *compared.lines], [first], None
        if coin(promise.id, _REASK) < lane.task.audit.reask:
            second = await self._ask(promise)
            if isinstance(second, Answered):
                more = await self._again(lane, promise, first.text, second)
                lines, answers, reask_loss = [*lines, *more], [first, second], more[0].loss
        return Found(
            result="agree" if compared.loss == 0 else "disagree",
            loss=compared.loss,
            lines=lines,
            exchange=exchange,
            answers=answers,
            reask_loss=reask_loss,
        )

    async def _again(
        self, lane: Lane, promise: Promise, first: str, second: Answered
    ) -> list[Line]:
        """The teacher's second answer against its first: its own noise."""
        line = _line(promise, f"{promise.id}-reaudit", "reaudit", second)
        if second.text is None:
            line.loss = 1.0
            return [line]
        compared = await self._compare(lane, promise, second.text, first, line.id)
        line.loss = compared.loss
        return [line, *compared.lines]

    async def _ask(self, promise: Promise) -> Answered | Failed:
        data, asking = self.request(promise), Asking()
        headers = self._teacher.headers(promise.headers)
        headers["content-type"] = "application/json"
        started = time.perf_counter()
        try:
            reply = await self._teacher.ask(data, headers, asking)
        except GatewayError as error:
            own_key = self._teacher.teachers[0].own_key
            return Failed(
                status=error.status,
                # a model or path that is not there is no fault of the prompt's
                again=another_may(error, own_key=own_key) or error.status == 404,
                pause_s=retry_after_s(error.headers),
                cost_lost=asking.lost > 0 or isinstance(error, UpstreamTimeout),
            )
        usage = read_usage(reply.body.get("usage"), reply.body.get("service_tier"))
        model = name_of(reply.body.get("model"))
        by = asking.by
        usd = self._prices.teacher_usd(
            usage,
            model,
            self._config.teacher.model or name_of(promise.body.get("model")),
            own=None if by is None else by.price,
            base_url=None if by is None else by.base_url,
        )
        return Answered(
            text=answer_text(reply.body),
            model=model,
            usage=usage,
            usd=None if asking.lost or promise.cost_lost else usd,
            seconds=time.perf_counter() - started,
            request_bytes=len(data),
            licensed=by is None or by.trainable,
        )

    async def _compare(
        self, lane: Lane, promise: Promise, ours: str, theirs: str, row: str
    ) -> _Compared:
        """The loss of one answer against another, by the judge where there is one. ``row``: its
        verdicts are named after it."""
        judge = self._judges.get(lane.task.name)
        if judge is None or ours.strip() == theirs.strip():
            return _Compared(loss=disagreement(lane.spec, ours, theirs))
        verdicts = await judge.compare(promise.prompt, ours, theirs)
        lines = []
        for place, verdict in enumerate(verdicts, start=1):
            line = _line(promise, f"{row}-judge-{place}", "judge", None)
            line.reason = "judged" if verdict.loss is not None else "failed"
            line.status, line.model, line.loss = verdict.status, verdict.model, verdict.loss
            line.teacher_usd = line.cost_usd = verdict.usd
            line.duration_ms = verdict.seconds * 1000
            line.count(verdict.usage)
            lines.append(line)
        losses = [verdict.loss for verdict in verdicts if verdict.loss is not None]
        if len(losses) < len(verdicts):
            words = disagreement(lane.spec, ours, theirs)
            return _Compared(loss=words, unjudged=True, lines=lines)
        return _Compared(loss=sum(losses) / len(losses), lines=lines)


def lost_line(promise: Promise, failed: Failed) -> Line:
    """The row of an audit that will never be made."""
    line = _line(promise, audit_id(promise.id), "audit", None)
    line.status, line.reason, line.loss = failed.status, LOST, 1.0
    line.teacher_usd = line.cost_usd = None if promise.cost_lost else 0.0
    return line


def _line(promise: Promise, row_id: str, kind: str, answered: Answered | None) -> Line:
    usd = None if answered is None else answered.usd
    line = Line(
        id=row_id,
        kind=kind,
        parent=promise.id,
        task=promise.task,
        route=Route.TEACHER.value,
        reason=promise.reason,
        bundle=promise.bundle,
        model=None if answered is None else answered.model,
        endpoint=promise.endpoint,
        caller=promise.caller,
        status=200,
        score=promise.score,
        p_ood=promise.p_ood,
        sampled=True,
        propensity=promise.propensity,
        guess=promise.guess,
        least=promise.uniform,
        student_usd=0.0,
        teacher_usd=usd,
        cost_usd=usd,
        duration_ms=0.0 if answered is None else answered.seconds * 1000,
        teacher_ms=None if answered is None else milliseconds(answered.seconds),
    )
    line.count(None if answered is None else answered.usage)
    return line


def _exchange(lane: Lane, promise: Promise, answered: Answered) -> Exchange:
    """The row for the retraining queue, redacted as `Trip.exchange` is."""
    redaction, said = Redaction(lane.task.redact), promise.body
    prompt, body = redaction.text(promise.prompt), redaction.json(said)
    row = Exchange(
        id=promise.id,
        dedupe_key=promise.dedupe_key,
        at=utcnow(),
        task=promise.task,
        group_key=exchanges.group_key(prompt, body | {"metadata": said.get("metadata")}),
        prompt=prompt,
        body=body,
        subject=exchanges.subject(said),
        consent=promise.consent,
        licensed=answered.licensed,
        teacher_text=redaction.optional(answered.text),
        teacher_model=answered.model,
        student_text=redaction.text(promise.student_text),
        route=Route.STUDENT.value,
        reason=promise.reason,
        score=promise.score,
        p_ood=promise.p_ood,
        signals=promise.signals,
        # rows drawn by this part of the propensity are traffic as it is
        sampled=sampled(promise.id, promise.uniform),
        propensity=promise.uniform,
        bundle=promise.bundle,
        prompt_hash=promise.prompt_hash,
        caller=promise.caller,
    )
    for kind, values in redaction.counts.items():
        lane.metrics.redacted[(kind,)].inc(values)
    return row
