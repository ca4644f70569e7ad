"""The operator dies between any two things that it writes: the end is the same, and nothing ran twice.

Here every point of every scenario, in the simulated cluster; tests/cluster/test_crashes.py does it against a
real API server, Job controller, scheduler and store.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.model.observed import ChildPhase

from tests.operator.simulation import Cluster, succeeded, trenchcoat

Death = Callable[[int], bool]
"""Whether the operator dies after the write of this number."""


class Operator:
    """Carries out plans, and dies after some writes; a new one looks afresh and knows nothing."""

    def __init__(self, cluster: Cluster, dies: Death) -> None:
        self.cluster, self.dies = cluster, dies
        self.writes = 0
        self.deaths = 0

    def settle(self, name: str) -> bool:
        """Work on a Trenchcoat until there is nothing to write; returns whether to look again."""
        for _ in range(400):
            if name not in self.cluster.tenants:
                return False
            plan = self.cluster.plan(name)
            wrote = False
            for write in self.cluster.effects(plan, name):
                write()
                wrote = True
                self.writes += 1
                if self.dies(self.writes):
                    self.deaths += 1
                    break
            if name not in self.cluster.tenants:
                return False
            if not wrote or (plan.actions == () and not self.dies(self.writes)):
                return plan.look_again is not None
        raise AssertionError(f"{name} is never settled")


def live(cluster: Cluster, dies: Death, fail: float = 0.0, script: dict[int, Any] | None = None) -> Operator:
    """Run to the end; `script` says what a user does in which round."""
    luck, operator = random.Random(11), Operator(cluster, dies)
    script = dict(script or {})
    for round_number in range(150):
        if round_number in script:
            script.pop(round_number)(cluster)
        wanted = [operator.settle(name) for name in sorted(cluster.tenants)]
        cluster.schedule()
        running = cluster.running()
        for name in luck.sample(running, min(len(running), luck.randint(1, 3))):
            failed = luck.random() < fail
            if failed:
                cluster.end(name, ChildPhase.FAILED, luck.choice([1, 75, 69]))
            else:
                cluster.end(name, ChildPhase.SUCCEEDED)
        if not running and not any(wanted) and not script:
            return operator
        cluster.now += timedelta(seconds=30)
    raise AssertionError("it comes to no end")


def end_of(cluster: Cluster) -> dict[str, Any]:
    return {
        "statuses": {name: tenant.status for name, tenant in cluster.tenants.items()},
        "manifests": set(cluster.manifests),
        "objects": cluster.objects,
        "deletions": {key: item.phase for key, item in cluster.deletions.items()},
        "made": sorted(cluster.made),
        "children": {name: child.phase for name, child in cluster.children.items()},
        "configMaps": {name: maps for name, maps in cluster.config_maps.items() if maps},
        "services": {name: found for name, found in cluster.services.items() if found},
    }


def small(name: str = "tiny", **spec: Any) -> Trenchcoat:
    return trenchcoat(name, layersPerCria=6, **spec)


def plain() -> Cluster:
    return Cluster.one(small(), [2])


def indexed() -> Cluster:
    return Cluster.one(small(scheduling={"distributed": "IndexedJob"}), [2])


def thin() -> Cluster:
    return Cluster.one(small(retention="DeleteIntermediate"), [2])


def doomed() -> Cluster:
    return Cluster.one(small(retention="Delete"), [2])


def shared() -> Cluster:
    two = small("two", minutes=5, stitch={"learningRate": "1e-3", "nodes": 2, "gpusPerNode": 1})
    return Cluster({"tiny": small(), "two": two}, [1, 1])


def change(**spec: Any) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.change("tiny", **spec)


SCENARIOS: dict[str, tuple[Callable[[], Cluster], dict[int, Any], float]] = {
    "a full run": (plain, {}, 0.0),
    "with failures": (plain, {}, 0.25),
    "without a training operator": (indexed, {}, 0.25),
    "suspend and resume": (plain, {4: change(suspend=True), 6: change(suspend=False)}, 0.0),
    "a changed spec": (plain, {5: change(transfer={"epochs": 3})}, 0.0),
    "intermediates deleted": (thin, {14: change(transfer={"epochs": 3})}, 0.0),
    "two that share": (shared, {}, 0.0),
    "deleted with its artifacts": (doomed, {8: lambda cluster: cluster.delete("tiny")}, 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_dying_after_any_one_write_changes_nothing(scenario: str) -> None:
    make, script, fail = SCENARIOS[scenario]
    undisturbed = make()
    writes = live(undisturbed, lambda _: False, fail, script).writes
    assert writes > 30
    expected = end_of(undisturbed)
    for last in range(1, writes + 1):
        cluster = make()
        operator = live(cluster, lambda number, last=last: number == last, fail, script)  # type: ignore[misc]
        assert operator.deaths == 1
        assert end_of(cluster) == expected, f"dying after write {last} of {writes}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_dying_after_every_write_changes_nothing(scenario: str) -> None:
    make, script, fail = SCENARIOS[scenario]
    undisturbed, cluster = make(), make()
    live(undisturbed, lambda _: False, fail, script)
    operator = live(cluster, lambda _: True, fail, script)
    assert operator.deaths == operator.writes > 20
    assert end_of(cluster) == end_of(undisturbed)


@pytest.mark.slow
@given(st.sampled_from(sorted(SCENARIOS)), st.sets(st.integers(1, 200), max_size=60))
@settings(max_examples=15, deadline=None, phases=(Phase.generate,))
def test_dying_after_any_writes_changes_nothing(scenario: str, last_words: set[int]) -> None:
    make, script, fail = SCENARIOS[scenario]
    undisturbed, cluster = make(), make()
    live(undisturbed, lambda _: False, fail, script)
    live(cluster, lambda number: number in last_words, fail, script)
    assert end_of(cluster) == end_of(undisturbed)


def test_a_full_run_makes_everything_once() -> None:
    cluster = plain()
    live(cluster, lambda _: True)
    assert succeeded(cluster.trenchcoat)
    assert sorted(cluster.made) == sorted(cluster.artifacts)
