"""The checks a draft must pass before it is served: put together from the configuration.

A student does not inherit the teacher's safety, and no score says that a sure answer is a fit
one. A failed check sends the request to the teacher; it never changes a draft.
"""

import asyncio
import copy
import importlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from gateway import schemas
from gateway.config import (
    BlockedCheck,
    Check,
    JsonSchemaCheck,
    LanguageCheck,
    LengthCheck,
    ModerationCheck,
    PiiCheck,
    PythonCheck,
    RefusalCheck,
)
from gateway.draft import Draft
from gateway.errors import ConfigError
from gateway.moderation import Moderation
from gateway.wire.protocol import Body, Chat
from router.checks import has_length, refuses
from router.decision import Reason
from router.language import is_in
from router.pii import leaks

logger = logging.getLogger(__name__)

#: what an application would have seen as a broken answer; the others would have harmed
_BROKEN = frozenset({"json_schema", "length"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is judged. ``text`` is the answer; ``released`` all text the client would see, any
    reasoning of the student's included; ``refusal`` what stands under that key."""

    text: str
    released: str
    refusal: str
    tokens: int | None
    request: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The first check a draft failed."""

    check: str
    reason: Reason


Test = Callable[[Subject], bool | Awaitable[bool]]


class Checks:
    """A task's checks in their order. ``waits``: at least one of them waits for something."""

    def __init__(self, settings: Sequence[Check] = ()) -> None:
        """Raises ConfigError where a function cannot be imported or a key is missing."""
        self._clients: list[Moderation] = []
        self._checks = [
            (
                check.label,
                Reason.INVALID if check.kind in _BROKEN else Reason.UNSAFE,
                _test(check, self._clients),
            )
            for check in settings
        ]
        self.waits = any(check.kind in ("moderation", "python") for check in settings)

    def __bool__(self) -> bool:
        return bool(self._checks)

    async def first_failed(self, draft: Draft, chat: Chat) -> Failed | None:
        """None where the draft passes them all. Never raises: a check that breaks has failed."""
        subject: Subject | None = None
        for name, reason, test in self._checks:
            try:
                subject = subject or subject_of(draft, chat)
                passed = test(subject)
                if not isinstance(passed, bool):
                    passed = await passed
            except Exception:
                logger.exception("check broke", extra={"check": name})
                passed = False
            if not passed:
                return Failed(check=name, reason=reason)
        return None

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def subject_of(draft: Draft, chat: Chat) -> Subject:
    others: list[str] = []
    refusal = ""
    for part in _parts(draft):
        for key, value in part.items():
            if key == "refusal" and isinstance(value, str):
                refusal += value
            elif key not in ("role", "content"):
                _strings(value, others)
    usage = draft.usage
    return Subject(
        text=draft.answer.text,
        released="\n".join([draft.answer.text, "".join(others)]) if others else draft.answer.text,
        refusal=refusal,
        tokens=len(draft.answer.tokens) or (None if usage is None else usage.completion),
        request=chat.body,
    )


def _parts(draft: Draft) -> list[Body]:
    """The message, or the deltas it came in."""
    if draft.body is not None:
        return [draft.body["choices"][0]["message"]]
    return [chunk["choices"][0]["delta"] for chunk in draft.chunks]


def _strings(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, dict):
        for inner in value.values():
            _strings(inner, found)
    elif isinstance(value, list):
        for inner in value:
            _strings(inner, found)


def _test(check: Check, clients: list[Moderation]) -> Test:
    match check:
        case JsonSchemaCheck():
            own = None if check.definition is None else schemas.compiled(check.definition)
            return partial(_fits_schema, own)
        case RefusalCheck():
            phrases = tuple(check.phrases)
            return lambda seen: not seen.refusal and not refuses(seen.text, phrases)
        case BlockedCheck():
            found = [
                schemas.searcher(pattern, case_sensitive=check.case_sensitive)
                for pattern in check.patterns
            ]
            return lambda seen: not any(holds(seen.released) for holds in found)
        case LengthCheck():
            limits = check.model_dump(include={"min_chars", "max_chars", "max_tokens"})
            return lambda seen: has_length(seen.text, seen.tokens, **limits)
        case LanguageCheck():
            languages, scripts = frozenset(check.languages), frozenset(check.scripts)
            return lambda seen: is_in(seen.text, languages=languages, allowed=scripts)
        case PiiCheck():
            return partial(_keeps_to_the_request, tuple(check.kinds))
        case PythonCheck():
            return partial(_says_nothing, _imported(check.function), check.timeout_s)
        case ModerationCheck():
            clients.append(Moderation(check))
            return clients[-1].passes


def _fits_schema(own: Callable[[Any], bool] | None, seen: Subject) -> bool:
    fits = own
    if fits is None:
        wanted = seen.request.get("response_format")
        wanted = wanted.get("json_schema") if isinstance(wanted, dict) else None
        if not isinstance(wanted, dict) or wanted.get("schema") is None:
            return True
        try:
            fits = schemas.clients(wanted["schema"])
        except schemas.BadSchema as error:
            # the teacher will say what it thinks of it
            logger.warning("schema not checked", extra={"error": str(error)})
            return False
    try:
        return fits(orjson.loads(seen.text))
    except orjson.JSONDecodeError:
        return False


def _keeps_to_the_request(kinds: Any, seen: Subject) -> bool:
    given: list[str] = []
    _strings(seen.request.get("messages"), given)
    return next(leaks(seen.released, "\n".join(given), kinds), None) is None


def _imported(path: str) -> Callable[[str, Body], Any]:
    """Raises ConfigError."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"tasks.checks: {path} cannot be imported ({error})") from None
    if not callable(function):
        raise ConfigError(f"tasks.checks: {path} is not a function")
    return function  # type: ignore[no-any-return]


async def _says_nothing(
    function: Callable[[str, Body], Any], timeout_s: float, seen: Subject
) -> bool:
    # a copy: the teacher must get what the client sent
    said = function(seen.text, copy.deepcopy(seen.request))
    if inspect.isawaitable(said):
        async with asyncio.timeout(timeout_s):
            said = await said
    return said is None
