"""What a night found, for a person (report.md) and for a program (report.json)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from retrain.assess import Routing
from retrain.evaluate import Report, Share
from retrain.gate import Verdict
from retrain.harvest import Harvest
from retrain.runs import write_json
from retrain.train import TrainReport
from retrain.versions import Version

SPARKS = "▁▂▃▄▅▆▇█"
#: Points of the loss curve, and rows of the tables of weak spots.
CURVE, WEAKEST = 40, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NightReport:
    """A whole night. What it did not get to is None. ``challenger`` and ``champion_report``:
    agreement on all test rows; ``routing`` and ``champion_routing``: what would be served of the
    sampled ones. ``note``: what else a person should know. ``seconds`` by step."""

    run: str
    task: str
    folder: str
    verdict: Verdict
    bundle: str | None = None
    promoted: bool = False
    note: str = ""
    champion: str | None = None
    harvest: Harvest
    data: Version | None = None
    trained: TrainReport | None = None
    challenger: Report | None = None
    champion_report: Report | None = None
    routing: Routing | None = None
    champion_routing: Routing | None = None
    max_disagreement: float = 0.0
    confidence: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)


def write_report(report: NightReport, folder: Path) -> None:
    data = TypeAdapter(NightReport).dump_python(report, mode="json")
    write_json(folder / "report.json", data)
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def read_report(folder: Path) -> NightReport:
    """Raises pydantic's ValidationError where report.json is not one of ours."""
    text = (folder / "report.json").read_text(encoding="utf-8")
    return TypeAdapter(NightReport).validate_json(text)


def markdown(report: NightReport) -> str:
    """The report as a page."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: NightReport) -> Iterator[str]:
    yield f"# {report.task}: {report.verdict.kind.replace('_', ' ')}"
    yield ""
    for reason in report.verdict.reasons:
        yield f"- {reason}"
    if report.note:
        yield f"- {report.note}"
    yield ""
    yield f"Run `{report.run}`. Bundle: {_code(report.bundle)}. " + (
        "It is the champion now." if report.promoted else "The champion has not changed."
    )
    yield from _rows(report)
    if report.trained is not None:
        yield from _training(report.trained)
    if report.challenger is not None:
        yield from _evaluation(report, report.challenger)
        yield from _weak_spots(report.challenger)
    if report.routing is not None:
        yield from _routing(report, report.routing)
    yield from ("", "## Time", "", "| step | seconds |", "| --- | --- |")
    for name, seconds in report.seconds.items():
        yield f"| {name} | {seconds:.1f} |"


def _rows(report: NightReport) -> Iterator[str]:
    harvest, data = report.harvest, report.data
    yield from ("", "## Rows", "", "| what | rows |", "| --- | --- |")
    yield f"| harvested | {harvest.leased} |"
    yield f"| kept for training | {harvest.trainable} |"
    yield f"| kept for calibration and test | {harvest.held_out} |"
    for reason, count in harvest.rejected.items():
        yield f"| rejected: {reason.replace('_', ' ')} | {count} |"
    if data is None:
        return
    if data.left_out:
        yield f"| left out: too like held-out rows ({data.example}) | {data.left_out} |"
    yield ""
    yield (
        f"Dataset `{data.id}`: {data.train} training, {data.calibration} calibration and "
        f"{data.test} test rows, of this and earlier nights."
    )


def _training(trained: TrainReport) -> Iterator[str]:
    yield from ("", "## Training", "")
    yield (
        f"{trained.rows} rows, {trained.steps} steps, {trained.tokens} tokens in "
        f"{trained.seconds:.0f} s; {trained.dropped} rows were too long. "
        f"Loss {trained.loss_first:.3f} → {trained.loss_last:.3f}."
    )
    if trained.losses:
        yield ""
        yield f"`{_curve([loss for _, loss in trained.losses])}`"


def _evaluation(report: NightReport, challenger: Report) -> Iterator[str]:
    champion = report.champion_report
    yield from ("", "## Agreement with the teacher", "")
    yield f"On {challenger.n} test rows that no student was trained on; 95 % intervals."
    yield ""
    yield "| | challenger | champion |"
    yield "| --- | --- | --- |"
    yield _row("agreement", challenger.agreement, champion.agreement if champion else None)
    old_valid = champion.valid if champion else None
    yield _row("drafts that obey the output rules", challenger.valid, old_valid)
    for name, share in challenger.per_field.items():
        old = champion.per_field.get(name) if champion else None
        yield _row(f"field `{name}`", share, old)
    if challenger.student_gold is not None:
        old = champion.student_gold if champion else None
        yield _row("right, by gold answers", challenger.student_gold, old)
    if challenger.teacher_gold is not None:
        yield f"| the teacher itself, by gold answers | {_share(challenger.teacher_gold)} | |"


def _weak_spots(report: Report) -> Iterator[str]:
    weak = sorted(report.per_label.items(), key=lambda item: (item[1].share, item[0]))
    weak = [(label, share) for label, share in weak if share.share < 1.0][:WEAKEST]
    if weak:
        yield from ("", "## Weakest labels", "", "| label | agreement |", "| --- | --- |")
        for label, share in weak:
            yield f"| {_cell(label)} | {_share(share)} |"
    if report.confusions:
        yield from ("", "| the teacher says | the student says | rows |", "| --- | --- | --- |")
        for confusion in report.confusions[:WEAKEST]:
            yield (
                f"| {_cell(confusion.teacher)} | {_cell(confusion.student)} | {confusion.count} |"
            )


def _routing(report: NightReport, routing: Routing) -> Iterator[str]:
    yield from ("", "## What it would serve", "")
    yield (
        f"The contract: at most {report.max_disagreement:.1%} of all requests are answered in "
        f"disagreement with the teacher, with {report.confidence:.0%} confidence."
    )
    yield ""
    certificate = routing.certificate
    if certificate is None:
        yield (
            "No threshold is certified, so everything goes to the teacher. A certificate needs at "
            f"least {routing.evidence_needed} more sampled requests."
        )
    else:
        yield (
            f"Certified on {certificate.n} sampled requests at threshold "
            f"{certificate.threshold:.4f}: at most {certificate.upper_bound:.1%} in disagreement."
        )
    if routing.score:
        yield from ("", routing.score)
    prediction = routing.prediction
    old = report.champion_routing.prediction if report.champion_routing else None
    yield ""
    yield f"On {prediction.served.n} sampled test rows, which neither student nor router has seen:"
    yield ""
    yield "| of all requests | challenger | champion |"
    yield "| --- | --- | --- |"
    yield _row("answered by the student", prediction.served, old.served if old else None)
    yield _row("… in disagreement", prediction.harm, old.harm if old else None)
    yield _row("off the trained path", prediction.off_path, old.off_path if old else None)


def _row(name: str, new: Share, old: Share | None) -> str:
    return f"| {name} | {_share(new)} | {_share(old) if old is not None else ''} |"


def _share(share: Share) -> str:
    return f"{share.share:.1%} ({share.low:.1%} to {share.high:.1%})"


def _code(text: str | None) -> str:
    return "none" if text is None else f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _curve(losses: Sequence[float]) -> str:
    """The loss, step by step, as a line of blocks."""
    width = max(1, -(-len(losses) // CURVE))
    parts = [losses[at : at + width] for at in range(0, len(losses), width)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((mean - low) / span * (len(SPARKS) - 1))] for mean in means)
