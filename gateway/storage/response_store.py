"""Responses that were made here, kept so that a later request can go on from them.

A row is its caller's alone: to anybody else it does not exist. It holds the whole conversation up
to it, so one look is enough to go on, and deleting an earlier response breaks no later one.
"""

import re
import secrets
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete
from sqlmodel import Session, col, select

from gateway.storage.database import refused_in_one_line
from gateway.storage.store import Store
from gateway.storage.tables import StoredResponse, utcnow
from gateway.wire.protocol import Body

#: what tells our ids from the teacher's
PREFIX = "resp_rt"
#: an item's id says which response it belongs to
_ITEM = re.compile(rf"[a-z]+_({PREFIX.removeprefix('resp_')}[0-9a-f]{{48}})(?:in)?[0-9a-f]{{2,}}")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def new_response_id() -> str:
    return PREFIX + secrets.token_hex(24)


def is_ours(response_id: object) -> bool:
    return isinstance(response_id, str) and response_id.startswith(PREFIX)


def find(store: Store, response_id: str, caller: str) -> StoredResponse | None:
    """None where the caller has no such response. Raises StoreError."""
    with refused_in_one_line(store.engine), store.session() as session:
        row = session.get(StoredResponse, response_id)
        return row if row is not None and row.caller == caller else None


def response_of(item_id: object) -> str | None:
    """The id of the response an item of ours belongs to; None where the item is not ours."""
    match = _ITEM.fullmatch(item_id) if isinstance(item_id, str) else None
    return None if match is None else f"resp_{match[1]}"


def find_items(store: Store, item_ids: Sequence[str], caller: str) -> dict[str, Body]:
    """Those of the items that the caller has, by id. Raises StoreError."""
    found: dict[str, Body] = {}
    for response_id in {response_of(item_id) for item_id in item_ids}:
        row = None if response_id is None else find(store, response_id, caller)
        if row is not None:
            found |= {item["id"]: item for item in conversation(row)}
    return found


def remove(store: Store, response_id: str, caller: str) -> bool:
    """False where the caller has no such response. Raises StoreError."""
    with store.transaction() as session:
        row = session.get(StoredResponse, response_id)
        if row is None or row.caller != caller:
            return False
        session.delete(row)
        return True


def erase_requests(session: Session, request_ids: Sequence[str]) -> None:
    """Delete the responses to these requests, and every other one of their conversations: those
    hold the same text."""
    threads = select(StoredResponse.thread).where(
        col(StoredResponse.request_id).in_(list(request_ids))
    )
    session.exec(delete(StoredResponse).where(col(StoredResponse.thread).in_(threads)))


def forget_old(store: Store, max_age_days: float) -> None:
    """Delete what is older. Raises StoreError."""
    before = utcnow() - timedelta(days=max_age_days)
    with refused_in_one_line(store.engine), store.session() as session:
        # a look first: most of the time there is nothing, and no lock is taken for it
        old = select(StoredResponse.id).where(col(StoredResponse.at) < before)
        if session.exec(old.limit(1)).first() is None:
            return
    with store.transaction() as session:
        session.exec(delete(StoredResponse).where(col(StoredResponse.at) < before))


def conversation(row: StoredResponse) -> list[Body]:
    """Everything said up to and including this response, as input items."""
    output: list[Body] = row.body["output"]
    return [*row.items, *output]


def with_ids(items: Sequence[Body], response_id: str) -> list[Body]:
    """Items as the API lists them: each with an id, a message's content as an array of parts."""
    listed: list[Body] = []
    for index, item in enumerate(items):
        made: Body = item | {"type": item.get("type") or "message"}
        listed.append(made)
        if not isinstance(made.get("id"), str):
            own = response_id.removeprefix("resp_")
            made["id"] = f"{_PREFIXES[made['type']]}_{own}in{index:02x}"
        if made["type"] == "message":
            made.setdefault("status", "completed")
            if isinstance(made["content"], str):
                made["content"] = [_part(made["role"], made["content"])]
    return listed


def _part(role: str, text: str) -> Body:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}
