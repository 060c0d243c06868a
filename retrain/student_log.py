"""What a process said last before it ended, out of its log."""

import re
from pathlib import Path

_PREFIX = re.compile(r"^(\([^)]*\)\s*)*([A-Z]+ [\d-]+ [\d:]+ \[[^]]*\]\s*)?")
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Exit)\b:? ?.*|.*: error: .*|OSError.*)$")
_CONSEQUENCE = re.compile(r"Engine core initialization failed|See root cause above|EngineDeadError")


def last_error(log: Path) -> str:
    """The line of a log that says best why a process ended: the last error that is not the mere
    consequence of another, else the last line."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [text for line in lines if (text := _PREFIX.sub("", line).strip())]
    errors = [line for line in lines if _ERROR.match(line) and not _CONSEQUENCE.search(line)]
    return (errors or lines or ["it said nothing"])[-1][:300]
