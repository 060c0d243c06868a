"""The schema's history: functions applied once each, in order, under a lock.

A migration is frozen once released: it spells out its own tables, because ``tables.py`` goes on
changing. A test compares what they add up to with ``tables.py``.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    inspect,
    select,
    text,
)

from gateway.errors import StoreError
from gateway.storage.database import refused_in_one_line, shown, transaction

#: "retort" as a number: the key of the PostgreSQL lock under which migrations run
LOCK = 0x7265746F7274

_applied = Table(
    "retort_migration",
    MetaData(),
    Column("name", String, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
)


def m001_initial(connection: Connection) -> None:
    meta = MetaData()
    time = DateTime(timezone=True)
    big = BigInteger().with_variant(Integer(), "sqlite")
    Table(
        "request",
        meta,
        Column("id", String, primary_key=True),
        Column("at", time, nullable=False, index=True),
        Column("task", String, nullable=False, index=True),
        Column("route", String, nullable=False),
        Column("reason", String, nullable=False),
        Column("bundle", String),
        Column("status", Integer, nullable=False),
        Column("stream", Boolean, nullable=False),
        Column("score", Float),
        Column("p_ood", Float),
        Column("sampled", Boolean, nullable=False),
        Column("propensity", Float),
        Column("guess", Float),
        Column("loss", Float),
        Column("least", Float),
        Column("written_at", time),
        Column("heard", Boolean, nullable=False),
        Column("duration_ms", Float, nullable=False),
        Column("first_token_ms", Float),
        Column("prompt_tokens", Integer),
        Column("completion_tokens", Integer),
        Column("cost_usd", Float),
        Column("teacher_cost_usd", Float),
        Column("caller", String, nullable=False),
        Column("completion_id", String, index=True),
        Column("kind", String, nullable=False),
        Column("parent", String),
        Column("endpoint", String, nullable=False),
        Column("model", String),
        Column("retries", Integer, nullable=False),
        Column("cached_tokens", Integer),
        Column("cache_write_tokens", Integer),
        Column("reasoning_tokens", Integer),
        Column("audio_tokens", Integer),
        Column("student_usd", Float),
        Column("teacher_usd", Float),
        Column("estimated", Boolean, nullable=False),
        Column("queue_ms", Float),
        Column("student_ms", Float),
        Column("teacher_ms", Float),
        Column("overhead_ms", Float),
        Index(
            "ix_request_unheard",
            "task",
            "bundle",
            sqlite_where=text("kind = 'audit' AND NOT heard"),
            postgresql_where=text("kind = 'audit' AND NOT heard"),
        ),
    )
    Table(
        "exchange",
        meta,
        Column("id", String, primary_key=True),
        Column("dedupe_key", String, nullable=False, unique=True),
        Column("at", time, nullable=False, index=True),
        Column("task", String, nullable=False),
        Column("group_key", String, nullable=False, index=True),
        Column("prompt", String, nullable=False),
        Column("body", JSON, nullable=False),
        Column("teacher_text", String),
        Column("teacher_model", String),
        Column("student_text", String),
        Column("route", String, nullable=False),
        Column("reason", String, nullable=False),
        Column("score", Float),
        Column("p_ood", Float),
        Column("correction", String),
        Column("loss", Float),
        Column("sampled", Boolean, nullable=False),
        Column("propensity", Float, nullable=False),
        Column("bundle", String),
        Column("check", String),
        Column("signals", JSON),
        Column("prompt_hash", String, nullable=False),
        Column("caller", String, nullable=False),
        Column("subject", String, nullable=False, index=True),
        Column("consent", Boolean, nullable=False),
        Column("licensed", Boolean, nullable=False),
        Column("state", String, nullable=False),
        Column("seen", Integer, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("lease_owner", String),
        Column("lease_until", time),
        Index("ix_exchange_queue", "task", "state", "at"),
    )
    Table(
        "exchange_event",
        meta,
        Column("id", big, primary_key=True),
        Column("exchange_id", String, nullable=False, index=True),
        Column("at", time, nullable=False),
        Column("state", String, nullable=False),
        Column("detail", String, nullable=False),
    )
    Table(
        "dataset",
        meta,
        Column("id", String, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("at", time, nullable=False),
        Column("sha256", String, nullable=False),
        Column("manifest", JSON, nullable=False),
    )
    Table(
        "dataset_row",
        meta,
        Column("dataset_id", String, primary_key=True),
        Column("exchange_id", String, primary_key=True, index=True),
        Column("split", String, nullable=False),
    )
    Table(
        "bundle",
        meta,
        Column("id", String, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("at", time, nullable=False),
        Column("state", String, nullable=False),
        Column("path", String, nullable=False),
        Column("adapter", String, nullable=False),
        Column("parent", String),
        Column("dataset_id", String),
        Column("run_id", String),
        Column("tainted", Boolean, nullable=False),
        Column("summary", JSON, nullable=False),
        Index(
            "ix_bundle_one_champion",
            "task",
            unique=True,
            sqlite_where=text("state = 'champion'"),
            postgresql_where=text("state = 'champion'"),
        ),
    )
    Table(
        "bundle_event",
        meta,
        Column("id", big, primary_key=True),
        Column("bundle_id", String, nullable=False, index=True),
        Column("task", String, nullable=False, index=True),
        Column("at", time, nullable=False),
        Column("event", String, nullable=False),
        Column("detail", String, nullable=False),
    )
    Table(
        "run",
        meta,
        Column("id", String, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("kind", String, nullable=False),
        Column("started_at", time, nullable=False),
        Column("ended_at", time),
        Column("state", String, nullable=False),
        Column("step", String, nullable=False),
        Column("verdict", String),
        Column("detail", JSON, nullable=False),
    )
    Table(
        "evaluation",
        meta,
        Column("id", big, primary_key=True),
        Column("bundle_id", String, nullable=False, index=True),
        Column("dataset_id", String, nullable=False),
        Column("at", time, nullable=False),
        Column("n", Integer, nullable=False),
        Column("agreement", Float, nullable=False),
        Column("agreement_low", Float, nullable=False),
        Column("agreement_high", Float, nullable=False),
        Column("detail", JSON, nullable=False),
    )
    meta.create_all(connection)


def m002_keys(connection: Connection) -> None:
    meta = MetaData()
    time = DateTime(timezone=True)
    Table(
        "api_key",
        meta,
        Column("id", String, primary_key=True),
        Column("name", String, nullable=False),
        Column("at", time, nullable=False),
        Column("tasks", JSON),
        Column("may_route", Boolean, nullable=False),
        Column("admin", Boolean, nullable=False),
        Column("rpm", Integer),
        Column("tpm", Integer),
        Column("daily_usd", Float),
        Column("monthly_usd", Float),
        Column("expires_at", time),
        Column("revoked_at", time),
        Column("version", Integer, nullable=False, index=True),
        Index(
            "ix_api_key_name_in_use",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )
    Table(
        "api_key_secret",
        meta,
        Column("sha256", String, primary_key=True),
        Column("key_id", String, nullable=False, index=True),
        Column("shown", String, nullable=False),
        Column("at", time, nullable=False),
        Column("expires_at", time),
    )
    version = Table(
        "api_key_version",
        meta,
        Column("id", Integer, primary_key=True),
        Column("version", Integer, nullable=False),
    )
    Table(
        "rate_bucket",
        meta,
        Column("id", String, primary_key=True),
        Column("full_at", Float, nullable=False),
    )
    Table(
        "spending",
        meta,
        Column("account", String, primary_key=True),
        Column("period", String, primary_key=True),
        Column("taken_usd", Float, nullable=False),
    )
    meta.create_all(connection)
    connection.execute(version.insert(), {"id": 1, "version": 0})


def m003_stored(connection: Connection) -> None:
    meta = MetaData()
    time = DateTime(timezone=True)
    Table(
        "stored_completion",
        meta,
        Column("id", String, primary_key=True),
        Column("completion_id", String, nullable=False, index=True),
        Column("caller", String, nullable=False),
        Column("task", String, nullable=False),
        Column("at", time, nullable=False),
        Column("route", String, nullable=False),
        Column("reason", String, nullable=False),
        Column("model", String, nullable=False),
        Column("asked_model", String, nullable=False),
        Column("dedupe_key", String, nullable=False, index=True),
        Column("labels", JSON, nullable=False),
        Column("body", JSON, nullable=False),
        Column("answer", JSON, nullable=False),
        Column("deleted", Boolean, nullable=False),
        Index("ix_stored_completion_owner", "caller", "id"),
    )
    Table(
        "feedback",
        meta,
        Column("id", String, primary_key=True),
        Column("at", time, nullable=False),
        Column("task", String, nullable=False, index=True),
        Column("caller", String, nullable=False),
        Column("rating", String),
        Column("score", Float),
        Column("correction", String),
        Column("comment", String),
        Column("exchange_id", String, index=True),
    )
    meta.create_all(connection)


def m004_responses(connection: Connection) -> None:
    meta = MetaData()
    Table(
        "response",
        meta,
        Column("id", String, primary_key=True),
        Column("caller", String, nullable=False),
        Column("at", DateTime(timezone=True), nullable=False, index=True),
        Column("request_id", String, nullable=False, index=True),
        Column("thread", String, nullable=False, index=True),
        Column("items", JSON, nullable=False),
        Column("body", JSON, nullable=False),
    )
    meta.create_all(connection)


def m005_certificates(connection: Connection) -> None:
    meta = MetaData()
    time = DateTime(timezone=True)
    Table(
        "certificate",
        meta,
        Column("task", String, primary_key=True),
        Column("bundle", String, primary_key=True),
        Column("version", Integer, nullable=False),
        Column("epoch", Integer, nullable=False),
        Column("turn", Integer, nullable=False),
        Column("since", String, nullable=False),
        Column("frontier", String, nullable=False),
        Column("settle_s", Float, nullable=False),
        Column("audit_wait_s", Float, nullable=False),
        Column("state", LargeBinary, nullable=False),
        Column("threshold", Float, nullable=False),
        Column("certified", Boolean, nullable=False),
        Column("coverage", Float, nullable=False),
        Column("coverage_low", Float, nullable=False),
        Column("coverage_high", Float, nullable=False),
        Column("n", Integer, nullable=False),
        Column("audits", Integer, nullable=False),
        Column("labels", Integer, nullable=False),
        Column("detail", JSON, nullable=False),
        Column("alarms", JSON),
        Column("alarm", String),
        Column("drift", JSON),
        Column("updated_at", time, nullable=False),
    )
    Table(
        "incident",
        meta,
        Column("id", String, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("bundle", String, nullable=False),
        Column("at", time, nullable=False),
        Column("kind", String, nullable=False),
        Column("detail", String, nullable=False),
        Column("done", String, nullable=False),
        Column("threshold_before", Float),
        Column("threshold_after", Float),
        Column("cleared_at", time),
    )
    meta.create_all(connection)


def m006_pending_audits(connection: Connection) -> None:
    meta = MetaData()
    time = DateTime(timezone=True)
    Table(
        "pending_audit",
        meta,
        Column("id", String, primary_key=True),
        Column("at", time, nullable=False),
        Column("task", String, nullable=False),
        Column("bundle", String),
        Column("caller", String, nullable=False),
        Column("endpoint", String, nullable=False),
        Column("dedupe_key", String, nullable=False),
        Column("body", JSON, nullable=False),
        Column("prompt", String, nullable=False),
        Column("student_text", String, nullable=False),
        Column("prompt_hash", String, nullable=False),
        Column("subject", String, nullable=False, index=True),
        Column("consent", Boolean, nullable=False),
        Column("broken", Boolean, nullable=False),
        Column("reason", String, nullable=False),
        Column("score", Float),
        Column("p_ood", Float),
        Column("propensity", Float, nullable=False),
        Column("uniform", Float, nullable=False),
        Column("guess", Float),
        Column("signals", JSON),
        Column("expires", time, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("lease_owner", String, nullable=False),
        Column("lease_until", time, nullable=False, index=True),
    )
    meta.create_all(connection)


def m007_canaries(connection: Connection) -> None:
    meta = MetaData()
    time = DateTime(timezone=True)
    Table(
        "canary",
        meta,
        Column("id", String, primary_key=True),
        Column("task", String, nullable=False, index=True),
        Column("bundle", String, nullable=False),
        Column("champion", String, nullable=False),
        Column("state", String, nullable=False),
        Column("reason", String, nullable=False),
        Column("step", Integer, nullable=False),
        Column("share", Float, nullable=False),
        Column("started_at", time, nullable=False),
        Column("step_at", time, nullable=False),
        Column("ended_at", time),
        Column("frontier_at", time, nullable=False),
        Column("frontier", String, nullable=False),
        Column("requests", Integer, nullable=False),
        Column("races", JSON, nullable=False),
        Index(
            "ix_canary_one_running",
            "task",
            unique=True,
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
    )
    meta.create_all(connection)


#: in the order in which they are applied
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    m001_initial,
    m002_keys,
    m003_stored,
    m004_responses,
    m005_certificates,
    m006_pending_audits,
    m007_canaries,
)


def migrate(engine: Engine) -> list[str]:
    """Bring the database up to date; returns what was applied. Safe from many processes at once.

    Raises StoreError where the database refuses, or is newer than this code.
    """
    with refused_in_one_line(engine):
        with engine.connect() as connection:
            if not _pending(connection):
                return []
        with transaction(engine) as connection:
            if connection.dialect.name == "postgresql":
                # another process may be at it, and take its time
                connection.execute(text("SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            _applied.create(connection, checkfirst=True)
            done = []
            for step in _pending(connection):
                step(connection)
                row = {"name": step.__name__, "at": datetime.now(UTC)}
                connection.execute(_applied.insert(), row)
                done.append(step.__name__)
            return done


def _pending(connection: Connection) -> list[Callable[[Connection], None]]:
    if not inspect(connection).has_table(_applied.name):
        return list(MIGRATIONS)
    applied = set(connection.scalars(select(_applied.c.name)))
    unknown = applied - {step.__name__ for step in MIGRATIONS}
    if unknown:
        raise StoreError(
            f"{shown(connection.engine)}: the database is newer than this Retort"
            f" ({', '.join(sorted(unknown))}); install the version that made it"
        )
    return [step for step in MIGRATIONS if step.__name__ not in applied]
