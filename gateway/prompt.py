"""What the student is asked in place of the application's prompt: the one renderer.

Training and serving both go through it, and its contract's hash is part of every bundle, so a
student is never asked in other words than those it was trained on.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.config import PromptContract

Message = Mapping[str, Any]
SYSTEM_ROLES = frozenset({"system", "developer"})


def content_text(content: Any) -> str:
    """The text of a message's ``content``: a string, or its text parts joined by newlines."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def system_text(messages: Sequence[Message]) -> str | None:
    """The application's system (or developer) prompt; several are joined; None without one."""
    texts = [content_text(m.get("content")) for m in messages if m.get("role") in SYSTEM_ROLES]
    return "\n".join(texts) if texts else None


def user_text(contract: PromptContract, messages: Sequence[Message]) -> str:
    """The text of the last user message, cut out by ``user_regex`` where it matches.

    A message the expression does not match is kept whole: it is not the application's template,
    and the out-of-distribution gate shall see it as it is. Without any user message: ``""``.
    """
    last = _last_user(messages)
    return "" if last is None else _cut(contract, content_text(messages[last].get("content")))


def student_messages(contract: PromptContract, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The short system prompt, the other turns as plain text, the last user text cut."""
    system = system_text(messages) if contract.system is None else contract.system
    rendered: list[dict[str, Any]] = []
    if system:
        rendered.append({"role": "system", "content": system})
    last = _last_user(messages)
    for index, message in enumerate(messages):
        if message.get("role") in SYSTEM_ROLES:
            continue
        text = content_text(message.get("content"))
        rendered.append(
            {
                "role": message.get("role"),
                "content": _cut(contract, text) if index == last else text,
            }
        )
    return rendered


def prompt_hash(contract: PromptContract) -> str:
    """16 hex digits that change whenever the student would be asked differently."""
    canonical = json.dumps(contract.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _last_user(messages: Sequence[Message]) -> int | None:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "user":
            return index
    return None


def _cut(contract: PromptContract, text: str) -> str:
    if contract.user_regex is None:
        return text
    match = re.search(contract.user_regex, text, re.DOTALL)
    # an optional group that took no part in the match yields None
    return text if match is None or match["text"] is None else match["text"]
