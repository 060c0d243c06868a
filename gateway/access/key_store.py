"""API keys in the database: made, listed, rotated, revoked, and followed by running gateways.

A key is 256 random bits, so its plain SHA-256 is kept and no slow hash: slow hashes make guessing
dear where there is little to guess, and here nobody can try 2^256 keys at any price. The hash can
be looked up, however many keys there are.
"""

import asyncio
import base64
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col

from gateway.access.keys import PREFIX, Caller, Keys, KnownKey
from gateway.access.purses import day, month
from gateway.errors import ConfigError
from gateway.ids import new_id
from gateway.storage.store import Store
from gateway.storage.tables import ApiKey, ApiKeySecret, ApiKeyVersion, Spending, utcnow

logger = logging.getLogger(__name__)

#: how often a gateway asks for changes
REFRESH_S = 1.0
#: characters of a key that are shown again later
SHOWN = len(PREFIX) + 6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def create(store: Store, key: ApiKey) -> str:
    """Store a key made by `new_key`; returns what its holder sends, which nobody can tell again.
    Raises ConfigError where the name is taken."""
    if not _NAME.fullmatch(key.name):
        raise ConfigError(
            f"{key.name!r}: a key's name is made of letters, digits, '.', '_' and '-', at most 64"
        )
    with store.transaction() as session:
        key.version = _next_version(session)
        if _in_use(session, key.name) is not None:
            raise ConfigError(f"there is a key named {key.name!r}: rotate it, or revoke it first")
        secret, row = _secret(key)
        session.add(key)
        session.add(row)
    return secret


def new_key(name: str) -> ApiKey:
    """A key without any limit, not stored yet."""
    return ApiKey(id=new_id("key"), name=name, at=utcnow(), version=0)


def rotate(
    store: Store, name: str, grace: timedelta, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new value for the key, with the same id, scopes and limits; the old one works until the
    grace ends. ``expires_at`` replaces the key's, where it is given. Raises ConfigError."""
    with store.transaction() as session:
        version = _next_version(session)
        key = _named(session, name)
        key.version = version
        if expires_at is not None:
            key.expires_at = expires_at
        ends = utcnow() + grace
        for old in session.scalars(
            select(ApiKeySecret).where(col(ApiKeySecret.key_id) == key.id)
        ).all():
            if old.expires_at is None or old.expires_at > ends:
                old.expires_at = ends
        secret, row = _secret(key)
        session.add(row)
    return key, secret


def change(store: Store, name: str, columns: Mapping[str, Any]) -> ApiKey:
    """Other scopes or limits for a key, by column. Raises ConfigError."""
    with store.transaction() as session:
        version = _next_version(session)
        key = _named(session, name)
        for column, value in columns.items():
            setattr(key, column, value)
        key.version = version
    return key


def revoke(store: Store, name: str) -> ApiKey:
    """End a key and all of its values at once. Raises ConfigError."""
    with store.transaction() as session:
        version = _next_version(session)
        key = _named(session, name)
        key.version, key.revoked_at = version, utcnow()
    return key


def listed(store: Store, *, revoked: bool = False) -> list[tuple[ApiKey, list[ApiKeySecret]]]:
    """The keys by name, each with its values, the newest first."""
    with store.session() as session:
        keys = select(ApiKey).order_by(col(ApiKey.name), col(ApiKey.at))
        if not revoked:
            keys = keys.where(col(ApiKey.revoked_at).is_(None))
        by_key: dict[str, list[ApiKeySecret]] = {}
        for row in session.scalars(select(ApiKeySecret).order_by(col(ApiKeySecret.at).desc())):
            by_key.setdefault(row.key_id, []).append(row)
        return [(key, by_key.get(key.id, [])) for key in session.scalars(keys)]


def spent_usd(store: Store, now: datetime) -> dict[tuple[str, str], float]:
    """Dollars taken of the budgets of keys, by id of the key and ``day`` or ``month``."""
    labels = {day(now): "day", month(now): "month"}
    statement = select(Spending).where(
        col(Spending.period).in_(labels), col(Spending.account).startswith("key:")
    )
    with store.session() as session:
        return {
            (row.account.removeprefix("key:"), labels[row.period]): row.taken_usd
            for row in session.scalars(statement)
        }


async def follow(keys: Keys, store: Store) -> None:
    """Keep a gateway's snapshot fresh, for ever. While the database is away it stays as it is."""
    away = False
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            await refresh(keys, store)
            away = False
        except SQLAlchemyError as error:
            if not away:
                logger.warning("keys not refreshed", extra={"error": type(error).__name__})
            away = True
        except Exception:
            # a gateway that stopped looking would never notice a revocation
            logger.exception("keys not refreshed")


async def refresh(keys: Keys, store: Store) -> None:
    """Raises SQLAlchemyError."""
    version, changed = await asyncio.to_thread(_changes, store, keys.version)
    keys.apply(version, changed)


def _changes(store: Store, since: int | None) -> tuple[int, list[KnownKey]]:
    """The keys that changed after version ``since``; None: all that there are."""
    with store.engine.connect() as connection:
        found = connection.execute(select(func.max(col(ApiKeyVersion.version)))).scalar_one()
        version = int(found or 0)
        if version == since:
            return version, []
        if since is not None and version < since:
            since = None
        key = ApiKey.metadata.tables["api_key"].c
        secret = ApiKeySecret.metadata.tables["api_key_secret"].c
        statement = select(
            key.id,
            key.name,
            key.tasks,
            key.may_route,
            key.admin,
            key.rpm,
            key.tpm,
            key.daily_usd,
            key.monthly_usd,
            key.expires_at,
            key.revoked_at,
            secret.sha256,
            secret.expires_at,
        ).join_from(key.id.table, secret.sha256.table, secret.key_id == key.id)
        if since is None:
            statement = statement.where(key.revoked_at.is_(None))
        else:
            statement = statement.where(key.version > since)
        return version, list(_known(connection.execute(statement)))


def _known(rows: object) -> Iterator[KnownKey]:
    callers: dict[str, Caller] = {}
    for row in rows:  # type: ignore[attr-defined]
        id, name, tasks, may_route, admin, rpm, tpm, daily, monthly, ends, revoked, hash, end = row
        caller = callers.get(id)
        if caller is None:
            caller = callers[id] = Caller(
                id=id,
                name=name,
                tasks=None if tasks is None else frozenset(tasks),
                may_route=may_route,
                admin=admin,
                rpm=rpm,
                tpm=tpm,
                daily_usd=daily,
                monthly_usd=monthly,
            )
        times = [at.timestamp() for at in (ends, end) if at is not None]
        yield KnownKey(
            sha256=bytes.fromhex(hash),
            caller=caller,
            until=min(times, default=None),
            revoked=revoked is not None,
        )


def _next_version(session: Session) -> int:
    """Also the lock under which keys change: versions are committed in their order."""
    statement = (
        update(ApiKeyVersion)
        .values(version=col(ApiKeyVersion.version) + 1)
        .returning(col(ApiKeyVersion.version))
    )
    return int(session.execute(statement).scalar_one())


def _secret(key: ApiKey) -> tuple[str, ApiKeySecret]:
    value = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    row = ApiKeySecret(
        sha256=sha256(value.encode()).hexdigest(), key_id=key.id, shown=value[:SHOWN], at=utcnow()
    )
    return value, row


def _named(session: Session, name: str) -> ApiKey:
    key = _in_use(session, name)
    if key is None:
        raise ConfigError(f"no key named {name!r} (see `retort keys list`)")
    return key


def _in_use(session: Session, name: str) -> ApiKey | None:
    statement = select(ApiKey).where(col(ApiKey.name) == name, col(ApiKey.revoked_at).is_(None))
    return session.scalars(statement).one_or_none()
