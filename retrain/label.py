"""The teacher run over raw inputs, each answer durable as it comes.

An input that is in the queue already is not asked again, so a run that was killed, or stopped at
its budget, goes on where it was when it is started once more. A teacher that limits its rate is
given the pause it asks for, by all askers at once.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.audits.teacher import answer_text
from gateway.config import Config, Task
from gateway.errors import GatewayError
from gateway.money.prices import PriceBook
from gateway.money.pricing import Usage, add, read_usage
from gateway.storage import exchanges
from gateway.storage.line import Line, name_of
from gateway.storage.store import Store
from gateway.storage.tables import Exchange
from gateway.upstreams.chain import Chain
from gateway.upstreams.refusals import retry_after_s
from retrain.label_inputs import Body
from retrain.progress import Bar
from retrain.traffic import collected
from router.decision import Answer, Reason, Route
from router.output import OutputSpec, check

#: An input is given up after this many failed attempts, and so is the run after as many inputs
#: in a row.
ATTEMPTS = 8
LONGEST_PAUSE_S = 60.0
#: English, about; only for the estimate.
BYTES_PER_TOKEN = 4


@dataclass(slots=True)
class Tally:
    """What became of the inputs. ``known``: in the queue before. ``refused``: an answer without
    text (a refusal, a content filter). ``invalid``: labelled, but against the task's output rules,
    so that the night will reject it. ``usd`` is None once a call of unknown price was made."""

    known: int = 0
    labelled: int = 0
    invalid: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    usd: float | None = 0.0
    why: str | None = None
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of the inputs that are not known yet, before anybody is asked. ``usd`` is None where the
    teacher's price is not known."""

    inputs: int
    prompt_tokens: int
    answer_tokens: int
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """One run. ``real``: the inputs are traffic as it is, so their rows may prove something about
    a student; made-up ones only teach. ``price_share``: what the calls cost of the teacher's price
    (a batch: half)."""

    config: Config
    task: Task
    store: Store
    prices: PriceBook
    spec: OutputSpec
    real: bool = True
    concurrency: int = 8
    price_share: float = 1.0
    max_usd: float | None = None

    def unknown(self, inputs: Sequence[Body]) -> list[Body]:
        """Those that are not in the queue, each once."""
        keys = [self.key(body) for body in inputs]
        known = exchanges.known(self.store, keys)
        first: dict[str, Body] = {}
        for key, body in zip(keys, inputs, strict=True):
            if key not in known:
                first.setdefault(key, body)
        return list(first.values())

    def key(self, body: Body) -> str:
        return exchanges.dedupe_key(self.task.name, orjson.dumps(body, option=orjson.OPT_SORT_KEYS))

    def estimate(self, inputs: Sequence[Body]) -> Estimate:
        prompt = sum(len(orjson.dumps(body["messages"])) // BYTES_PER_TOKEN for body in inputs)
        # half of what it may say; a label says much less
        each = 8 if self.spec.kind == "label" else max(1, self.spec.max_tokens // 2)
        usage = Usage(prompt=prompt, completion=each * len(inputs))
        model = inputs[0]["model"] if inputs else None
        return Estimate(
            inputs=len(inputs),
            prompt_tokens=prompt,
            answer_tokens=usage.completion,
            usd=self.usd(usage, model),
        )

    def usd(self, usage: Usage | None, model: str | None) -> float | None:
        usd = self.prices.teacher_usd(usage, model)
        return None if usd is None else usd * self.price_share

    def row(self, body: Body, answer: str | None, model: str | None) -> Exchange:
        """Of the queue, as if the application had asked. Also where there is no text to learn from,
        so that nobody pays for the same refusal again."""
        row = collected(self.task, body, answer, model, self.key(body))
        row.sampled, row.licensed = self.real, self.config.teacher.trainable
        return row

    def line(self, row: Exchange, answer: Body, seconds: float) -> Line:
        """Of the ledger: what the call cost. Written twice, it is there once."""
        usage = read_usage(answer.get("usage"), answer.get("service_tier"))
        usd = self.usd(usage, name_of(answer.get("model")))
        line = Line(
            id=f"label-{row.dedupe_key[:40]}",
            kind="label",
            parent=row.id,
            task=self.task.name,
            route=Route.TEACHER.value,
            reason=Reason.COLLECT.value,
            status=200,
            model=name_of(answer.get("model")),
            student_usd=0.0,
            teacher_usd=usd,
            cost_usd=usd,
            duration_ms=seconds * 1000,
            teacher_ms=seconds * 1000,
        )
        line.count(usage)
        return line

    def take(self, tally: Tally, body: Body, answer: Body, seconds: float) -> None:
        """Write down one answer."""
        text = answer_text(answer)
        row = self.row(body, text, name_of(answer.get("model")))
        line = self.line(row, answer, seconds)
        self.store.insert([row, line])
        tally.usd = add(tally.usd, line.teacher_usd)
        if text is None:
            tally.refused += 1
        else:
            tally.labelled += 1
            tally.invalid += check(self.spec, Answer(text=text)) is not None


def label(labelling: Labelling, teacher: Chain, inputs: Sequence[Body], *, show: bool) -> Tally:
    """Ask about every input that is not known. Never raises for what one input does; stops early,
    and says why, when the budget is spent, the key is refused, or nothing gets through."""
    return asyncio.run(_label(labelling, teacher, inputs, show))


async def _label(labelling: Labelling, teacher: Chain, inputs: Sequence[Body], show: bool) -> Tally:
    asked = labelling.unknown(inputs)
    tally = Tally(known=len(inputs) - len(asked))
    waiting = iter(asked)
    run = _Run(labelling, teacher, tally)
    await teacher.open()
    try:
        with Bar("label", len(asked), show=show) as bar:
            async with asyncio.TaskGroup() as askers:
                for _ in range(min(labelling.concurrency, len(asked))):
                    askers.create_task(run.ask_all(waiting, bar))
    finally:
        await teacher.close()
    tally.left = len(asked) - tally.labelled - tally.refused - tally.failed
    return tally


class _Run:
    """What the askers of one run share: the pause all keep, and whether to stop."""

    def __init__(self, labelling: Labelling, teacher: Chain, tally: Tally) -> None:
        self._labelling = labelling
        self._teacher = teacher
        self._tally = tally
        self._resume_at = 0.0
        self._failed_in_a_row = 0
        self._writing = asyncio.Lock()

    async def ask_all(self, waiting: Any, bar: Bar) -> None:
        for body in waiting:
            if self._stops():
                return
            try:
                answer, seconds = await self._ask(body)
            except GatewayError as error:
                self._give_up(error)
            else:
                self._failed_in_a_row = 0
                async with self._writing:
                    await asyncio.to_thread(
                        self._labelling.take, self._tally, body, answer, seconds
                    )
            usd = self._tally.usd
            bar.advance(note="" if usd is None else f"${usd:.2f}")

    def _stops(self) -> bool:
        most, usd = self._labelling.max_usd, self._tally.usd
        if self._tally.why is None and most is not None and (usd is None or usd >= most):
            spent = "a call of unknown price" if usd is None else f"${usd:.2f}"
            self._tally.why = f"{spent} of ${most:.2f} spent"
        return self._tally.why is not None

    def _give_up(self, error: GatewayError) -> None:
        self._tally.failed += 1
        self._tally.failures.append(str(error))
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= ATTEMPTS:
            self._tally.why = f"{ATTEMPTS} inputs in a row failed: {error}"

    async def _ask(self, body: Body) -> tuple[Body, float]:
        """Raises GatewayError where the teacher cannot be had, or refuses this input."""
        data, headers = orjson.dumps(body), {"content-type": "application/json"}
        failed = 0
        while True:
            # another asker may meanwhile have been told to wait longer: it then asks for all
            await asyncio.sleep(self._resume_at - time.monotonic())
            started = time.perf_counter()
            try:
                reply = await self._teacher.ask(data, headers)
            except GatewayError as error:
                failed += 1
                if error.status in (401, 403):
                    self._tally.why = f"the teacher refuses the key: {error}"
                again = error.status >= 500 or error.status in (408, 409, 429)
                if not again or failed == ATTEMPTS or self._tally.why is not None:
                    raise
                self._pause(error, failed)
            else:
                return reply.body, time.perf_counter() - started

    def _pause(self, error: GatewayError, failed: int) -> None:
        asked_s = retry_after_s(error.headers)
        pause_s = random.uniform(0.25, 0.5) * 2.0**failed if asked_s is None else asked_s
        until = time.monotonic() + min(pause_s, LONGEST_PAUSE_S)
        self._resume_at = max(self._resume_at, until)
