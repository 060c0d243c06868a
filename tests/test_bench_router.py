"""The router's benchmark runs without data, loses nothing to one section that fails, and its
baselines and metrics are what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.router import baselines, closed_loop, run
from router.threshold import GRID, NEVER, certify

ROOT = Path(__file__).parent.parent


def bench(out: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "benchmarks/router/run.py", "--quick", "--out", str(out)]
    environment = {**os.environ, "RETORT_DATA": str(out / "no-data"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((out / "results.json").read_text())


def test_a_section_runs_without_data_and_says_so(tmp_path: Path) -> None:
    shown, result = bench(tmp_path, "--only", "closed_loop", "--no-plots")
    assert "synthetic streams only" in shown and "teacher share" in shown
    assert [part["section"] for part in result["sections"]] == ["closed_loop"]
    assert all(line["value"] is not None for line in result["sections"][0]["lines"])
    assert result["about"]["data"] is None
    written = (tmp_path / "results.json").read_text() + (tmp_path / "results.md").read_text()
    assert str(ROOT) not in written and str(tmp_path) not in written
    assert os.uname().nodename not in written


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_section_runs_without_data(tmp_path: Path) -> None:
    _, result = bench(tmp_path)
    assert [part["section"] for part in result["sections"]] == run.sections()
    assert [part["error"] for part in result["sections"]] == [None] * len(run.sections())


def test_the_sections_are_the_modules_that_measure() -> None:
    assert {"closed_loop", "speed"} <= set(run.sections())
    assert not {"run", "table", "data", "baselines", "plots"} & set(run.sections())


def test_a_section_that_fails_costs_only_its_own_lines(capfd: pytest.CaptureFixture[str]) -> None:
    failed = run.run("no_such_section", True, 60.0)
    assert failed["lines"] == [] and "status 1" in failed["error"]
    capfd.readouterr()
    good = {"section": "a", "took_s": 1.0, "error": None, "lines": [line(value=0.5, bar=0.4)]}
    about = {"date": "2026-01-01", "quick": False, "data": ["x"], "seeds": "", "machine": "m"}
    result = {
        "about": {**about, "python": "3", "versions": {}},
        "sections": [failed, good],
    }
    for page in (run.screen(result), run.markdown(result)):
        assert "no_such_section: failed" in page
        assert "0.5 [0.4, 0.6]" in page and "≥ 0.4" in page
        assert "1 bars met, 0 not." in page


def line(**changes: Any) -> dict[str, Any]:
    plain = {"section": "a", "what": "w", "who": "ours", "value": 0.5, "low": 0.4, "high": 0.6}
    return {**plain, "bar": None, "at_most": False, "unit": "", "met": True, **changes}


def test_the_documentation_has_a_place_for_the_table() -> None:
    text = (ROOT / "docs/router.md").read_text()
    assert text.count(run.BEGIN) == text.count(run.END) == 1
    assert text.index(run.BEGIN) < text.index(run.END)


@pytest.fixture(scope="module")
def drafts() -> tuple[Any, Any]:
    """Scores of drafts, and their losses: a fifth is wrong."""
    rng = np.random.default_rng(3)
    losses = (rng.random(4000) < 0.2).astype(float)
    return 1 / (1 + np.exp(-rng.normal(1.0 - 2.0 * losses))), losses


def test_rankings_lie_between_random_and_the_oracle(drafts: tuple[Any, Any]) -> None:
    scores, losses = drafts
    right = 1 - losses
    chance = baselines.apgr(baselines.random_scores(len(losses), 1), right)
    best = baselines.apgr(baselines.oracle_scores(right, 1.0), right)
    assert abs(chance - 0.5) < 0.03
    assert best == pytest.approx(1 - losses.mean() / 2, abs=1e-3)
    assert chance + 0.1 < baselines.apgr(scores, right) < best
    assert baselines.apgr(baselines.always(len(losses), True), right) == pytest.approx(0.5)
    near = baselines.apgr(scores, right, exact=False)
    assert near == pytest.approx(baselines.apgr(scores, right), abs=0.02)
    half = baselines.cpt(scores, right, part=0.5)
    assert half < baselines.cpt(scores, right, part=0.8) < 0.8
    assert half == pytest.approx(baselines.cpt(scores, right, part=0.5, exact=False), abs=0.05)
    assert baselines.auroc(scores, right > 0.5) > 0.85
    assert baselines.auroc([1, 1, 1], [True, False, True]) == 0.5


def test_thresholds_are_those_of_their_definitions(drafts: tuple[Any, Any]) -> None:
    scores, losses = drafts
    exact = certify(scores, losses, 0.05, 0.05)
    assert exact is not None
    assert baselines.clopper_pearson(scores, losses, 0.05, 0.05) == exact.threshold
    observed = baselines.empirical(scores, losses, 0.05)
    assert ((losses * (scores >= observed)).mean()) <= 0.05
    laxer = GRID[GRID.index(observed) + 1]
    assert ((losses * (scores >= laxer)).mean()) > 0.05
    assert baselines.violates(laxer, scores, losses, 0.05)
    assert not baselines.violates(observed, scores, losses, 0.05)
    assert observed <= baselines.crc(scores, losses, 0.05) <= exact.threshold
    assert baselines.crc(scores[:5], losses[:5], 0.05) == NEVER
    assert [n for n, _ in baselines.repeeked(scores[:350], losses[:350], 0.05, 0.05)] == [
        100,
        200,
        300,
    ]


def test_fitted_baselines_learn_and_constant_ones_do_not(drafts: tuple[Any, Any]) -> None:
    scores, losses = drafts
    right, half = 1 - losses, len(losses) // 2
    rng = np.random.default_rng(4)
    x = np.column_stack([losses + rng.normal(size=len(losses)), np.ones(len(losses))])
    train, test = slice(0, half), slice(half, None)
    for found in (
        baselines.knn(x[train], losses[train], x[test], k=50),
        baselines.lr(x[train], losses[train], x[test]),
        baselines.margin_isotonic(scores[train], losses[train], scores[test]),
    ):
        assert baselines.apgr(found, right[test]) > 0.58
    kinds = ["hard" if loss else "easy" for loss in losses]
    means = baselines.task_mean(kinds[:half], losses[:half], ["hard", "easy", "new"])
    assert means[0] < means[2] < means[1]
    assert baselines.length(["aa", "b"]).tolist() == [-2.0, -1.0]
    assert baselines.plain_logprob([[-1.0, -2.0], [-0.5]]).tolist() == [-3.0, -0.5]
    calibrated = baselines.margin_isotonic(scores[train], losses[train], scores[test])
    assert baselines.ece(calibrated, right[test]) < baselines.ece(scores[test] ** 4, right[test])


def test_the_closed_loop_reads_only_answers_it_paid_for() -> None:
    stream = closed_loop.synthetic(400)(1)
    for loop in (closed_loop.uncertified, closed_loop.per_bundle, closed_loop.whole_stream):
        course = loop(stream, 1)
        unpaid = stream.order[~course.called]
        assert len(unpaid)
        teacher = stream.teacher.copy()
        teacher[unpaid] = (teacher[unpaid] + 1) % stream.blocks[0].names.shape[0]
        other = closed_loop.Stream(
            teacher=teacher,
            gold=stream.gold,
            few=stream.few,
            order=stream.order,
            blocks=stream.blocks,
        )
        again = loop(other, 1)
        assert (again.called == course.called).all()
        assert (again.served == course.served).all()
        assert again.bound == course.bound
