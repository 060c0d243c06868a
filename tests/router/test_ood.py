"""Strange prompts are turned away, ordinary ones at most as often as promised."""

from typing import Any

import numpy as np
import pytest

from router.ood import CENTROID, ENERGY, NEIGHBOURS, VIEWS, Ood, fit_ood


def gate(traffic: Any, *, held_out: int = 150, classes: bool = True) -> Ood:
    train = [(text, name if classes else None) for text, name in traffic(1).rows(150)]
    return fit_ood(train, [text for text, _ in traffic(2).rows(held_out)], seed=1)


@pytest.mark.parametrize("classes", [True, False])
def test_strange_prompts_get_the_lowest_p_value(
    traffic: Any, strange: tuple[str, ...], classes: bool
) -> None:
    ood = gate(traffic, classes=classes)
    for prompt in strange:
        assert ood.p_value(prompt) == pytest.approx(1 / 151)
    ordinary = [ood.p_value(text) for text, _ in traffic(3).rows(100)]
    assert np.median(ordinary) > 0.2


def test_prompts_without_classes_are_compared_with_their_neighbours(traffic: Any) -> None:
    assert gate(traffic, classes=False).uses == (NEIGHBOURS,)


def test_classes_that_do_not_follow_from_the_prompt_are_not_relied_on(traffic: Any) -> None:
    rng = np.random.default_rng(3)
    drawn = [(text, str(rng.integers(4))) for text, _ in traffic(1).rows(150)]
    uses = fit_ood(drawn, [], seed=1).uses
    assert uses and uses != (ENERGY,)
    assert CENTROID in uses or NEIGHBOURS in uses


def test_a_prompt_seen_before_ties_with_itself(traffic: Any) -> None:
    rows = [text for text, _ in traffic(2).rows(60)]
    ood = fit_ood(traffic(1).rows(100), rows, seed=1)
    places = sorted(ood.p_value(text) for text in rows)
    assert places[0] >= 2 / 61  # itself, and no rounding error away from it


@pytest.mark.parametrize("size", [19, 50])
def test_ordinary_prompts_are_turned_away_at_most_as_promised(traffic: Any, size: int) -> None:
    """Over many draws of the held-out prompts, P(p <= ε) <= ε; ties only make it smaller."""
    ood = gate(traffic)
    rng = np.random.default_rng(5)
    # The place of a prompt depends on its views alone: draw those, correlated as real ones are.
    views = rng.multivariate_normal(np.zeros(3), np.eye(3) * 0.4 + 0.6, (4000, size + 1))
    hits = {0.05: 0, 0.2: 0}
    for draw in views:
        trial = Ood(
            embedding=ood.embedding,
            rows=ood.rows,
            weights=ood.weights,
            biases=ood.biases,
            centroids=ood.centroids,
            uses=VIEWS,
            reference=draw[:-1],
        )
        p = trial.place(draw[-1])
        for epsilon in hits:
            hits[epsilon] += p <= epsilon
    for epsilon, count in hits.items():
        noise = 3 * (epsilon * (1 - epsilon) / len(views)) ** 0.5
        assert count / len(views) <= epsilon + noise
        assert count / len(views) >= epsilon * 0.5  # and it is not idle


def test_a_small_reference_cannot_reach_a_small_epsilon(
    traffic: Any, strange: tuple[str, ...]
) -> None:
    assert gate(traffic, held_out=20).p_value(strange[0]) == pytest.approx(1 / 21)
    assert gate(traffic, held_out=0).p_value(strange[0]) == 1.0


@pytest.mark.parametrize(
    "train",
    [
        [],
        [("one", "a")],
        [("", "a"), ("", "b")],
        [("same", "a")] * 5,
        [("same", "a"), ("same", "a"), ("same", "b"), ("same", "b")],
        [("one", None), ("two", None)],
    ],
)
def test_any_training_rows_give_a_gate(train: list[tuple[str, str | None]]) -> None:
    ood = fit_ood(train, ["held", "out"], seed=1)
    assert 0.0 < ood.p_value("anything") <= 1.0
    assert 0.0 < ood.p_value("") <= 1.0


def test_rare_classes_do_not_take_part(traffic: Any) -> None:
    rows = [*traffic(1).rows(100), ("a very special case", "special")]
    assert fit_ood(rows, [], seed=1).weights.shape[1] == 4
