"""The database, table by table. Rows are written as given; ids and times come from the caller.

`exchange` is the retraining queue: one row per request of a task that the teacher answered
(fallback) or checked (audit), with its current state; `exchange_event` is its append-only history.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime, Index, Integer, LargeBinary, text
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


def utcnow() -> datetime:
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC in, aware UTC out, also on SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


BigId = BigInteger().with_variant(Integer(), "sqlite")


class State(StrEnum):
    """Where an exchange is on its way into a dataset."""

    #: stored, with or without the teacher's answer
    CAPTURED = "captured"
    #: curation dropped it; the event says why
    REJECTED = "rejected"
    #: usable, and on the training side of the split
    TRAINABLE = "trainable"
    #: usable, and kept for calibration or evaluation for ever
    HELD_OUT = "held_out"
    #: member of at least one dataset version
    IN_DATASET = "in_dataset"
    #: text removed on request
    ERASED = "erased"


class BundleState(StrEnum):
    CANDIDATE = "candidate"
    #: compared with the champion on a share of the traffic (docs/canary.md)
    CANARY = "canary"
    CHAMPION = "champion"
    RETIRED = "retired"
    REJECTED = "rejected"


class CanaryState(StrEnum):
    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    #: by hand, or because the champion was replaced
    STOPPED = "stopped"


class Request(SQLModel, table=True):
    """The ledger: one row per request, of a task or of none (task ``-``), and one per call that was
    paid beside it (an audit). No text. The gateway writes its rows as `storage/line.py: Line`.

    Dollars are null where a price or a count is unknown, never 0.
    """

    __tablename__ = "request"
    __table_args__ = (
        Index(
            "ix_request_unheard",
            "task",
            "bundle",
            sqlite_where=text("kind = 'audit' AND NOT heard"),
            postgresql_where=text("kind = 'audit' AND NOT heard"),
        ),
    )
    id: str = Field(primary_key=True)
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False, index=True))
    task: str = Field(index=True)
    route: str
    reason: str
    bundle: str | None = None
    status: int
    stream: bool = False
    score: float | None = None
    p_ood: float | None = None
    sampled: bool = False
    """Whether the student's answer, if it is the one served, is audited."""
    propensity: float | None = None
    """With which probability it was to be sampled; 0: nothing was to be known of its loss. Null
    where no bundle was live."""
    guess: float | None = None
    """The loss expected of the draft, fixed before the loss was seen."""
    loss: float | None = None
    """Disagreement of the student's draft with the teacher: here of a draft that was not served, in
    the row of the audit of one that was. Null where one of both is unknown."""
    least: float | None = None
    """The least propensity that any request could have had then, whatever its draft; null where no
    bundle was live."""
    written_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    """When the row came to the database: later than `at` where it had to wait."""
    heard: bool = False
    """Of an audit: whether the alarms have counted it."""
    duration_ms: float
    first_token_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    """What was paid for it, audits aside: student_usd and teacher_usd."""
    teacher_cost_usd: float | None = None
    """What the teacher would have cost, or did; null where a price or a count is unknown."""
    caller: str = ""
    """Id of the API key; empty where none is needed."""
    completion_id: str | None = Field(default=None, index=True)
    """The `id` of the answer the client received."""
    kind: str = "answer"
    """answer: a request; audit: the teacher asked about a student's answer; reaudit: asked once
    more; judge: a model that compares both answers, here or in a night; label: a call of the
    retraining loop."""
    parent: str | None = None
    """Of an audit, and what belongs to it: id of the request."""
    endpoint: str = "chat/completions"
    """chat/completions | completions | embeddings | responses | messages | other"""
    model: str | None = None
    """Who answered, as the answer names it; of a student its adapter."""
    retries: int = 0
    """The client's own repeats of this request before this one, as its SDK counts them."""
    cached_tokens: int | None = None
    """Part of prompt_tokens, as the next."""
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    """Part of completion_tokens."""
    audio_tokens: int | None = None
    """Of both."""
    student_usd: float | None = None
    """What the student's draft cost, served or not; 0 where it made none."""
    teacher_usd: float | None = None
    """What the teacher was paid; 0 where it was not asked."""
    estimated: bool = False
    """teacher_cost_usd is an estimate: the teacher was not asked."""
    queue_ms: float | None = None
    """Time it waited in line for the teacher; null where there was no line."""
    student_ms: float | None = None
    """Time it waited for the student; null where that was not asked."""
    teacher_ms: float | None = None
    """The same of the teacher, queue_ms included."""
    overhead_ms: float | None = None
    """What remains of duration_ms: the gateway's own time."""


class Exchange(SQLModel, table=True):
    __tablename__ = "exchange"
    __table_args__ = (Index("ix_exchange_queue", "task", "state", "at"),)
    id: str = Field(primary_key=True)
    """The request id the client received."""
    dedupe_key: str = Field(unique=True)
    """SHA-256 of task and request body: a client's retry of the same request is the same row."""
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False, index=True))
    task: str
    group_key: str = Field(index=True)
    """Rows of one group (conversation, or near-identical prompt) never sit on two split sides."""
    prompt: str
    """The user text the student and the router see."""
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The request as the client sent it."""
    teacher_text: str | None = None
    teacher_model: str | None = None
    student_text: str | None = None
    route: str
    reason: str
    score: float | None = None
    p_ood: float | None = None
    correction: str | None = None
    """The right answer, from feedback; it stands in the teacher's place."""
    loss: float | None = None
    """Disagreement of student_text with the correction, else with teacher_text, where known."""
    sampled: bool = False
    """Chosen independently of route and content: sampled rows are traffic as it is."""
    propensity: float = 1.0
    """Probability with which `sampled` was drawn."""
    bundle: str | None = None
    check: str | None = None
    """Name of the check that student_text failed."""
    signals: dict[str, float] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True))
    )
    """How sure the student was of student_text, in numbers (`router/kept_signals.py`)."""
    prompt_hash: str = ""
    """Hash of the prompt contract in force."""
    caller: str = ""
    """Id of the API key; empty where none is needed."""
    subject: str = Field(default="", index=True)
    """SHA-256 of the end user's id where the request names one; for erasure."""
    consent: bool = True
    """The application lets this exchange be learnt from."""
    licensed: bool = True
    """Its teacher's answers may be learnt from; a correction may whatever its terms are."""
    state: str = State.CAPTURED
    seen: int = 1
    """How often the same request came."""
    attempts: int = 0
    lease_owner: str | None = None
    lease_until: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


class ExchangeEvent(SQLModel, table=True):
    __tablename__ = "exchange_event"
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True))
    exchange_id: str = Field(index=True)
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    state: str
    detail: str = ""


class Dataset(SQLModel, table=True):
    """An immutable dataset version; its id is the hash of its manifest."""

    __tablename__ = "dataset"
    id: str = Field(primary_key=True)
    task: str = Field(index=True)
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    sha256: str
    manifest: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class DatasetRow(SQLModel, table=True):
    __tablename__ = "dataset_row"
    dataset_id: str = Field(primary_key=True)
    exchange_id: str = Field(primary_key=True, index=True)
    split: str
    """train | calibration | test"""


class Bundle(SQLModel, table=True):
    __tablename__ = "bundle"
    __table_args__ = (
        Index(
            "ix_bundle_one_champion",
            "task",
            unique=True,
            sqlite_where=text("state = 'champion'"),
            postgresql_where=text("state = 'champion'"),
        ),
    )
    id: str = Field(primary_key=True)
    task: str = Field(index=True)
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    state: str = BundleState.CANDIDATE
    path: str
    """Folder with bundle.json, adapter/ and router/."""
    adapter: str
    """Name under which the student server knows the adapter."""
    parent: str | None = None
    """The champion it was compared with."""
    dataset_id: str | None = None
    run_id: str | None = None
    tainted: bool = False
    """Made with rows that were erased since; the next night replaces it."""
    summary: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class BundleEvent(SQLModel, table=True):
    __tablename__ = "bundle_event"
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True))
    bundle_id: str = Field(index=True)
    task: str = Field(index=True)
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    event: str
    """registered | promoted | retired | rolled_back | rejected | tainted | canary |
    canary_stopped"""
    detail: str = ""


class Run(SQLModel, table=True):
    """One night (or one step of it run by hand)."""

    __tablename__ = "run"
    id: str = Field(primary_key=True)
    task: str = Field(index=True)
    kind: str
    started_at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    state: str = "running"
    """running | done | failed"""
    step: str = ""
    verdict: str | None = None
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class Evaluation(SQLModel, table=True):
    """How one bundle did on the test split of one dataset version."""

    __tablename__ = "evaluation"
    id: int | None = Field(default=None, sa_column=Column(BigId, primary_key=True))
    bundle_id: str = Field(index=True)
    dataset_id: str
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    n: int
    agreement: float
    agreement_low: float
    agreement_high: float
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class ApiKey(SQLModel, table=True):
    """Who may call, what, and how much. The key itself stands nowhere, its hash in
    `api_key_secret`."""

    __tablename__ = "api_key"
    __table_args__ = (
        Index(
            "ix_api_key_name_in_use",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )
    id: str = Field(primary_key=True)
    name: str
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    tasks: list[str] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    """Names of tasks, and `-` for traffic no task claims; null: everything."""
    may_route: bool = False
    admin: bool = False
    rpm: int | None = None
    tpm: int | None = None
    daily_usd: float | None = None
    monthly_usd: float | None = None
    expires_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    revoked_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    version: int = Field(index=True)
    """Of `api_key_version` when this row last changed."""


class ApiKeySecret(SQLModel, table=True):
    """One value of a key: the current one, and after a rotation the one before, until its end."""

    __tablename__ = "api_key_secret"
    sha256: str = Field(primary_key=True)
    key_id: str = Field(index=True)
    shown: str
    """The first characters of the key, to tell one from another."""
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


class ApiKeyVersion(SQLModel, table=True):
    """One row: how often keys were changed. Whoever changes one counts up in the same
    transaction, so that a gateway can ask for what is new."""

    __tablename__ = "api_key_version"
    id: int = Field(primary_key=True)
    version: int


class RateBucket(SQLModel, table=True):
    """The state of one rate limit, for all gateways together."""

    __tablename__ = "rate_bucket"
    id: str = Field(primary_key=True)
    """`requests:` or `tokens:` and the id of the key."""
    full_at: float
    """Unix time when the whole limit will be free again; in the past: it is."""


class Spending(SQLModel, table=True):
    """Dollars of one budget that gateways have taken in one period: spent, or held to be spent."""

    __tablename__ = "spending"
    account: str = Field(primary_key=True)
    """`task:` or `audit:` and the task's name, or `key:` and its id."""
    period: str = Field(primary_key=True)
    """A day or month of UTC: 2026-11-24, 2026-11."""
    taken_usd: float


class StoredCompletion(SQLModel, table=True):
    """A chat completion the application asked to keep (``store: true``), as it received it."""

    __tablename__ = "stored_completion"
    __table_args__ = (Index("ix_stored_completion_owner", "caller", "id"),)
    id: str = Field(primary_key=True)
    """The request id; ids sort by time."""
    completion_id: str = Field(index=True)
    caller: str = ""
    task: str
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    route: str
    reason: str
    model: str
    """As the answer names it."""
    asked_model: str
    """As the request named it."""
    dedupe_key: str = Field(index=True)
    """Of the exchange that holds the same request."""
    labels: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The application's metadata, which it may replace."""
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    answer: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    deleted: bool = False
    """Its text is gone; what is left keeps the id taken, and cursors valid."""


class Feedback(SQLModel, table=True):
    """What an application or a person said of one answer. The newest word counts."""

    __tablename__ = "feedback"
    id: str = Field(primary_key=True)
    """The request id."""
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    task: str = Field(index=True)
    caller: str = ""
    rating: str | None = None
    """up | down"""
    score: float | None = None
    """In [0, 1]."""
    correction: str | None = None
    comment: str | None = None
    exchange_id: str | None = Field(default=None, index=True)
    """The row of the queue that the correction went to."""


class StoredResponse(SQLModel, table=True):
    """A response of the Responses API that was made here, and what was said before it."""

    __tablename__ = "response"
    id: str = Field(primary_key=True)
    caller: str
    """Id of the API key; nobody else may see the row."""
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False, index=True))
    request_id: str = Field(index=True)
    thread: str = Field(index=True)
    """Id of the first response of the conversation."""
    items: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    """The conversation up to this response, as input items, without instructions."""
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The response as the client got it."""


class Certificate(SQLModel, table=True):
    """The live certificate of one bundle of a task: what the ledger says so far, and the threshold
    that follows. Replaced under its lock, by whichever gateway folds the next rows into it."""

    __tablename__ = "certificate"
    task: str = Field(primary_key=True)
    bundle: str = Field(primary_key=True)
    version: int
    """Counts the changes: a gateway never goes back to an older state."""
    epoch: int = 1
    """Counts the starts: from 2 on after an alarm, or under a changed contract."""
    turn: int = 1
    """It has 1/(turn (turn + 1)) of the allowed error: the epoch, or one more with every start of
    any bundle of the task (contract.spend: lifetime)."""
    since: str = ""
    """Requests with ids after this one count. Empty: all of the bundle's, and before them its
    calibration rows."""
    frontier: str = ""
    """Every request up to this id has been counted, or left out for good."""
    settle_s: float
    """A row that was written later than this after its request came is left out."""
    audit_wait_s: float
    """An audit that is not there so long after its request came is lost, and counts as loss 1."""
    state: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """The capital and the counts, as arrays (npz)."""
    threshold: float
    """What gateways use; 1.01: never."""
    certified: bool
    coverage: float
    """Share of the counted requests with a score of at least the threshold."""
    coverage_low: float
    coverage_high: float
    n: int
    audits: int
    labels: int
    detail: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """Further figures for people: estimate, next threshold, audits still needed."""
    alarms: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    """The state of the alarms; null while nothing is served."""
    alarm: str | None = None
    """harm | shift, while it stands: the teacher answers until the student is certified anew."""
    drift: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    """The last window of requests that was looked at for drift."""
    updated_at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))


class Incident(SQLModel, table=True):
    """An alarm or a drift: what was seen, and what was done."""

    __tablename__ = "incident"
    id: str = Field(primary_key=True)
    task: str = Field(index=True)
    bundle: str
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    kind: str
    """harm | shift | drift"""
    detail: str
    done: str
    threshold_before: float | None = None
    threshold_after: float | None = None
    cleared_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


class PendingAudit(SQLModel, table=True):
    """An audit that was promised and is not made yet, with the text it needs. The gateway writes
    its rows as `storage/promise.py: Promise`; they go when the audit is in the ledger."""

    __tablename__ = "pending_audit"
    id: str = Field(primary_key=True)
    """The request id."""
    at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    task: str
    bundle: str | None = None
    caller: str = ""
    endpoint: str
    dedupe_key: str
    """As the exchange that the audit becomes will have it."""
    body: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The request as the client sent it; empty where it was erased, or holds what may not be
    stored: then only the gateway that promised the audit can make it."""
    prompt: str
    student_text: str
    prompt_hash: str = ""
    subject: str = Field(default="", index=True)
    """As the exchange will have it, and the next."""
    consent: bool
    broken: bool
    """The answer breaks the output rules, which is a full loss whatever the teacher says."""
    reason: str
    score: float | None = None
    p_ood: float | None = None
    propensity: float
    uniform: float
    """The part of the propensity that does not depend on the draft."""
    guess: float | None = None
    signals: dict[str, float] | None = Field(default=None, sa_column=Column(JSON))
    """As the exchange will have them."""
    expires: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    """When it is given up, and counts as a disagreement."""
    attempts: int = 0
    """How many gateways have taken it over."""
    lease_owner: str
    lease_until: datetime = Field(sa_column=Column(UTCDateTime, nullable=False, index=True))


class Canary(SQLModel, table=True):
    """A new bundle on a share of its task's traffic, beside the champion. Replaced under its lock
    by whichever gateway folds the next rows of the ledger into it."""

    __tablename__ = "canary"
    __table_args__ = (
        Index(
            "ix_canary_one_running",
            "task",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )
    id: str = Field(primary_key=True)
    task: str = Field(index=True)
    bundle: str
    """The challenger."""
    champion: str
    state: str = CanaryState.RUNNING
    reason: str = ""
    """Why it ended, in words and numbers."""
    step: int = 0
    share: float
    """Of the task's traffic, while it runs."""
    started_at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    step_at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    frontier_at: datetime = Field(sa_column=Column(UTCDateTime, nullable=False))
    """Rows of the ledger up to here, and at this time up to the id `frontier`, were counted."""
    frontier: str = ""
    requests: int = 0
    """Of the challenger's, counted in this step."""
    races: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """What is compared, by name: `canaries/races.py`."""
