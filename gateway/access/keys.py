"""Who may call the gateway: keys from an environment variable, and from the database.

The hot path hashes the key it was given and looks the hash up, whatever the number of keys: a
dictionary is as good as a comparison in constant time, because whoever measures it learns about
the hash of a guess and nothing that would lead to a better guess.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

from gateway.errors import ConfigError, Forbidden, InvalidKey, KeysUnknown

PREFIX = "rk-"
#: a key of the database, 32 bytes in base64
_SHAPE = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")
#: stands among a caller's tasks for traffic that no task claims
UNCLAIMED = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose key a request carries. ``id`` is stable, says nothing of the key, and separates what
    callers may see of each other's; it is empty where no key is needed. ``tasks`` None: all.

    Limits that are None do not exist: requests and tokens per minute, and dollars that the teacher
    may cost in a day or month of UTC."""

    id: str = ""
    name: str = ""
    tasks: frozenset[str] | None = None
    may_route: bool = True
    admin: bool = False
    rpm: int | None = None
    tpm: int | None = None
    daily_usd: float | None = None
    monthly_usd: float | None = None

    @property
    def limited(self) -> bool:
        return self.rpm is not None or self.tpm is not None

    @property
    def budgeted(self) -> bool:
        return self.daily_usd is not None or self.monthly_usd is not None

    def may_use(self, task: str) -> bool:
        return self.tasks is None or task in self.tasks

    def require(self, task: str) -> None:
        """Raises Forbidden where the key is not for this task; `UNCLAIMED` stands for none."""
        if not self.may_use(task):
            what = "requests of no task" if task == UNCLAIMED else f"the task '{task}'"
            raise Forbidden(f"This API key is not for {what}.", code="task_not_allowed")

    def require_admin(self) -> None:
        """Raises Forbidden."""
        if not self.admin:
            raise Forbidden("This API key is not an admin's.", code="admin_only")

    def require_route(self) -> None:
        """Raises Forbidden where the caller may not choose who answers."""
        if not self.may_route:
            raise Forbidden(
                "This API key may not choose the route (x-retort-route).",
                param="x-retort-route",
                code="route_not_allowed",
            )


ANYBODY = Caller()


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """One value of a key as the database has it. ``until``: Unix time when it ends."""

    sha256: bytes
    caller: Caller
    until: float | None = None
    revoked: bool = False


class Keys:
    """The accepted client keys; where none are configured, everybody may call.

    ``database``: keys of the database count too, as `apply` brings them. ``version`` is that of
    the snapshot, None before the first."""

    def __init__(
        self,
        accepted: tuple[str, ...] = (),
        *,
        database: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.version: int | None = None
        self.database = database
        self._open = not accepted and not database
        self._clock = clock
        self._known: dict[bytes, tuple[Caller, float | None]] = {
            sha256(key.encode()).digest(): (Caller(id=key_id(key)), None) for key in accepted
        }
        self._hashes: dict[str, list[bytes]] = {}

    def __bool__(self) -> bool:
        return not self._open

    @classmethod
    def from_environment(cls, name: str | None, *, database: bool = False) -> "Keys":
        """Raises ConfigError where keys are asked for and none are there: an empty variable must
        not open the gateway."""
        if name is None:
            return cls(database=database)
        keys = tuple(key.strip() for key in os.environ.get(name, "").split(",") if key.strip())
        if not keys:
            raise ConfigError(f"server.api_keys_env: environment variable {name} holds no key")
        return cls(keys, database=database)

    def check(self, authorization: str | None) -> Caller:
        """Raises InvalidKey; KeysUnknown where it could be a good one, but the database of keys
        was never seen."""
        if self._open:
            return ANYBODY
        if authorization is None:
            raise InvalidKey(
                "No API key was given: send it as 'Authorization: Bearer KEY'.",
                headers={"www-authenticate": "Bearer"},
            )
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() == "bearer":
            known = self._known.get(sha256(key.encode()).digest())
            if known is not None and (known[1] is None or self._clock() < known[1]):
                return known[0]
            if self.database and self.version is None and _SHAPE.fullmatch(key):
                raise KeysUnknown("API keys cannot be checked yet: their database is away.")
        raise InvalidKey("The API key is not known here.")

    def apply(self, version: int, changed: Iterable[KnownKey]) -> None:
        """Take over what changed: all values of each key that is named. A version before the last
        one is another database, or one put back from a backup: then these are all there are."""
        if self.version is not None and version < self.version:
            for gone in [hash for hashes in self._hashes.values() for hash in hashes]:
                self._known.pop(gone, None)
            self._hashes.clear()
        by_key: dict[str, list[KnownKey]] = {}
        for value in changed:
            by_key.setdefault(value.caller.id, []).append(value)
        for id, values in by_key.items():
            for gone in self._hashes.pop(id, ()):
                self._known.pop(gone, None)
            if values[0].revoked:
                continue
            self._hashes[id] = [value.sha256 for value in values]
            for value in values:
                self._known[value.sha256] = (value.caller, value.until)
        self.version = version


def key_id(key: str) -> str:
    """16 hex digits of the key's SHA-256."""
    return sha256(key.encode()).hexdigest()[:16]
