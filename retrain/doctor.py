"""`retort doctor`: what is missing to run, and how to get it."""

import importlib.util
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.config import Config, Task
from gateway.errors import RetortError

TRAINING_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "gguf", "uv")
NEEDED_DISK_GB = 8
NEEDED_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked thing. ``missing`` stops the gateway, ``wanting`` only what is named."""

    state: Literal["ok", "wanting", "missing"]
    what: str
    detail: str


def examine(config: Config | None, state: Path) -> Iterator[Finding]:
    """Check the machine, then, where a configuration is given, everything it names."""
    yield _python()
    yield _training()
    yield _disk(state)
    if config is None:
        yield Finding("wanting", "configuration", "none given: pass --config retort.yaml")
        return
    yield _writable(config.state)
    yield _database(config)
    yield from _teachers(config)
    yield from _students(config)
    if not config.tasks:
        yield Finding("wanting", "tasks", "none configured: all traffic passes to the teacher")
    for task in config.tasks:
        yield _task(task)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < NEEDED_PYTHON:
        return Finding("missing", "Python", f"{version}; 3.11 or newer is needed")
    return Finding("ok", "Python", version)


def _training() -> Finding:
    lacking = [name for name in TRAINING_PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        return Finding(
            "wanting",
            "training packages",
            f"no {', '.join(lacking)}: pip install 'retort[train]' (serving needs none of them)",
        )
    return Finding("ok", "training packages", "all there")


def _disk(state: Path) -> Finding:
    place = state
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free < NEEDED_DISK_GB:
        return Finding(
            "wanting", "disk", f"{free:.0f} GB free at {place}; a student needs {NEEDED_DISK_GB}"
        )
    return Finding("ok", "disk", f"{free:.0f} GB free")


def _writable(state: Path) -> Finding:
    try:
        state.mkdir(parents=True, exist_ok=True)
        probe = state / ".doctor"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return Finding("missing", "state_dir", f"{state} cannot be written ({error.strerror})")
    return Finding("ok", "state_dir", str(state))


def _database(config: Config) -> Finding:
    from gateway.storage.store import Store

    try:
        store = Store.open(config.database_url, config.state / "spool", config.store.commit_ms)
        store.close()
    except RetortError as error:
        return Finding("missing", "database", str(error))
    kind = "PostgreSQL" if config.database_url.startswith("postgresql") else "SQLite"
    return Finding("ok", "database", kind)


def _teachers(config: Config) -> Iterator[Finding]:
    """The first one, without which nothing works, and its fallbacks."""
    first = config.teacher
    yield _teacher("teacher", "missing", first.base_url, first.api_key_env)
    for place, one in enumerate(first.fallbacks, start=1):
        yield _teacher(f"teacher {place}", "wanting", one.base_url, one.api_key_env)


def _teacher(
    what: str, state: Literal["wanting", "missing"], base_url: str, variable: str | None
) -> Finding:
    headers = {}
    if variable is not None:
        key = os.environ.get(variable, "")
        if not key:
            return Finding(
                # the gateway does not start without it
                "missing",
                f"{what} key",
                f"environment variable {variable} is not set: export {variable}=…",
            )
        headers["authorization"] = f"Bearer {key}"
    return _endpoint(what, state, base_url, headers)


def _students(config: Config) -> list[Finding]:
    """One per replica."""
    return [
        _endpoint("student server (vLLM)", "wanting", url, {}) for url in config.student.base_urls
    ]


def _task(task: Task) -> Finding:
    from gateway.checks import Checks

    try:
        Checks(task.checks)
    except RetortError as error:
        return Finding("missing", f"task {task.name}", str(error))
    checks = ", ".join(check.label for check in task.checks)
    return Finding(
        "ok", f"task {task.name}", f"mode {task.mode}" + (f", checks: {checks}" if checks else "")
    )


def _endpoint(
    what: str, state: Literal["wanting", "missing"], base_url: str, headers: dict[str, str]
) -> Finding:
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            models = json.load(response).get("data", [])
    except urllib.error.HTTPError as error:
        hint = ": the key is refused" if error.code in (401, 403) else ""
        return Finding(state, what, f"{base_url} answers {error.code}{hint}")
    except (OSError, ValueError) as error:
        return Finding(state, what, f"{base_url} does not answer ({error})")
    return Finding("ok", what, f"{base_url}, {len(models)} models")
