"""A promised audit before it is in the database: as `line.py` is to the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar


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
    reason: str
    score: float | None
    p_ood: float | None
    propensity: float
    uniform: float
    guess: float | None
    expires: datetime
    lease_owner: str
    lease_until: datetime
    attempts: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    #: how often the teacher has failed it here
    failures: int = 0
    #: an attempt was given up after it was sent: what it cost nobody knows
    cost_lost: bool = False
