"""One student on the held-out rows: its answers, its router, and what both together would do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import Config, Task
from retrain.answers import answers_to
from retrain.ask import ask_student
from retrain.calibrate import Prediction, calibrate, decide_each, predict
from retrain.evaluate import losses
from retrain.gate import Contender
from retrain.promote import ensure_loaded
from retrain.versions import Example
from router.decision import Answer, Decision, Route
from router.output import OutputSpec, check
from router.report import score_in_words
from router.router import Labelled, Router
from router.threshold import Certificate

#: Requests in flight while rows are asked.
CONCURRENCY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What a student and its router would do with the sampled test rows, and the certificate they
    act on. ``evidence_needed``: further requests a certificate needs at the least (0: it has
    one), ``evidence_expected`` if errors go on as they are (None: it never will). ``score``: which
    one it acts on, and what others would gain, in words."""

    prediction: Prediction
    threshold: float
    certificate: Certificate | None
    evidence_needed: int = 0
    evidence_expected: int | None = None
    score: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks adapters for answers to rows, each once: ``folder`` remembers them by adapter."""

    config: Config
    task: Task
    folder: Path
    progress: bool = True

    def answers(
        self, adapter: str, adapter_dir: Path, rows: Sequence[Example], label: str
    ) -> list[Answer | None]:
        """One per row, None where the student fails on it. Raises BundleError where the adapter
        cannot be loaded, StudentError or NightError where it does not answer."""
        url = self.config.student.base_urls[0]

        def ask(prompts: Sequence[Sequence[Mapping[str, Any]]]) -> Sequence[Answer | None]:
            ensure_loaded(url, adapter, adapter_dir)
            return ask_student(
                prompts,
                base_url=url,
                adapter=adapter,
                max_tokens=self.task.output.max_tokens,
                concurrency=min(CONCURRENCY, self.config.student.max_concurrency),
                progress=self.progress,
                label=label,
            )

        return answers_to(self.path(adapter), [(row.id, row.messages) for row in rows], ask)

    def path(self, adapter: str) -> Path:
        return self.folder / f"{adapter}.jsonl"

    def adopt(self, adapter: str, name: str) -> None:
        """The same adapter goes by another name from now on."""
        if self.path(adapter).exists():
            self.path(adapter).replace(self.path(name))


def teachers(rows: Sequence[Example]) -> list[str]:
    """What the student is measured by: a correction stands in the teacher's place."""
    return [row.answer for row in rows]


def uncorrected(rows: Sequence[Example]) -> list[str | None]:
    """What the teacher itself said; None where it was not asked."""
    return [row.teacher if row.corrected else row.answer for row in rows]


def sampled(
    rows: Sequence[Example], answers: Sequence[Answer | None]
) -> tuple[list[Example], list[Answer | None]]:
    """The rows that are traffic as it is, with their answers."""
    pairs = [pair for pair in zip(rows, answers, strict=True) if pair[0].sampled]
    return [row for row, _ in pairs], [answer for _, answer in pairs]


def fit(
    task: Task,
    spec: OutputSpec,
    train: Sequence[Example],
    calibration: Sequence[Example],
    answers: Sequence[Answer | None],
    *,
    seed: int,
) -> Router:
    """The router of a student, from its training rows and its answers to sampled calibration
    rows."""
    return calibrate(
        task,
        spec,
        [Labelled(prompt=row.prompt, answer=row.answer) for row in train],
        [row.prompt for row in calibration],
        answers,
        teachers(calibration),
        seed=seed,
    )


def decisions(
    router: Router, rows: Sequence[Example], answers: Sequence[Answer | None]
) -> list[Decision]:
    return decide_each(router, [row.prompt for row in rows], answers)


def routing(router: Router, test: Sequence[Example], answers: Sequence[Answer | None]) -> Routing:
    """The numbers of a student with its router on the sampled ones of the test rows."""
    rows, drafts = sampled(test, answers)
    made = decisions(router, rows, drafts)
    return Routing(
        prediction=predict(router, made, drafts, teachers(rows)),
        threshold=router.threshold,
        certificate=router.certificate,
        evidence_needed=router.report.evidence_needed,
        evidence_expected=router.report.evidence_expected,
        score=score_in_words(router.report),
    )


def contender(
    spec: OutputSpec, router: Router, test: Sequence[Example], answers: Sequence[Answer | None]
) -> Contender:
    """The same row by row, for the gate. Both contenders are judged by one ``spec``."""
    rows, drafts = sampled(test, answers)
    made = decisions(router, rows, drafts)
    return Contender(
        losses=losses(spec, answers, teachers(test)),
        valid=[answer is not None and check(spec, answer) is None for answer in answers],
        served=[decision.route is Route.STUDENT for decision in made],
        certified=router.certificate is not None,
        harm_at_least=predict(router, made, drafts, teachers(rows)).harm.low,
    )
