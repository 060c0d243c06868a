"""A promised audit before it is in the database: as `line.py` is to the ledger."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar

from gateway.redaction import Redaction
from router.pii import PII


@dataclass(slots=True, kw_only=True)
class Promise:
    """See `tables.PendingAudit` for what the fields mean. The last ones stay in this process:
    ``headers`` may hold the client's key."""

    __tablename__: ClassVar[str] = "pending_audit"

    id: str
    at: datetime
    task: str
    bundle: str | None
    caller: str
    endpoint: str
    dedupe_key: str
    body: dict[str, Any]
    prompt: str
    student_text: str
    prompt_hash: str
    subject: str
    consent: bool
    broken: bool
    reason: str
    score: float | None
    p_ood: float | None
    propensity: float
    uniform: float
    guess: float | None
    signals: dict[str, float] | None
    expires: datetime
    lease_owner: str
    lease_until: datetime
    attempts: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    #: how often the teacher has failed it here
    failures: int = 0
    #: an attempt was given up after it was sent: what it cost nobody knows
    cost_lost: bool = False


def storable(promise: Promise, kinds: Collection[PII]) -> Promise:
    """What of it may be stored: not its text, where that holds a secret or personal data of these
    kinds. The teacher cannot be asked about placeholders, so such an audit is lost with its
    gateway."""
    redaction = Redaction(kinds)
    redaction.json([promise.body, promise.prompt, promise.student_text])
    if not redaction.counts:
        return promise
    return replace(promise, body={}, prompt="", student_text="")
