"""Strange prompts are turned away, ordinary ones at most as often as promised."""

from typing import Any

import numpy as np
import pytest

from router.embedder import Outside, Space
from router.errors import NoEmbedder
from router.ood import VIEWS, Ood, fit_ood


def gate(traffic: Any, *, held_out: int = 150, classes: bool = True) -> Ood:
    train = [(text, name if classes else None) for text, name in traffic(1).rows(150)]
    return fit_ood(train, [text for text, _ in traffic(2).rows(held_out)], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [True, False])
def test_strange_prompts_get_the_lowest_p_value(
    traffic: Any, strange: tuple[str, ...], classes: bool
) -> None:
    ood = gate(traffic, classes=classes)
    for prompt in strange:
        assert ood.p_value(prompt) == pytest.approx(1 / 151)
    ordinary = [ood.p_value(text) for text, _ in traffic(3).rows(100)]
    assert np.median(ordinary) > 0.2


def test_prompts_without_classes_and_with_few_are_sorted_into_finer_kinds(traffic: Any) -> None:
    for classes in (True, False):
        ood = gate(traffic, classes=classes)
        assert ood.uses == VIEWS and len(ood.centroids) > 4


def test_many_classes_are_kinds_as_they_are(traffic: Any) -> None:
    texts = [text for text, _ in traffic(1).rows(150)]
    ood = fit_ood([(text, str(at % 12)) for at, text in enumerate(texts)], [], seed=1)
    assert len(ood.centroids) == 12


def test_classes_that_do_not_follow_from_the_prompt_are_not_relied_on(
    traffic: Any, strange: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(3)
    drawn = [(text, str(rng.integers(4))) for text, _ in traffic(1).rows(150)]
    ood = fit_ood(drawn, [text for text, _ in traffic(2).rows(150)], seed=1)
    for prompt in strange:
        assert ood.p_value(prompt) <= 3 / 151


def test_a_prompt_seen_before_ties_with_itself(traffic: Any) -> None:
    rows = [text for text, _ in traffic(2).rows(60)]
    ood = fit_ood(traffic(1).rows(100), rows, seed=1)
    places = sorted(ood.p_value(text) for text in rows)
    assert places[0] >= 2 / 61  # itself, and no rounding error away from it


@pytest.mark.slow
@pytest.mark.parametrize("size", [19, 50])
def test_ordinary_prompts_are_turned_away_at_most_as_promised(traffic: Any, size: int) -> None:
    """Over many draws of the held-out prompts, P(p <= ε) <= ε; ties only make it smaller."""
    ood = gate(traffic)
    rng = np.random.default_rng(5)
    # The place of a prompt depends on its views alone: draw those, correlated as real ones are.
    views = rng.multivariate_normal(np.zeros(4), np.eye(4) * 0.4 + 0.6, (4000, size + 1))
    hits = {0.05: 0, 0.2: 0}
    for draw in views:
        trial = Ood(
            space=ood.space,
            rows=ood.rows,
            weights=ood.weights,
            biases=ood.biases,
            centroids=ood.centroids,
            reference=draw[:-1],
        )
        p = trial.place(draw[-1])
        for epsilon in hits:
            hits[epsilon] += p <= epsilon
    for epsilon, count in hits.items():
        noise = 3 * (epsilon * (1 - epsilon) / len(views)) ** 0.5
        assert count / len(views) <= epsilon + noise
        assert count / len(views) >= epsilon * 0.5  # and it is not idle


@pytest.mark.slow
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
    rows = [(text, str(at % 12)) for at, (text, _) in enumerate(traffic(1).rows(100))]
    ood = fit_ood([*rows, ("a very special case", "special")], [], seed=1)
    assert ood.weights.shape[1] == 12


class Meaning:
    """An embedder that knows what a prompt is about by one word."""

    name, size, serial = "made up", 5, False
    about = ("charged", "refund", "parcel", "courier")

    def __call__(self, text: str, /) -> Any:
        there = [float(word in text) for word in self.about]
        return np.array([*there, float(not any(there))], np.float32)

    def many(self, texts: Any, /) -> Any:
        return np.stack([self(text) for text in texts])


def test_an_embedder_adds_what_n_grams_do_not_know(traffic: Any) -> None:
    train = [row for row in traffic(1).rows(300) if row[1] in ("billing", "delivery")]
    held_out = [text for text, name in traffic(2).rows(300) if name in ("billing", "delivery")]
    known, blind = (
        fit_ood(train, held_out, seed=1, embedder=embedder) for embedder in (Meaning(), None)
    )
    others = [text for text, name in traffic(3).rows(60) if name in ("login", "returns")]
    p_known, p_blind = ([gate.p_value(text) for text in others] for gate in (known, blind))
    assert max(p_known) < 0.02
    assert np.mean(p_known) <= np.mean(p_blind)
    vector = Meaning()(others[0])
    assert known.p_value(others[0], vector) == known.p_value(others[0])


def test_a_vector_that_is_missing_or_of_another_length_is_refused(traffic: Any) -> None:
    ood = fit_ood(traffic(1).rows(100), ["a", "b"], seed=1, embedder=Meaning())
    space = Space(words=ood.space.words, meaning=Outside(name="made up", size=5))
    with pytest.raises(NoEmbedder, match="not given"):
        space("hello")
    with pytest.raises(NoEmbedder, match="5 numbers"):
        space("hello", np.zeros(4, np.float32))
    assert (space("hello", Meaning()("hello")) == ood.space("hello")).all()
