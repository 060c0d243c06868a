"""Which task a request belongs to, by rules on what the application already sends."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.access.keys import UNCLAIMED
from gateway.config import Task
from gateway.errors import InvalidRequest
from gateway.prompt import system_text
from gateway.wire.protocol import Chat


class Claims:
    """The rules of all tasks. The first task in the file's order that claims a request has it;
    naming a task as the model claims too."""

    def __init__(self, tasks: Sequence[Task], teacher_model: str | None) -> None:
        self._rules = [_Rule(task) for task in tasks]
        self._tasks = {task.name: task for task in tasks}
        self._teacher_model = teacher_model

    def find(self, chat: Chat, headers: Mapping[str, str]) -> Task | None:
        """Raises Forbidden where the caller's key is not for the task, or not for traffic of none;
        InvalidRequest as `claimed_by` does."""
        task = self.claimed_by(chat, headers)
        chat.caller.require(UNCLAIMED if task is None else task.name)
        return task

    def claimed_by(self, chat: Chat, headers: Mapping[str, str]) -> Task | None:
        """Raises InvalidRequest where the teacher could never be asked: the request names the
        task as its model, and the configuration names no model for the teacher."""
        named = self._tasks.get(chat.model)
        if named is not None:
            if self._teacher_model is None and chat.model not in named.claim.model:
                raise InvalidRequest(
                    f"The model '{chat.model}' is a task of this gateway, and teacher.model is not"
                    " configured: ask for one of the teacher's models, or set teacher.model.",
                    param="model",
                    code="teacher_model_missing",
                )
            return named
        system: str | None = None
        known = False
        for rule in self._rules:
            if rule.reads_system and not known:
                system, known = system_text(chat.messages), True
            if rule.holds(chat, headers, system):
                return rule.task
        return None


class _Rule:
    def __init__(self, task: Task) -> None:
        claim = task.claim
        self.task = task
        self._models = frozenset(claim.model)
        self._keys = frozenset(claim.key)
        self._system = claim.system
        self._prefix = claim.system_prefix
        self._regex = None if claim.system_regex is None else re.compile(claim.system_regex)
        self._sha256 = None if claim.system_sha256 is None else claim.system_sha256.lower()
        self._metadata = dict(claim.metadata)
        self._headers = {name.lower(): value for name, value in claim.header.items()}
        self.reads_system = any(
            rule is not None for rule in (self._system, self._prefix, self._regex, self._sha256)
        )

    def holds(self, chat: Chat, headers: Mapping[str, str], system: str | None) -> bool:
        if self._models and chat.model not in self._models:
            return False
        if self._keys and chat.caller.name not in self._keys:
            return False
        if any(headers.get(name) != value for name, value in self._headers.items()):
            return False
        if self._metadata and not self._has_metadata(chat.body.get("metadata")):
            return False
        return not self.reads_system or (system is not None and self._is_system(system))

    def _has_metadata(self, metadata: Any) -> bool:
        return isinstance(metadata, dict) and all(
            metadata.get(name) == value for name, value in self._metadata.items()
        )

    def _is_system(self, system: str) -> bool:
        if self._system is not None and system != self._system:
            return False
        if self._prefix is not None and not system.startswith(self._prefix):
            return False
        if self._regex is not None and self._regex.search(system) is None:
            return False
        return self._sha256 is None or self._sha256 == hashlib.sha256(system.encode()).hexdigest()
