"""One request of a task on its way to an answer: everything the ledger and the queue will know."""

import asyncio
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gateway.cache import Entry
from gateway.config import Config
from gateway.draft import Draft
from gateway.lane import Lane, Live
from gateway.money.pricing import Usage, add
from gateway.prompt import user_text
from gateway.redaction import Redaction
from gateway.storage import exchanges
from gateway.storage.line import Line, endpoint_of, milliseconds, name_of, retries_of
from gateway.storage.tables import Exchange, utcnow
from gateway.upstreams.chain import Asking
from gateway.vectors import Floats
from gateway.wire.protocol import Chat, Incoming
from router.decision import Decision, Reason, Route
from router.kept_signals import kept_signals
from router.prefix import loss_of
from router.sampler import sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a draft had taken when it was given up: tokens generated, and the usage if the server
    had told it by then."""

    tokens: int
    usage: Usage | None


@dataclass(kw_only=True)
class Trip:
    """Filled in as the request goes along. ``live`` is fixed at arrival: a promotion in between
    changes nothing for this request."""

    incoming: Incoming
    chat: Chat
    lane: Lane
    config: Config
    live: Live | None = field(init=False)
    decision: Decision = field(init=False)
    #: what the router says of the prompt, where its embedder is asked beside the student
    verdict: asyncio.Task[Decision] | None = None
    #: what the embedder said
    vector: Floats | None = None
    draft: Draft | None = None
    #: how many chunks of a draft that is still being made the client has
    released: int = 0
    #: what goes on with a draft that its window did not release, beside the teacher
    drafting: asyncio.Task[Draft | None] | None = None
    #: the draft that was given up before its end
    spent: Spent | None = None
    #: the draft was released, and then broke the output rules
    broken: bool = False
    teacher_asked: bool = False
    asking: Asking = field(default_factory=Asking)
    #: why the student gave no draft
    student_failed: Reason = Reason.STUDENT_ERROR
    teacher_text: str | None = None
    teacher_model: str | None = None
    teacher_usage: Usage | None = None
    #: the id of an answer that is no draft
    answer_id: str | None = None
    #: time waited for each; None: was not asked
    student_s: float | None = None
    teacher_s: float | None = None
    #: the check of the task that the draft failed
    check: str | None = None
    #: the stored answer that the client got
    cached: Entry | None = None
    #: under which the answer is stored, where it may be
    cache_key: bytes | None = None
    #: what the client got, where it is not the response's own status (499: it left)
    status: int = 0

    def __post_init__(self) -> None:
        self.live, canary = self.lane.live, self.lane.canary
        if canary is not None and canary.takes(exchanges.group_key(self.prompt, self.chat.body)):
            self.live = canary.live
        # an audit needs the text later: what may not be kept is not audited (docs/audits.md)
        self.rate = self.lane.propensity(self.live) if self.keeps_text else 0.0
        self.uniform = self.lane.sampling.uniform(self.rate)
        self.propensity = self.rate
        self.sampled = sampled(self.incoming.id, self.propensity)
        self.guess: float | None = None

    def scored(self, score: float | None) -> None:
        """The draft is known and its loss is not: fix what is expected of it, and, where it may
        be served, with which probability it is audited. Only the first score counts."""
        if score is None or self.live is None or self.guess is not None:
            return
        router, sampling = self.live.router, self.lane.sampling
        self.guess = sampling.guess(router.spec.kind, score, learned=router.confidence.learned)
        if self.decision.route is Route.STUDENT:
            self.propensity = sampling.propensity(self.rate, self.guess)
            self.sampled = sampled(self.incoming.id, self.propensity)

    @cached_property
    def prompt(self) -> str:
        return user_text(self.lane.task.prompt, self.chat.messages)

    @property
    def keeps_text(self) -> bool:
        return self.chat.keep and self.lane.task.store_payloads

    @property
    def consent(self) -> bool:
        """The exchange may be learnt from."""
        wish = self.chat.consent
        return self.lane.task.consent == "assumed" if wish is None else wish

    @property
    def student_usd(self) -> float | None:
        """0 where the student was not asked."""
        given = self.draft or self.spent
        return 0.0 if given is None else self.lane.prices.student_usd(given.usage)

    @property
    def teacher_usd(self) -> float | None:
        """What the teacher cost, or would have cost by estimate. None where attempts were given up
        that nobody can say the cost of."""
        if self.cached is not None:
            return self.cached.teacher_usd
        if self.asking.lost:
            return None
        usage = self.teacher_usage
        if not self.teacher_asked and self.draft is not None:
            usage = self.lane.estimate.of(len(self.incoming.raw), self.draft.answer.text)
        return self._teacher_usd(usage)

    def _teacher_usd(self, usage: Usage | None) -> float | None:
        """At the price of the teacher that answered, else of the first."""
        by = self.asking.by
        return self.lane.prices.teacher_usd(
            usage,
            self.teacher_model,
            self.config.teacher.model or self.chat.model,
            own=None if by is None else by.price,
            base_url=None if by is None else by.base_url,
        )

    @property
    def charged(self) -> bool:
        """The teacher was asked, and took or may have taken money for it."""
        return self.teacher_asked or self.asking.lost > 0

    @property
    def paid_teacher_usd(self) -> float | None:
        """0 where the teacher was not asked."""
        return self.teacher_usd if self.charged else 0.0

    @property
    def cost_usd(self) -> float | None:
        return add(self.student_usd, self.paid_teacher_usd)

    def loss(self) -> float | None:
        """Disagreement of the draft with the teacher, where both are known."""
        if self.broken:
            return 1.0
        if self.draft is None or self.teacher_text is None:
            return None
        spec = self.lane.spec if self.live is None else self.live.router.spec
        window = None if self.live is None else self.live.router.window
        return loss_of(spec, self.draft.answer, self.teacher_text, window)

    def signals(self) -> dict[str, float] | None:
        """The draft's, of the fields that the router looks at."""
        if self.draft is None or self.live is None:
            return None
        return kept_signals(self.live.router.spec, self.draft.answer)

    def exchange(self) -> Exchange:
        """The row for the retraining queue, redacted."""
        task, decision = self.lane.task, self.decision
        redaction = Redaction(task.redact)
        said = self.chat.body
        prompt, body = redaction.text(self.prompt), redaction.json(said)
        draft = None if self.draft is None else self.draft.answer.text
        row = Exchange(
            id=self.incoming.id,
            dedupe_key=exchanges.dedupe_key(task.name, self.incoming.raw),
            at=utcnow(),
            task=task.name,
            # a conversation's id may be what was redacted
            group_key=exchanges.group_key(prompt, body | {"metadata": said.get("metadata")}),
            prompt=prompt,
            body=body,
            subject=exchanges.subject(said),
            consent=self.consent,
            licensed=self.asking.by is None or self.asking.by.trainable,
            teacher_text=redaction.optional(self.teacher_text),
            teacher_model=self.teacher_model,
            student_text=redaction.optional(draft),
            route=decision.route.value,
            reason=decision.reason.value,
            score=decision.score,
            p_ood=decision.p_ood,
            loss=self.loss(),
            # rows drawn by this part of the propensity are traffic as it is
            sampled=sampled(self.incoming.id, self.uniform),
            propensity=self.uniform,
            bundle=None if self.live is None else self.live.bundle.id,
            check=self.check,
            signals=self.signals(),
            prompt_hash=self.lane.prompt_hash,
            caller=self.incoming.caller.id,
        )
        for kind, values in redaction.counts.items():
            self.lane.metrics.redacted[(kind,)].inc(values)
        return row

    def line(self, first_byte_at: float | None) -> Line:
        """The row for the ledger."""
        decision, incoming = self.decision, self.incoming
        arrived, duration_s = incoming.arrived, time.perf_counter() - incoming.arrived
        student_usd, paid_usd = self.student_usd, self.paid_teacher_usd
        alone_usd = paid_usd
        if not self.charged:
            # what was answered by nobody is not compared
            alone_usd = self.teacher_usd if self.status < 400 else None
        line = Line(
            id=incoming.id,
            task=self.lane.task.name,
            route=decision.route.value,
            reason=decision.reason.value,
            bundle=None if self.live is None else self.live.bundle.id,
            model=self.model,
            completion_id=self.completion_id,
            endpoint=endpoint_of(incoming.path),
            caller=incoming.caller.id,
            retries=retries_of(incoming.headers),
            status=self.status,
            stream=self.chat.stream,
            score=decision.score,
            p_ood=decision.p_ood,
            sampled=self.sampled,
            propensity=None if self.live is None else self.propensity,
            least=None if self.live is None else self.uniform,
            guess=self.guess,
            loss=self.loss(),
            student_usd=student_usd,
            teacher_usd=paid_usd,
            cost_usd=add(student_usd, paid_usd),
            teacher_cost_usd=alone_usd,
            estimated=not self.charged,
            duration_ms=duration_s * 1000,
            first_token_ms=None if first_byte_at is None else (first_byte_at - arrived) * 1000,
            student_ms=milliseconds(self.student_s),
            queue_ms=milliseconds(self.asking.queued_s),
            teacher_ms=milliseconds(self.teacher_s),
            overhead_ms=max(0.0, duration_s - incoming.waited_s) * 1000,
        )
        line.count(self.usage)
        return line

    @property
    def model(self) -> str | None:
        """Who answered: the model the teacher named, or the student's adapter."""
        if self.decision.route is Route.TEACHER or self.live is None:
            return name_of(self.teacher_model)
        return self.live.bundle.adapter

    @property
    def completion_id(self) -> str | None:
        """Of the answer the client received."""
        made: Any = self.answer_id
        if self.decision.route is Route.STUDENT and self.draft is not None:
            made = (self.draft.body or self.draft.chunks[0]).get("id")
        return made if isinstance(made, str) else None

    @property
    def usage(self) -> Usage | None:
        """Of the model that answered."""
        if self.cached is not None:
            return self.cached.usage
        if self.decision.route is Route.TEACHER or self.draft is None:
            return self.teacher_usage
        return self.draft.usage
