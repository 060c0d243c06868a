"""LoRA adapters on the student server: which are there, load one, see that it answers.

Names are immutable: an adapter is never reloaded in place, and never is the base model asked.
The server's two adapter endpoints have no key and take any path: keep it internal.
"""

from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from gateway.errors import BundleError

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What a student server lists: the base model, its adapters, and how many tokens a prompt and
    its answer may have together (None where it does not say)."""

    names: frozenset[str]
    max_len: int | None


def read_models(body: dict[str, Any]) -> Models:
    """Of a model list, what is understood."""
    data = body.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    # adapters have none of their own
    lengths = [entry.get("max_model_len") for entry in entries]
    return Models(
        names=frozenset(str(entry.get("id")) for entry in entries),
        max_len=max((length for length in lengths if isinstance(length, int)), default=None),
    )


async def list_models(session: aiohttp.ClientSession, url: str) -> Models:
    """All models the server at ``url`` (with /v1) knows. Raises BundleError."""
    status, raw = await _send(session, "GET", f"{url}/models")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if status != 200 or not isinstance(body, dict):
        raise BundleError(f"the student server's model list cannot be read ({status})")
    return read_models(body)


async def loaded(session: aiohttp.ClientSession, url: str) -> set[str]:
    """The names of them. Raises BundleError."""
    return set((await list_models(session, url)).names)


async def load_adapter(
    session: aiohttp.ClientSession, student_base_url: str, name: str, path: str
) -> None:
    """Load the adapter in the folder ``path`` (as the server sees it) under ``name``; one that is
    there already is left alone. Raises BundleError."""
    body = {"lora_name": name, "lora_path": path}
    status, raw = await _send(session, "POST", f"{student_base_url}/load_lora_adapter", body)
    if status == 200 or (status == 400 and b"already" in raw):
        return
    reason = raw.decode("utf-8", "replace").strip()[:300]
    raise BundleError(f"the student server does not load adapter {name} ({status}: {reason})")


async def unload_adapter(session: aiohttp.ClientSession, student_base_url: str, name: str) -> None:
    """Raises BundleError; one that is not there is fine."""
    body = {"lora_name": name}
    status, _ = await _send(session, "POST", f"{student_base_url}/unload_lora_adapter", body)
    if status not in (200, 404):
        raise BundleError(f"the student server does not unload adapter {name} ({status})")


async def answers(session: aiohttp.ClientSession, student_base_url: str, name: str) -> None:
    """One token from the adapter. Raises BundleError where it has none to give."""
    messages = [{"role": "user", "content": "ping"}]
    body = {"model": name, "messages": messages, "max_tokens": 1, "temperature": 0}
    status, _ = await _send(session, "POST", f"{student_base_url}/chat/completions", body)
    if status != 200:
        raise BundleError(f"adapter {name} is loaded but does not answer ({status})")


async def _send(
    session: aiohttp.ClientSession, method: str, url: str, body: object = None
) -> tuple[int, bytes]:
    data = None if body is None else orjson.dumps(body)
    headers = {"content-type": "application/json"}
    limits = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=5.0)
    try:
        async with session.request(
            method, url, data=data, headers=headers, timeout=limits
        ) as response:
            return response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise BundleError(f"the student server at {url} cannot be reached ({why})") from None
