"""What an upstream's error answer becomes: the OpenAI envelope, its status, its retry headers."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from gateway.errors import UpstreamRefused

#: what the client should know of the server that answered
PASSED_ON = frozenset({"retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms"})


def passed_on(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Of the answer's headers, those the client shall see."""
    return {
        name.lower(): value
        for name, value in response.headers.items()
        if name.lower() in PASSED_ON or name.lower().startswith("x-ratelimit-")
    }


def refused(response: aiohttp.ClientResponse, raw: bytes) -> UpstreamRefused:
    """The upstream's error; made into the envelope with all four keys where it is not one."""
    return UpstreamRefused(
        envelope(raw, response.status), status=response.status, headers=passed_on(response)
    )


def is_envelope(raw: bytes) -> bool:
    """Whether an error body is OpenAI's already, all four keys of it."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and error.keys() >= {"message", "type", "param", "code"}


def envelope(raw: bytes, status: int) -> dict[str, Any]:
    """What stands under ``error`` in an upstream's error body, whatever shape it has."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        error = {"message": error} if isinstance(error, str) else {}
    detail = error.get("detail")
    message = error.get("message") or (detail if isinstance(detail, str) else None)
    kind = error.get("type")
    code = error.get("code")
    return {
        "message": message or f"The upstream answered with status {status}.",
        "type": kind if isinstance(kind, str) else _kind(status),
        "param": error.get("param"),
        # vLLM puts the status here, as a number
        "code": code if isinstance(code, str) or code is None else str(code),
    }


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to be left alone; a date counts from now."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
