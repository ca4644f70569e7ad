"""How long Crias have left, those that wait for a place included."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.reconcile.telling.left import until_done

from tests.operator import world
from tests.operator.reconcile.test_golden import DATA

SECONDS = st.floats(0, 1e5)


@given(st.lists(SECONDS, min_size=1, max_size=24), st.lists(SECONDS, max_size=24))
def test_it_is_between_what_no_schedule_beats_and_what_every_greedy_one_keeps(
    running: list[float], waiting: list[float]
) -> None:
    left = until_done(running, waiting)
    together = sum(running) + sum(waiting)
    least = max([*running, *waiting, together / len(running)])
    assert left >= least * (1 - 1e-9)
    assert left <= together / len(running) + max([*running, *waiting]) * (1 + 1e-9)


@given(st.integers(1, 24), st.integers(0, 60), st.floats(1, 1e4))
def test_whole_waves_take_whole_times(places: int, waiting: int, each: float) -> None:
    waves = 1 + math.ceil(waiting / places)
    assert until_done([each] * places, [each] * waiting) == pytest.approx(waves * each)


def test_the_first_that_is_free_takes_the_next() -> None:
    assert until_done([10, 100], [50, 30]) == 100
    assert until_done([10, 20], [50, 30]) == 60


def test_a_cria_that_waits_goes_on_from_its_checkpoint() -> None:
    assert eta() == "7m35s"  # Cria 0 has 130 s left, and of Crias 1 and 2 each takes 130 s / 0.8
    assert eta(**{"cria-02": {"fraction": 0.6, "saved_fraction": 0.5}}) == "6m14s"


def test_those_that_wait_take_as_long_as_one_that_runs_will_have_taken() -> None:
    assert eta(**{"cria-00": {"fraction": 0.01, "eta_seconds": 400.0}}) == "20m08s"


def test_nothing_is_told_before_a_cria_has_told_of_itself() -> None:
    assert eta(**{"cria-00": {"fraction": 0.2}}) == ""


def eta(**reports: dict[str, float]) -> str:
    """What the case tells with other progress in the store."""
    seen = world.load(DATA / "crias-as-gpus-come-free")
    step = {"phase": "transfer", "step": 1, "steps": 100, "losses": {}, "curve": []}
    seen.seen["store"]["progress"] |= {name: step | report for name, report in reports.items()}
    plan = reconcile(seen.trenchcoat, seen.observed, world.SETTINGS, seen.now)
    assert plan.status is not None
    return plan.status.eta
