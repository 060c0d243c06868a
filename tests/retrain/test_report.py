"""A person reads what a night found, also of a night that ended early."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from retrain.assess import Routing
from retrain.calibrate import Prediction
from retrain.evaluate import evaluate, mean_share
from retrain.gate import Verdict
from retrain.harvest import Harvest
from retrain.report import NightReport, markdown, read_report, write_report
from retrain.train import TrainReport
from retrain.versions import Version
from router.decision import Answer
from router.output import OutputSpec
from router.threshold import certify

SPEC = OutputSpec(kind="json", fields={"category": ()})


def short() -> NightReport:
    return NightReport(
        run="run-1",
        task="triage",
        folder="runs/run-1",
        verdict=Verdict(kind="not_enough_evidence", reasons=("3 new usable rows",)),
        harvest=Harvest(leased=4, trainable=2, held_out=1, rejected={"no_answer": 1}, waiting=3),
    )


def full() -> NightReport:
    texts = ['{"category": "a|b"}', '{"category": "c"}', '{"category": "c"}']
    report = evaluate(
        SPEC,
        [Answer(text=text) for text in texts],
        [texts[1], texts[1], texts[1]],
        [texts[1], None, None],
    )
    prediction = Prediction(
        served=mean_share([1.0] * 9 + [0.0]),
        harm=mean_share([0.0] * 10),
        off_path=mean_share([0.0] * 10),
        reasons={"trusted": 9, "unsure": 1},
    )
    certificate = certify([0.99] * 200, [0.0] * 200, 0.05, 0.05)
    assert certificate is not None
    routing = Routing(
        prediction=prediction, threshold=certificate.threshold, certificate=certificate
    )
    return NightReport(
        run="run-1",
        task="triage",
        folder="runs/run-1",
        verdict=Verdict(kind="promote", reasons=("better",)),
        bundle="triage-2",
        promoted=True,
        champion="triage-1",
        harvest=Harvest(leased=4, trainable=2, held_out=1, rejected={"no_answer": 1}, waiting=3),
        data=Version(
            id="d", sha256="0", train=3, calibration=2, test=3, left_out=1, example="x is like y"
        ),
        trained=TrainReport(
            rows=3,
            dropped=0,
            steps=100,
            tokens=900,
            loss_first=2.0,
            loss_last=0.5,
            seconds=9.0,
            adapter_sha256="0",
            losses=tuple((k, 2.0 - k / 100) for k in range(100)),
        ),
        challenger=report,
        champion_report=report,
        routing=routing,
        champion_routing=Routing(
            prediction=prediction, threshold=1.01, certificate=None, evidence_needed=12
        ),
        max_disagreement=0.05,
        confidence=0.95,
        seconds={"train": 9.0},
    )


@pytest.mark.parametrize("make", [short, full])
def test_reports_are_read_back_as_they_were_written(tmp_path: Path, make: object) -> None:
    report = make()  # type: ignore[operator]
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report


def test_the_page_tells_the_verdict_first() -> None:
    lines = markdown(full()).splitlines()
    assert lines[:3] == ["# triage: promote", "", "- better"]
    page = "\n".join(lines)
    assert "It is the champion now." in page
    assert "| left out: too like held-out rows (x is like y) | 1 |" in page
    assert "Loss 2.000 → 0.500." in page and "`█" in page
    assert "| agreement | 66.7% (9.4% to 99.2%) | 66.7% (9.4% to 99.2%) |" in page
    assert "| field `category` |" in page
    assert "| c | a\\|b | 1 |" in page
    assert "| the teacher itself, by gold answers | 100.0%" in page
    assert "Certified on 200 sampled requests" in page
    assert "| answered by the student | 90.0%" in page


def test_a_night_that_ended_early_has_a_page_too() -> None:
    page = markdown(short())
    assert page.startswith("# triage: not enough evidence\n\n- 3 new usable rows\n")
    assert "The champion has not changed." in page
    assert "## Training" not in page and "## What it would serve" not in page


def test_a_foreign_file_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValidationError):
        read_report(tmp_path)
