"""The numbers of the pre-gate's benchmark mean what they are called."""

import numpy as np
import pytest

from benchmarks.router import ood, pregate
from benchmarks.router.data import Data


def test_the_gap_recovered_is_one_half_for_chance_and_more_for_knowledge() -> None:
    rng = np.random.default_rng(1)
    strong = np.ones(4000)
    weak = (rng.random(4000) < 0.6).astype(float)
    chance, knowledge = rng.random(4000), 1.0 - weak + rng.random(4000) / 10
    assert pregate.apgr(chance, weak, strong) == pytest.approx(0.5, abs=0.03)
    # the 40 % it is worth it for come first: the area is 1 - 0.4 / 2
    assert pregate.apgr(knowledge, weak, strong) == pytest.approx(0.8, abs=0.01)
    assert pregate.apgr(-knowledge, weak, strong) == pytest.approx(0.2, abs=0.01)


def test_without_data_nothing_is_claimed() -> None:
    for section in (ood, pregate):
        assert section.measure(Data(None), True) == []


def test_a_detector_is_judged_by_the_strange_it_lets_through() -> None:
    ordinary, strange = np.linspace(0.0, 1.0, 101), np.array([0.5, 0.96, 2.0, 3.0])
    assert ood.fpr95(ordinary, strange) == 25.0
    assert ood.area(ordinary, strange) > 80.0
