"""Rows of the ledger as gateways write them, of any time: requests with their audits."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.certificates.outcomes import Window
from gateway.certificates.state import Terms
from gateway.storage.line import Line
from router.certificate import Outcome
from router.decision import Reason
from router.threshold import REJECTED

TASK, BUNDLE = "triage", "triage-1"
WINDOW = Window(settle_s=60.0, audit_wait_s=600.0)
RATE = 0.5


def terms(**changes: Any) -> Terms:
    values: dict[str, Any] = {
        "task": TASK,
        "alpha": 0.1,
        "delta": 0.025,
        "offline_delta": 0.025,
        "lifetime": False,
        "window": WINDOW,
    }
    return Terms(**(values | changes))


def request_line(at: float, number: int, reason: Reason, **columns: Any) -> Line:
    """A request that came at this Unix time, written at once."""
    values: dict[str, Any] = {
        "id": f"req-{int(at * 1000):012x}{number:016x}",
        "task": TASK,
        "bundle": BUNDLE,
        "route": "student" if reason is Reason.TRUSTED else "teacher",
        "reason": reason.value,
        "status": 200,
        "duration_ms": 1.0,
        "at": datetime.fromtimestamp(at, UTC),
        "written_at": datetime.fromtimestamp(at + 1, UTC),
        "propensity": RATE,
        "least": RATE,
    }
    return Line(**(values | columns))


def audit_of(line: Line, loss: float | None, after_s: float = 5.0, **columns: Any) -> Line:
    values: dict[str, Any] = {
        "id": f"{line.id}-audit",
        "kind": "audit",
        "parent": line.id,
        "task": line.task,
        "bundle": line.bundle,
        "route": "teacher",
        "reason": line.reason,
        "status": 200,
        "duration_ms": 1.0,
        "loss": loss,
        "propensity": line.propensity,
        "least": line.least,
        "sampled": True,
        "at": line.at,
        "written_at": datetime.fromtimestamp(line.at.timestamp() + after_s, UTC),
    }
    return Line(**(values | columns))


def stream(rows: int, start: float, seed: int = 5) -> tuple[list[Line], list[Outcome]]:
    """Lines of an ordinary stream, one a second, and what the certificate must make of them."""
    dice = random.Random(seed)
    lines: list[Line] = []
    expected: list[Outcome] = []
    for number in range(rows):
        at, kind, score = start + number, dice.random(), dice.random()
        loss = float(dice.random() < 0.3 * (1 - score))
        if kind < 0.5:
            sampled, guess = dice.random() < RATE, round(1 - score, 3)
            line = request_line(
                at, number, Reason.TRUSTED, score=score, sampled=sampled, guess=guess
            )
            lines += [line, audit_of(line, loss)] if sampled else [line]
            found = loss if sampled else None
            expected.append(
                Outcome(score=score, propensity=RATE, loss=found, guess=guess, least=RATE)
            )
        elif kind < 0.8:
            lines.append(request_line(at, number, Reason.UNSURE, score=score, loss=loss))
            expected.append(Outcome(score=score, propensity=1.0, loss=loss, least=RATE))
        elif kind < 0.9:
            reason = dice.choice([Reason.INVALID, Reason.OOD, Reason.UNSURE_EARLY, Reason.UNSAFE])
            lines.append(request_line(at, number, reason, score=score, loss=loss))
            expected.append(Outcome(score=REJECTED, propensity=1.0, loss=0.0, least=RATE))
        else:
            reason = dice.choice([Reason.FORCED, Reason.CACHED, Reason.STUDENT_ERROR])
            lines.append(request_line(at, number, reason, score=score, loss=1.0))
    return lines, expected


def ordered(lines: Sequence[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: line.id)
