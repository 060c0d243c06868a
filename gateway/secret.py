"""Secrets: only ever in environment variables that the configuration names."""

import os

from gateway.errors import ConfigError


def secret(field: str, name: str | None) -> str | None:
    """The value of the environment variable that a field of the configuration names. Raises
    ConfigError."""
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"{field}: environment variable {name} is not set")
    return value


def json_headers(field: str, name: str | None) -> dict[str, str]:
    """Of a request with a JSON body, and with the secret as its bearer token if there is one.
    Raises ConfigError."""
    headers = {"content-type": "application/json"}
    if (key := secret(field, name)) is not None:
        headers["authorization"] = f"Bearer {key}"
    return headers
