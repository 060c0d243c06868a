"""The alarms: how seldom they are false, how soon they come, and that they are plain values."""

import json

import numpy as np
import pytest

from router.alarms import (
    HARM,
    SHIFT,
    Alarms,
    from_dict,
    observe,
    restart,
    start_alarms,
    to_dict,
)


def watch(alarms: Alarms, losses: list[float], weight: float = 1.0) -> Alarms:
    for loss in losses:
        alarms = observe(alarms, loss, weight)
        if alarms.raised is not None:
            break
    return alarms


def draws(rate: float, n: int, seed: int) -> list[float]:
    return [float(lost) for lost in np.random.default_rng(seed).random(n) < rate]


def test_five_fold_harm_is_heard_within_250_audits_for_the_most_part() -> None:
    waited = []
    for seed in range(25):
        calm = draws(0.01, 300, seed)
        alarms = watch(start_alarms(0.01, delta=1e-9), calm)
        if alarms.raised is None:
            waited.append(watch(alarms, draws(0.05, 1500, 1000 + seed)).audits - 300)
    assert len(waited) >= 20
    assert np.median(waited) <= 250


def test_what_stays_at_the_level_is_called_harm_in_at_most_delta_of_the_runs() -> None:
    raised = [
        watch(start_alarms(0.05, arl=1e9, delta=0.4), draws(0.05, 800, seed)).raised
        for seed in range(60)
    ]
    assert raised.count(HARM) <= 60 * 0.2 + 8  # the first epoch has half of delta
    assert raised.count(SHIFT) == 0


def test_false_alarms_are_as_far_apart_as_promised() -> None:
    # 100 runs of up to 400 audits: at a mean of 400 or more, most must still be silent.
    runs = [
        watch(start_alarms(0.05, arl=400.0, delta=1e-9), draws(0.05, 400, seed)).audits
        for seed in range(60)
    ]
    assert np.mean(runs) > 250


def test_harm_from_the_start_is_called_harm() -> None:
    alarms = watch(start_alarms(0.02), draws(0.2, 300, 1))
    assert alarms.raised == HARM
    assert alarms.audits < 100


def test_an_alarm_stays_until_the_next_epoch() -> None:
    alarms = watch(start_alarms(0.02), [1.0] * 20)
    assert alarms.raised is not None
    raised = alarms.raised
    for _ in range(100):
        alarms = observe(alarms, 0.0)
    assert alarms.raised == raised
    again = restart(alarms)
    assert (again.raised, again.audits, again.epoch) == (None, 0, 2)
    assert (again.level, again.arl, again.delta) == (alarms.level, alarms.arl, alarms.delta)


def test_each_epoch_takes_more_to_be_called_harm() -> None:
    first = start_alarms(0.02, arl=1e12)
    third = restart(restart(first))
    assert watch(third, draws(0.2, 300, 2)).audits > watch(first, draws(0.2, 300, 2)).audits


def test_uneven_audits_weighed_by_their_propensity_are_no_alarm() -> None:
    # Half the traffic errs at 10 % and is audited five times as often; the mean loss is 5 %.
    rng = np.random.default_rng(3)
    silent = 0
    for _ in range(20):
        alarms = start_alarms(0.05, arl=1e9, delta=0.2)
        for risky in (rng.random(400) < 5 / 6).tolist():
            loss = float(risky and rng.random() < 0.1)
            alarms = observe(alarms, loss, 0.2 if risky else 1.0)
        silent += alarms.raised is None
    assert silent >= 15


def test_the_state_survives_json_to_the_bit() -> None:
    for losses in ([], draws(0.1, 57, 4)):
        alarms = watch(start_alarms(0.05), losses)
        again = from_dict(json.loads(json.dumps(to_dict(alarms), allow_nan=False)))
        assert again == alarms
        assert observe(again, 0.3) == observe(alarms, 0.3)


def test_observing_does_not_change_the_state_it_starts_from() -> None:
    alarms = start_alarms(0.05)
    before = to_dict(alarms)
    observe(alarms, 1.0)
    assert to_dict(alarms) == before


def test_a_number_off_its_range_is_refused() -> None:
    for level, arl, delta in ((0.0, 1e4, 0.05), (1.0, 1e4, 0.05), (0.1, 1.0, 0.05), (0.1, 9, 0)):
        with pytest.raises(ValueError, match="no alarm"):
            start_alarms(level, arl=arl, delta=delta)
    for loss, weight in ((1.1, 1.0), (-0.1, 1.0), (float("nan"), 1.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="must be shares"):
            observe(start_alarms(0.1), loss, weight)


@pytest.mark.parametrize("level", [0.001, 0.02, 0.5, 0.95])
def test_no_bet_goes_bankrupt_at_any_level(level: float) -> None:
    alarms = start_alarms(level)
    for loss in [0.0] * 50 + [1.0] * 3 + [0.5] * 20:
        alarms = observe(alarms, loss)
    assert all(np.isfinite(alarms.harm)) and all(np.isfinite(alarms.shift))
