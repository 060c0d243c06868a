"""One request of a task on its way to an answer: everything the ledger and the queue will know."""

import time
from dataclasses import dataclass, field
from functools import cached_property

from gateway import exchanges
from gateway.chain import Asking
from gateway.config import Config
from gateway.draft import Draft
from gateway.lane import Lane, Live, sampled
from gateway.pricing import Usage, add, cost_usd
from gateway.prompt import user_text
from gateway.protocol import Chat, Incoming
from gateway.tables import Exchange, Request, utcnow
from router.decision import Decision, Reason, Route
from router.output import disagreement


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
    draft: Draft | None = None
    teacher_asked: bool = False
    asking: Asking = field(default_factory=Asking)
    #: why the student gave no draft
    student_failed: Reason = Reason.STUDENT_ERROR
    teacher_text: str | None = None
    teacher_model: str | None = None
    teacher_usage: Usage | None = None
    #: what the client got, where it is not the response's own status (499: it left)
    status: int = 0

    def __post_init__(self) -> None:
        self.live = self.lane.live
        self.propensity = self.lane.propensity()
        self.sampled = sampled(self.incoming.id, self.propensity)

    @cached_property
    def prompt(self) -> str:
        return user_text(self.lane.task.prompt, self.chat.messages)

    @property
    def keeps_text(self) -> bool:
        return self.chat.keep and self.lane.task.store_payloads

    @property
    def student_usd(self) -> float | None:
        """0 where the student was not asked."""
        if self.draft is None:
            return 0.0
        return cost_usd(self.config.student.price, self.draft.usage)

    @property
    def teacher_usd(self) -> float | None:
        """What the teacher cost, or would have cost by estimate. None where attempts were given up
        that nobody can say the cost of."""
        if self.asking.lost:
            return None
        by = self.asking.by
        price = self.config.teacher.price if by is None else by.price
        if self.teacher_asked or self.draft is None:
            return cost_usd(price, self.teacher_usage)
        size = len(self.incoming.raw)
        return cost_usd(price, self.lane.estimate.of(size, self.draft.answer.text))

    @property
    def cost_usd(self) -> float | None:
        asked = self.teacher_asked or self.asking.lost
        return add(self.student_usd, self.teacher_usd if asked else 0.0)

    def loss(self) -> float | None:
        """Disagreement of the draft with the teacher, where both are known."""
        if self.draft is None or self.teacher_text is None:
            return None
        spec = self.lane.spec if self.live is None else self.live.router.spec
        return disagreement(spec, self.draft.answer.text, self.teacher_text)

    def exchange(self) -> Exchange:
        """The row for the retraining queue."""
        task, decision = self.lane.task, self.decision
        return Exchange(
            id=self.incoming.id,
            dedupe_key=exchanges.dedupe_key(task.name, self.incoming.raw),
            at=utcnow(),
            task=task.name,
            group_key=exchanges.group_key(self.prompt, self.chat.body),
            prompt=self.prompt,
            body=self.chat.body,
            teacher_text=self.teacher_text,
            teacher_model=self.teacher_model,
            student_text=None if self.draft is None else self.draft.answer.text,
            route=decision.route.value,
            reason=decision.reason.value,
            score=decision.score,
            p_ood=decision.p_ood,
            loss=self.loss(),
            sampled=self.sampled,
            propensity=self.propensity,
            bundle=None if self.live is None else self.live.bundle.id,
            prompt_hash=self.lane.prompt_hash,
            caller=self.incoming.caller.id,
        )

    def request(self, first_byte_at: float | None) -> Request:
        """The row for the ledger."""
        decision, arrived = self.decision, self.incoming.arrived
        usage = self.usage
        return Request(
            id=self.incoming.id,
            at=utcnow(),
            task=self.lane.task.name,
            route=decision.route.value,
            reason=decision.reason.value,
            bundle=None if self.live is None else self.live.bundle.id,
            status=self.status,
            stream=self.chat.stream,
            score=decision.score,
            p_ood=decision.p_ood,
            duration_ms=(time.perf_counter() - arrived) * 1000,
            first_token_ms=None if first_byte_at is None else (first_byte_at - arrived) * 1000,
            prompt_tokens=None if usage is None else usage.prompt,
            completion_tokens=None if usage is None else usage.completion,
            cost_usd=self.cost_usd,
            teacher_cost_usd=self.teacher_usd,
            caller=self.incoming.caller.id,
        )

    @property
    def usage(self) -> Usage | None:
        """Of the model that answered."""
        if self.decision.route is Route.TEACHER or self.draft is None:
            return self.teacher_usage
        return self.draft.usage
