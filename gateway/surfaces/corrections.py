"""Corrections in the queue: which row one goes to, and what it changes there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from gateway.audits.teacher import answer_text
from gateway.lane import Lane
from gateway.prompt import prompt_hash, user_text
from gateway.redaction import Redaction
from gateway.storage import exchanges
from gateway.storage.tables import (
    Exchange,
    ExchangeEvent,
    Feedback,
    Request,
    State,
    StoredCompletion,
    utcnow,
)
from gateway.wire.protocol import Body
from router.decision import Answer, Route
from router.output import check, disagreement

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is known here of the request the feedback is about."""

    id: str
    task: str
    request: Request | None
    stored: StoredCompletion | None
    exchange: Exchange | None


def row_for(
    session: Session,
    subject: Subject,
    correction: str,
    messages: Messages | None,
    lane: Lane | None,
    caller: str,
) -> tuple[Exchange | None, str | None]:
    """The row of the queue that the correction goes to, made if need be; or why to none."""
    if lane is None:
        return None, "its task is not in the configuration"
    if not lane.task.store_payloads:
        return None, "its task keeps no text (store_payloads)"
    if (problem := check(lane.spec, Answer(text=correction))) is not None:
        return None, f"the correction breaks the task's output rules: {problem}"
    row = subject.exchange or _repeated(session, subject, messages, lane, caller)
    if row is not None:
        if row.state == State.ERASED:
            return None, "its text was erased"
        return row, None
    if subject.stored is not None:
        body = subject.stored.body
    elif messages is not None:
        body = {"model": subject.task, "messages": list(messages)}
    else:
        return None, "its text was not kept: send 'messages' along"
    redaction = Redaction(lane.task.redact)
    said, body = body, redaction.json(body)
    prompt = user_text(lane.task.prompt, body["messages"])
    if not prompt.strip():
        return None, "its messages hold no user text"
    row = _made(subject, said, body, prompt, redaction, lane, caller)
    session.add(row)
    return row, None


def _repeated(
    session: Session, subject: Subject, messages: Messages | None, lane: Lane, caller: str
) -> Exchange | None:
    """The row that holds the same request of the same caller, asked before."""
    mine = select(Exchange).where(Exchange.task == lane.task.name, Exchange.caller == caller)
    if subject.stored is not None:
        same = mine.where(Exchange.dedupe_key == subject.stored.dedupe_key)
        return session.exec(same.with_for_update()).first()
    if messages is None:
        return None
    messages = Redaction(lane.task.redact).json(messages)
    prompt = user_text(lane.task.prompt, messages)
    group = exchanges.group_key(prompt, {"messages": messages})
    near = session.exec(mine.where(Exchange.group_key == group).with_for_update()).all()
    return next((row for row in near if row.body.get("messages") == messages), None)


def _made(
    subject: Subject,
    said: Body,
    body: Body,
    prompt: str,
    redaction: Redaction,
    lane: Lane,
    caller: str,
) -> Exchange:
    """A row nobody drew at random: `sampled` is False, so it proves nothing, but teaches."""
    asked, stored = subject.request, subject.stored
    # the ledger is a little behind
    known = stored if asked is None else asked
    assert known is not None
    text = redaction.optional(None if stored is None else answer_text(stored.answer))
    by_student = known.route == Route.STUDENT.value
    return Exchange(
        id=subject.id,
        dedupe_key=f"feedback:{subject.id}",
        at=utcnow(),
        task=lane.task.name,
        group_key=exchanges.group_key(prompt, body),
        prompt=prompt,
        body=body,
        student_text=text if by_student else None,
        teacher_text=None if by_student else text,
        route=known.route,
        reason=known.reason,
        score=None if asked is None else asked.score,
        p_ood=None if asked is None else asked.p_ood,
        bundle=None if asked is None else asked.bundle,
        prompt_hash=prompt_hash(lane.task.prompt),
        caller=caller,
        subject=exchanges.subject(said),
        consent=lane.task.consent == "assumed",
    )


def correct(session: Session, row: Exchange, correction: str | None, lane: Lane | None) -> None:
    """Put the correction (None: none any more) into the row, redacted as the row is."""
    if correction is not None and lane is not None:
        correction = Redaction(lane.task.redact).text(correction)
    if row.correction == correction:
        return
    withdrawn = correction is None
    row.correction = correction
    right = row.teacher_text if withdrawn else correction
    row.loss = None
    if lane is not None and row.student_text is not None and right is not None:
        spec = lane.spec if lane.live is None else lane.live.router.spec
        row.loss = disagreement(spec, row.student_text, right)
    # what was rejected for the teacher's answer may do now, and the other way round
    if row.state == State.REJECTED or (withdrawn and row.state != State.CAPTURED):
        row.state = State.CAPTURED
    detail = "correction withdrawn" if withdrawn else "corrected"
    session.add(ExchangeEvent(exchange_id=row.id, at=utcnow(), state=row.state, detail=detail))


def withdraw(session: Session, old: Feedback, lane: Lane | None) -> None:
    """The row is again as if ``old`` had never been given."""
    if old.exchange_id is None:
        return
    row = session.get(Exchange, old.exchange_id, with_for_update=True)
    if row is None or row.state == State.ERASED:
        return
    others = select(Feedback.correction).where(
        Feedback.exchange_id == old.exchange_id,
        Feedback.id != old.id,
        col(Feedback.correction).is_not(None),
    )
    before = session.exec(others.order_by(col(Feedback.at).desc()).limit(1)).first()
    correct(session, row, before, lane)
