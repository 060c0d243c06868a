"""Who may call the gateway: keys from an environment variable."""

import hmac
import os

from gateway.errors import ConfigError, InvalidKey


class Keys:
    """The accepted client keys; without any, everybody may call."""

    def __init__(self, accepted: tuple[str, ...] = ()) -> None:
        self._accepted = tuple(key.encode() for key in accepted)

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

    def check(self, authorization: str | None) -> None:
        """Raises InvalidKey. Every key is compared, each in constant time."""
        if not self._accepted:
            return
        if authorization is None:
            raise InvalidKey(
                "No API key was given: send it as 'Authorization: Bearer KEY'.",
                headers={"www-authenticate": "Bearer"},
            )
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode()
        matches = [hmac.compare_digest(given, accepted) for accepted in self._accepted]
        if scheme.lower() != "bearer" or not any(matches):
            raise InvalidKey("The API key is not known here.")
