"""How long Crias have left, those that wait for a place included."""

import json
import math
from dataclasses import replace
from datetime import timedelta

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
    # Cria 0, which has run for 40 s and has 130 s left, and Cria 1, which starts, each take 170 s.
    assert eta() == "5m00s"  # Cria 2 after Cria 0
    assert eta(**{"cria-02": {"fraction": 0.6, "saved_fraction": 0.5}}) == "3m35s"


def test_those_that_wait_take_as_long_as_one_that_runs_will_have_taken() -> None:
    assert eta(**{"cria-00": {"fraction": 0.01, "eta_seconds": 400.0}}) == "14m00s"


def test_what_comes_before_the_first_step_counts_for_each_that_waits() -> None:
    """At its own pace a Cria takes 100 s; it has run for 40 s, and only a fiftieth of it is done."""
    assert eta(**{"cria-00": {"fraction": 0.02, "eta_seconds": 98.0}}) == "3m56s"  # 98 + (40 + 98)


def test_a_place_that_has_just_come_free_is_the_next_ones() -> None:
    """Cria 0 took 300 s and is complete, Cria 1 has 100 s left, Cria 2 waits for the GPU of Cria 0's pod."""
    assert eta_after(ended_ago=timedelta(seconds=5)) == "5m00s"
    assert eta_after(ended_ago=timedelta(seconds=100)) == "6m40s", "others have taken it: after Cria 1"


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


def eta_after(ended_ago: timedelta) -> str:
    """What is told so long after the first of two Crias that ran side by side is complete."""
    seen = world.load(DATA / "crias-as-gpus-come-free")
    keys = [seen.artifacts[name].key for name in ("cria-00", "cria-01")]
    for kind in ("children", "pods"):
        text = json.dumps(seen.seen[kind]).replace("cria-00", "cria-01").replace('cria": "0"', 'cria": "1"')
        for size in (len(keys[0]), 8):
            text = text.replace(keys[0][:size], keys[1][:size])
        seen.seen[kind] += json.loads(text)
    seen.seen["children"][0]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    seen.seen["pods"][0]["status"] = {"phase": "Succeeded"}
    other = json.loads(json.dumps(seen.seen["capacity"]["pods"][0]).replace("gpu-1", "gpu-2"))
    seen.seen["capacity"]["pods"].append(other)
    seen.seen["store"]["complete"].append("cria-00")
    progress = seen.seen["store"]["progress"]
    progress["cria-01"] = progress.pop("cria-00") | {"eta_seconds": 100}
    observed = seen.observed
    made = observed.store.manifests[keys[0]].model_copy(update={"completed_at": seen.now - ended_ago})
    store = replace(observed.store, manifests={**observed.store.manifests, keys[0]: made})
    status = seen.trenchcoat.status.model_copy(update={"max_crias_running": 2})
    trenchcoat = seen.trenchcoat.model_copy(update={"status": status})
    plan = reconcile(trenchcoat, replace(observed, store=store), world.SETTINGS, seen.now)
    assert plan.status is not None and not [item for item in plan.actions if "cria-02" in str(item)]
    return plan.status.eta
