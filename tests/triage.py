"""The toy task of the gateway's tests, as a configuration and as requests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_openai import FakeOpenAI
from running_gateway import RunningGateway
from small_bundle import LABELS

from gateway.config import Config

SYSTEM = "You are the triage desk of a parcel company. Answer with one word."
QUESTION = "hi there, where is my parcel, thanks 77"
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
BODY: dict[str, Any] = {"model": "gpt-large", "messages": MESSAGES}

Start = Callable[..., RunningGateway]
Promote = Callable[..., str]


def configuration(
    state: Path, fakes: tuple[FakeOpenAI, FakeOpenAI], task: dict[str, Any], **sections: Any
) -> Config:
    """``fakes``: teacher and student; in dollars per million tokens they cost 10 and 30, and 1.
    ``audit_rate`` in the task stands for ``audit.rate``, without its floors."""
    teacher, student = fakes
    triage = {
        "name": "triage",
        "claim": {"system": SYSTEM},
        "prompt": {"system": "Triage."},
        "output": {"kind": "label", "labels": [*LABELS, "refund!"], "max_tokens": 16},
    }
    # no floors: tests count their audits
    rate = {"rate": task.get("audit_rate", 0.0), "per_day": 0, "first_requests": 0, "reask": 0.0}
    task = {name: value for name, value in task.items() if name != "audit_rate"}
    task["audit"] = rate | task.get("audit", {})
    dear = {"input_usd": 10.0, "output_usd": 30.0}
    data: dict[str, Any] = {
        "state_dir": str(state),
        "teacher": {"base_url": teacher.url, "api_key_env": None, "retries": 0, "price": dear},
        "student": {"base_url": student.url, "price": {"input_usd": 1.0, "output_usd": 1.0}},
        "tasks": [triage | task],
    }
    for name, section in sections.items():
        data[name] = data.get(name, {}) | section
    return Config.model_validate(data)


def live_bundle(gateway: RunningGateway) -> str | None:
    found: str | None = gateway.json("/readyz")[1]["tasks"]["triage"]["bundle"]
    return found
