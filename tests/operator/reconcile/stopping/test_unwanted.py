"""What becomes of a Job whose pod settings are no longer those of the spec."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trenchcoat_api.spec import Distributed
from trenchcoat_api.stages import Stage
from trenchcoat_operator.model.capacity import Capacity, Demand, Node
from trenchcoat_operator.model.observed import Child, Observed, Pod, StoreView
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.stopping.unwanted import deletions
from trenchcoat_operator.works import graph

from tests.operator import world
from tests.operator.simulation import trenchcoat

OWNER = trenchcoat(layersPerCria=12)
MANIFESTS = world.manifests_before_crias(OWNER.spec)
GRAPH = graph.build(OWNER.spec, MANIFESTS)
(CRIA,) = (work for work in GRAPH.works if work.stage is Stage.CRIA)
WAITS = Pod(name="p", phase="Pending")
RUNS = replace(WAITS, phase="Running", node="node-1")
PREEMPTED = Pod(name="q", phase="Failed", exit_code=75)


def child(*pods: Pod, former: bool) -> Child:
    """The Cria's Job, made with the settings of now or with former ones."""
    made = world.child_of(OWNER, CRIA, pods=pods)
    return replace(made, template="of before") if former else made


def reasons(seen: Child) -> list[str]:
    observed = Observed(children=(seen,), store=StoreView(None, MANIFESTS))
    return [action.reason for action in deletions(Look.at(OWNER, observed, world.SETTINGS, world.NOW))]


@pytest.mark.parametrize("pods", [(), (WAITS,), (PREEMPTED, WAITS)])
def test_what_waits_is_made_again_with_the_settings_of_now(pods: tuple[Pod, ...]) -> None:
    assert reasons(child(*pods, former=True)) == ["its pod settings changed while it waited"]
    assert reasons(child(*pods, former=False)) == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_what_has_ended_stays_though_its_controller_has_not_said_so_yet(phase: str) -> None:
    """A second lies between; an upgrade of the operator may fall into it."""
    assert reasons(child(replace(RUNS, phase=phase), former=True)) == []


@pytest.mark.parametrize("pods", [(RUNS,), (RUNS, WAITS)])
def test_what_runs_goes_on_with_the_settings_it_has(pods: tuple[Pod, ...]) -> None:
    assert reasons(child(*pods, former=True)) == []


def gang(pod: Pod, distributed: str) -> list[str]:
    """What becomes of a collection one of whose pods the cluster ended."""
    owner = trenchcoat(layersPerCria=12, collect={"nodes": 2}, scheduling={"distributed": distributed})
    works = graph.build(owner.spec, MANIFESTS).works
    (collect,) = (work for work in works if work.stage is Stage.COLLECT)
    seen = world.child_of(owner, collect, pods=(pod, RUNS))
    without = {key: item for key, item in MANIFESTS.items() if key != collect.key}
    observed = Observed(children=(seen,), store=StoreView(None, without))
    return [action.reason for action in deletions(Look.at(owner, observed, world.SETTINGS, world.NOW))]


@pytest.mark.parametrize("distributed", Distributed)
def test_a_gang_is_begun_anew_for_a_pod_that_the_cluster_ended_and_judged_for_one_that_ended_itself(
    distributed: str,
) -> None:
    """Taken away, it would be tried for ever: its verdict is its controller's to bring about."""
    preempted = replace(WAITS, phase="Failed", disrupted=True)
    assert gang(preempted, distributed) == [
        "the cluster ended a pod of it; it starts again from its checkpoint"
    ]
    full = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
    assert gang(replace(preempted, reason="Evicted", message=full), distributed) == []


@pytest.mark.parametrize("strategy", ["Distributed", "Rolling"])
@pytest.mark.parametrize("trained", [True, False])
def test_hidden_states_that_no_cria_is_still_to_read_are_made_no_further(
    strategy: str, trained: bool
) -> None:
    owner = trenchcoat(layersPerCria=4, collect={"strategy": strategy})
    artifacts = world.artifacts_of(owner.spec)
    names = ["tokenize", "shard", "cria-00", "cria-01", *(["cria-02"] if trained else [])]
    manifests = {artifacts[name].key: world.manifest(artifacts[name]) for name in names}
    works = graph.build(owner.spec, manifests).works
    collect = next(work for work in works if work.stage is Stage.COLLECT)
    observed = Observed(
        children=(world.child_of(owner, collect, pods=(RUNS,)),), store=StoreView(None, manifests)
    )
    gone = deletions(Look.at(owner, observed, world.SETTINGS, world.NOW))
    assert [action.reason for action in gone] == (["no Cria is still to read what it makes"] * trained)


STUCK = replace(WAITS, unschedulable="0/1 nodes", unschedulable_since=world.NOW - timedelta(minutes=5))
LONG_STUCK = replace(STUCK, unschedulable_since=world.NOW - timedelta(minutes=20))


@pytest.mark.parametrize(
    ("changes", "taken_back"),
    [
        ({}, True),
        ({"expects_nodes": True}, False),
        ({"queue": "default"}, False),
        ({"expects_nodes": True, "pods": (replace(RUNS, name="r"), STUCK)}, False),
        # Half a gang holds GPUs: it waits no longer than its patience.
        ({"expects_nodes": True, "pods": (RUNS, LONG_STUCK)}, True),
        ({"expects_nodes": True, "pods": (LONG_STUCK,)}, False),
    ],
)
def test_a_job_whose_gpus_others_took_is_taken_back_unless_it_waits_for_nodes_or_for_kueue(
    changes: dict[str, Any], taken_back: bool
) -> None:
    seen = replace(child(STUCK, former=False), **changes)
    promised = Demand("nvidia.com/gpu", 1, 1, owner=f"ml/{seen.name}")
    capacity = Capacity(nodes=(Node("n", {"nvidia.com/gpu": 0}),), promised=(promised,))
    observed = Observed(children=(seen,), store=StoreView(None, MANIFESTS), capacity=capacity)
    gone = deletions(Look.at(OWNER, observed, world.SETTINGS, world.NOW))
    told = ["the GPUs that were free for it are taken; it waits for others"]
    assert [action.reason for action in gone] == (told if taken_back else [])
