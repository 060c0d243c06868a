"""What the prompt alone says of a draft: a probability that means what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import load, save
from router.decision import Reason, Route
from router.difficulty import LEAST_ROWS, Difficulty, fit_difficulty
from router.embedder import Space
from router.embedding import fit_embedding
from router.output import OutputSpec
from router.router import Router, fit_router

HARD = 0.9
SPEC = OutputSpec(kind="json", fields={"category": (), "urgent": (True, False)})


def outcomes(traffic: Any, seed: int, count: int) -> tuple[list[str], list[float]]:
    """Drafts about returns are of no use nine times in ten, others one time in ten."""
    rng = np.random.default_rng(seed)
    rows = traffic(seed).rows(count)
    chance = [HARD if name == "returns" else 1.0 - HARD for _, name in rows]
    return [text for text, _ in rows], (rng.random(count) < chance).astype(float).tolist()


def fit(texts: list[str], losses: list[float]) -> tuple[Space, Difficulty | None]:
    space = Space(words=fit_embedding(texts, seed=1))
    return space, fit_difficulty(space, texts, space.many(texts), losses, seed=1)


def test_the_probability_is_about_what_happens(traffic: Any) -> None:
    space, hard = fit(*outcomes(traffic, 1, 400))
    assert hard is not None
    said: dict[bool, list[float]] = {True: [], False: []}
    for text, name in traffic(5).rows(80):
        said[name == "returns"].append(hard(text, space(text)))
    assert np.mean(said[True]) == pytest.approx(HARD, abs=0.08)
    assert np.mean(said[False]) == pytest.approx(1 - HARD, abs=0.08)


@pytest.mark.slow
def test_what_the_prompt_does_not_tell_is_not_told(traffic: Any) -> None:
    rng = np.random.default_rng(2)
    texts, _ = outcomes(traffic, 1, 400)
    space, hard = fit(texts, (rng.random(400) < 0.3).astype(float).tolist())
    assert hard is not None
    told = [hard(text, space(text)) for text in texts[:100]]
    assert max(told) < 0.65 and np.mean(told) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("losses", [[0.0] * 300, [1.0] * 300, [0.0, 1.0] * (LEAST_ROWS // 2 - 1)])
def test_too_few_or_one_sided_rows_teach_nothing(traffic: Any, losses: list[float]) -> None:
    texts = [text for text, _ in traffic(1).rows(len(losses))]
    assert fit(texts, losses)[1] is None


def test_any_prompt_has_a_probability(traffic: Any) -> None:
    space, hard = fit(*outcomes(traffic, 1, 200))
    assert hard is not None
    for text in ("", " ", "\x00", "\ud800", "👩‍👩‍👧", "x" * 100_000, "1\n" * 5_000):
        assert 0.0 < hard(text, space(text)) < 1.0


@pytest.fixture(scope="module")
def hopeless() -> Callable[[Any, Any, float | None], Router]:
    made: dict[float | None, Router] = {}

    def make(traffic: Any, make_draft: Any, ratio: float | None) -> Router:
        """A student that never knows what to do with returns, and says so."""
        if ratio not in made:
            calibration = [
                replace(row, student=make_draft("billing", 0.3)) if "eturn" in row.teacher else row
                for row in traffic(2).judged(400, quality=1.0)
            ]
            made[ratio] = fit_router(
                spec=SPEC,
                train=traffic(1).train(150),
                calibration=calibration,
                max_disagreement=0.05,
                confidence=0.95,
                ood_epsilon=0.0,
                cost_ratio=ratio,
            )
        return made[ratio]

    return make


@pytest.mark.slow
def test_a_hopeless_draft_is_not_asked_for_where_the_cost_ratio_says_so(
    traffic: Any, make_draft: Any, hopeless: Any, tmp_path: Path
) -> None:
    router = hopeless(traffic, make_draft, 0.3)
    assert router.certificate is not None
    save(router, tmp_path)
    again = load(tmp_path)
    for text, name in traffic(9).rows(60):
        decision = router.before(text)
        if name == "returns":
            assert (decision.route, decision.reason) == (Route.TEACHER, Reason.HARD)
        else:
            assert decision.reason is Reason.TRUSTED
        assert again.before(text) == decision


def test_without_a_cost_ratio_every_draft_is_tried(
    traffic: Any, make_draft: Any, hopeless: Any
) -> None:
    router = hopeless(traffic, make_draft, None)
    assert router.difficulty is None
    assert all(router.before(text).reason is Reason.TRUSTED for text, _ in traffic(9).rows(30))


@pytest.mark.slow
def test_a_certificate_is_the_same_with_and_without(
    traffic: Any, make_draft: Any, hopeless: Any
) -> None:
    with_it, without = (hopeless(traffic, make_draft, ratio) for ratio in (0.3, None))
    assert with_it.threshold == without.threshold
    assert with_it.certificate.upper_bound == without.certificate.upper_bound
