"""The learning rate over the stitch's steps."""

import itertools

import pytest
from trenchcoat_api.spec import LrSchedule, Stitch
from trenchcoat_trainer.stages.stitch.schedule import DECAY, WARM_UP, learning_rate

STEPS = 200


def rates(schedule: str) -> list[float]:
    stitch = Stitch.model_validate({"learningRate": "2e-3", "lrSchedule": schedule})
    return [learning_rate(stitch, done, STEPS) for done in range(STEPS)]


def test_constant_is_the_specs_at_every_step():
    assert rates("constant") == [2e-3] * STEPS


@pytest.mark.parametrize("schedule", [LrSchedule.LINEAR, LrSchedule.COSINE])
def test_the_others_rise_to_it_and_fall_to_nothing(schedule):
    found = rates(schedule)
    top = found.index(max(found))
    assert top + 1 == round(WARM_UP * STEPS)
    assert max(found) == pytest.approx(2e-3)
    assert all(0 < one < other for one, other in itertools.pairwise(found[: top + 1]))
    assert all(one > other > 0 for one, other in itertools.pairwise(found[top + 1 :]))
    assert found[-1] < 0.01 * 2e-3


def test_wsd_stays_until_it_falls_over_the_last_steps():
    found = rates("wsd")
    rising, falling = round(WARM_UP * STEPS), round(DECAY * STEPS)
    assert found[rising:-falling] == [2e-3] * (STEPS - falling - rising)
    assert all(one > other > 0 for one, other in itertools.pairwise(found[-falling:]))
    assert found[-falling // 2] == pytest.approx(1e-3)


def test_half_way_down_both_are_at_half():
    middle = round((1 + WARM_UP) / 2 * STEPS)
    assert rates("linear")[middle] == pytest.approx(rates("cosine")[middle])
    assert rates("linear")[middle] == pytest.approx(1e-3)


def test_one_step_has_a_rate():
    for schedule in LrSchedule:
        stitch = Stitch.model_validate({"lrSchedule": schedule})
        assert 0 < learning_rate(stitch, 0, 1) <= float(stitch.learning_rate)
