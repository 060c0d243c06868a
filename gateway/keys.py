"""Who may call the gateway: keys from an environment variable."""

import hmac
import os
from dataclasses import dataclass
from hashlib import sha256

from gateway.errors import ConfigError, InvalidKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose key a request carries. ``id`` is stable, says nothing of the key, and separates what
    callers may see of each other's; it is empty where no key is needed. ``tasks`` None: all."""

    id: str = ""
    name: str = ""
    tasks: frozenset[str] | None = None
    may_route: bool = True
    admin: bool = False


ANYBODY = Caller()


class Keys:
    """The accepted client keys; without any, everybody may call."""

    def __init__(self, accepted: tuple[str, ...] = ()) -> None:
        self._accepted = tuple((key.encode(), Caller(id=key_id(key))) for key in accepted)

    def __bool__(self) -> bool:
        return bool(self._accepted)

    @classmethod
    def from_environment(cls, name: str | None) -> "Keys":
        """Raises ConfigError where keys are asked for and none are there: an empty variable must
        not open the gateway."""
        if name is None:
            return cls()
        keys = tuple(key.strip() for key in os.environ.get(name, "").split(",") if key.strip())
        if not keys:
            raise ConfigError(f"server.api_keys_env: environment variable {name} holds no key")
        return cls(keys)

    def check(self, authorization: str | None) -> Caller:
        """Raises InvalidKey. Every key is compared, each in constant time."""
        if not self._accepted:
            return ANYBODY
        if authorization is None:
            raise InvalidKey(
                "No API key was given: send it as 'Authorization: Bearer KEY'.",
                headers={"www-authenticate": "Bearer"},
            )
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode()
        matches = [
            caller for accepted, caller in self._accepted if hmac.compare_digest(given, accepted)
        ]
        if scheme.lower() != "bearer" or not matches:
            raise InvalidKey("The API key is not known here.")
        return matches[0]


def key_id(key: str) -> str:
    """16 hex digits of the key's SHA-256."""
    return sha256(key.encode()).hexdigest()[:16]
