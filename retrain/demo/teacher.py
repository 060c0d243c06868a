"""Who teaches in a demo: the recording, or the model that OPENAI_API_KEY opens."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.config import Price, Teacher
from gateway.money.pricing import Usage, cost_usd
from gateway.prompt import content_text
from retrain.demo.recorded_teacher import TEACHER_PRICE, RecordedTeacher, count_tokens
from retrain.demo.scenario import Case, Scenario

#: What is asked where OPENAI_MODEL says nothing, and whose list price the estimate takes.
LIVE_MODEL = "gpt-4o"


@dataclass(frozen=True, slots=True, kw_only=True)
class Classroom:
    """The teacher as everybody needs it: its section of retort.yaml, the traffic (with recorded
    answers or without), the key that clients send, the model they name, and lines about it."""

    section: Teacher
    scenario: Scenario
    api_key: str
    model: str
    live: bool
    says: tuple[str, ...]


@contextmanager
def classroom(scenario: Scenario, *, recorded: bool, pace: float = 1.0) -> Iterator[Classroom]:
    """The teacher, running. ``recorded``: the recording even where there is a key; ``pace``
    scales its latency."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if key and not recorded:
        yield _live(scenario, key)
        return
    with RecordedTeacher(scenario.answers(), pace=pace) as teacher:
        yield Classroom(
            section=Teacher(base_url=teacher.base_url, api_key_env=None, price=TEACHER_PRICE),
            scenario=scenario,
            api_key="demo",
            model=scenario.model,
            live=False,
            says=(
                f"a RECORDING of a teacher at {teacher.base_url}: it answers from a table, with a",
                "hosted model's latency and price ($2.50 in, $10 out per million tokens).",
                "No model is asked and nothing is paid. Set OPENAI_API_KEY for a live teacher."
                if not recorded
                else "No model is asked and nothing is paid: the answers are those of the file.",
            ),
        )


def _live(scenario: Scenario, key: str) -> Classroom:
    model = os.environ.get("OPENAI_MODEL", "").strip() or LIVE_MODEL
    url = os.environ.get("OPENAI_BASE_URL", "").strip() or "https://api.openai.com/v1"
    known = model == LIVE_MODEL
    estimate = estimate_usd(scenario.cases, TEACHER_PRICE)
    return Classroom(
        section=Teacher(
            base_url=url,
            api_key_env="OPENAI_API_KEY",
            model=model,
            price=TEACHER_PRICE if known else Price(),
        ),
        scenario=scenario.live(),
        api_key=key,
        model=model,
        live=True,
        says=(
            f"LIVE: {model} at {url} is asked with your OPENAI_API_KEY, and bills you.",
            f"About ${estimate:.2f} at {LIVE_MODEL}'s list price ($2.50 in, $10 out per million "
            "tokens), if it answers everything once.",
            "Ctrl-C stops it; unset OPENAI_API_KEY to use the recorded teacher.",
        ),
    )


def estimate_usd(cases: Iterable[Case], price: Price) -> float:
    """What it costs to ask the teacher each case once."""
    dollars = 0.0
    for case in cases:
        prompt = sum(count_tokens(content_text(m.get("content"))) + 4 for m in case.messages)
        usage = Usage(prompt=prompt, completion=count_tokens(case.teacher or ""))
        dollars += cost_usd(price, usage) or 0.0
    return dollars
