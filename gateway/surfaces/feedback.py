"""Feedback: what an application or a person says of an answer, by its request or completion id.

A correction of a row of the queue stands in the teacher's place when the next student is trained
and measured; docs/feedback.md has the rules.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import or_
from sqlmodel import Session, col, select

from gateway import metrics
from gateway.errors import InvalidRequest, NotFound, StoreAway
from gateway.parts import Parts
from gateway.storage.rows import storable
from gateway.storage.store import Store
from gateway.storage.stored_rows import asking
from gateway.storage.tables import (
    Exchange,
    Feedback,
    Request,
    StoredCompletion,
    utcnow,
)
from gateway.surfaces.corrections import Messages, Subject, correct, row_for, withdraw
from gateway.wire.protocol import Body, Incoming, Sink, read_json

#: ledger rows are written a little after their answers
LEDGER_LAG_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The feedback as it was sent."""

    id: str
    rating: str | None
    score: float | None
    correction: str | None
    comment: str | None
    #: the request, where the caller sent it along
    messages: Messages | None

    @property
    def kinds(self) -> list[str]:
        """For the metric."""
        kinds = [] if self.rating is None else [self.rating]
        kinds += [] if self.score is None else ["score"]
        return kinds + ([] if self.correction is None else ["correction"])


async def feedback(parts: Parts, incoming: Incoming, sink: Sink) -> None:
    """POST takes it, GET shows what was said last."""
    if incoming.method == "GET":
        query = dict(parse_qsl(incoming.query))
        if not query.get("id"):
            raise InvalidRequest("Missing required parameter: 'id'.", param="id")
        found = await asyncio.to_thread(_read, parts, incoming.caller.id, query["id"])
        await sink.json(200, found)
        return
    given = read_feedback(incoming)
    if not parts.store.healthy:
        raise StoreAway("The database is away: try again.")
    try:
        said = await asyncio.to_thread(take, parts, incoming.caller.id, given)
    except NotFound:
        await asyncio.sleep(LEDGER_LAG_S)
        said = await asyncio.to_thread(take, parts, incoming.caller.id, given)
    task = said["task"] if said["task"] in parts.lanes else "-"
    for kind in given.kinds:
        metrics.feedback_total.labels(task, kind).inc()
    await sink.json(200, said)


def read_feedback(incoming: Incoming) -> Given:
    """Raises InvalidRequest. What must not be kept is not even read."""
    body = read_json(incoming.raw)
    if not isinstance(body.get("id"), str) or not body["id"]:
        raise InvalidRequest("'id' must be a request id or a completion id.", param="id")
    rating, score = body.get("rating"), body.get("score")
    if rating not in (None, "up", "down"):
        raise InvalidRequest("'rating' must be up or down.", param="rating")
    if score is not None and not _is_share(score):
        raise InvalidRequest("'score' must be a number between 0 and 1.", param="score")
    correction, comment = body.get("correction"), body.get("comment")
    try:
        json.dumps(body)  # as the database will have it written
    except RecursionError:
        raise InvalidRequest("The feedback is nested too deeply.") from None
    if isinstance(correction, dict):
        correction = json.dumps(correction, ensure_ascii=False)
    for name, text in (("correction", correction), ("comment", comment)):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise InvalidRequest(f"'{name}' must be a non-empty string.", param=name)
    if rating is score is correction is comment is None:
        raise InvalidRequest(
            "There is no feedback in it: send 'rating', 'score', 'correction' or 'comment'."
        )
    messages = body.get("messages")
    if messages is not None and not _are_messages(messages):
        raise InvalidRequest("'messages' must be a list of messages.", param="messages")
    keep = body.get("store") is not False and "x-retort-no-store" not in incoming.headers
    return Given(
        id=storable(body["id"]),
        rating=rating,
        score=None if score is None else float(score),
        correction=storable(correction) if keep else None,
        comment=storable(comment) if keep else None,
        messages=messages if keep else None,
    )


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in value
    )


def take(parts: Parts, caller: str, given: Given) -> Body:
    """Keep it, all or nothing, in place of what was said before. Raises NotFound, StoreAway."""
    with asking(parts.store), parts.store.transaction() as session:
        subject = _subject(parts, session, caller, given.id)
        old = session.get(Feedback, subject.id)
        lane = parts.lanes.get(subject.task)
        row = why = None
        if given.correction is not None:
            row, why = row_for(session, subject, given.correction, given.messages, lane, caller)
        if old is not None and (row is None or row.id != old.exchange_id):
            withdraw(session, old, lane)
        if row is not None:
            correct(session, row, given.correction, lane)
        said = session.merge(
            Feedback(
                id=subject.id,
                at=utcnow(),
                task=subject.task,
                caller=caller,
                rating=given.rating,
                score=given.score,
                correction=given.correction,
                comment=given.comment,
                exchange_id=None if row is None else row.id,
            )
        )
    return shown(said) | ({} if why is None else {"why": why})


def _subject(parts: Parts, session: Session, caller: str, name: str) -> Subject:
    """By request id or completion id. Raises NotFound for what is not there, or not theirs."""
    asked = session.exec(
        select(Request)
        .where(
            or_(col(Request.id) == name, col(Request.completion_id) == name),
            Request.kind == "answer",
            Request.caller == caller,
        )
        .order_by(col(Request.id).desc())
        .limit(1)
    ).first()
    kept = session.exec(
        select(StoredCompletion)
        .where(
            or_(col(StoredCompletion.id) == name, col(StoredCompletion.completion_id) == name),
            StoredCompletion.caller == caller,
        )
        .order_by(col(StoredCompletion.id).desc())
        .limit(1)
    ).first()
    known = kept if asked is None else asked
    row_id = name if known is None else known.id
    row = session.get(Exchange, row_id, with_for_update=True)
    if row is not None and row.caller != caller:
        row = None
    if known is None and row is None:
        if parts.store.spool_rows:
            raise StoreAway("Some rows still wait on local disk: try again.")
        raise NotFound(f"No request or completion of yours has the id '{name}'.", param="id")
    task = row.task if row is not None else "" if known is None else known.task
    stored = kept if kept is not None and not kept.deleted else None
    return Subject(id=row_id, task=task, request=asked, stored=stored, exchange=row)


def _read(parts: Parts, caller: str, name: str) -> Body:
    with asking(parts.store), parts.store.session() as session:
        subject = _subject(parts, session, caller, storable(name))
        said = session.get(Feedback, subject.id)
    if said is None:
        raise NotFound(f"No feedback was given for '{name}'.", param="id")
    return shown(said)


def shown(said: Feedback) -> Body:
    return {
        "id": said.id,
        "object": "feedback",
        "created": int(said.at.timestamp()),
        "task": said.task,
        "rating": said.rating,
        "score": said.score,
        "correction": said.correction,
        "comment": said.comment,
        "trainable": said.exchange_id is not None,
    }


def newest(store: Store, task: str, limit: int) -> list[Feedback]:
    """For people. Raises StoreError."""
    statement = select(Feedback).where(Feedback.task == task)
    with store.session() as session:
        return list(session.exec(statement.order_by(col(Feedback.at).desc()).limit(limit)))


def of_exchange(store: Store, exchange_id: str) -> list[Feedback]:
    """What was said of a row of the queue. Raises StoreError."""
    about = or_(col(Feedback.id) == exchange_id, col(Feedback.exchange_id) == exchange_id)
    with store.session() as session:
        return list(session.exec(select(Feedback).where(about).order_by(col(Feedback.at))))
