"""Events of what is seen in parts: pods and Jobs are followed apart, so either may be heard of first."""

from dataclasses import replace
from datetime import timedelta
from itertools import combinations

import pytest
from trenchcoat_api.stages import Stage
from trenchcoat_operator.model.observed import Child, Observed, Pod, Queued, StoreView
from trenchcoat_operator.model.plan import Event
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.works import graph

from tests.operator import world
from tests.operator.simulation import trenchcoat

OWNER = trenchcoat(layersPerCria=12, scheduling={"queueName": "gpus"})
MANIFESTS = world.manifests_before_crias(OWNER.spec)
PREEMPTED = Queued("Preempted to accommodate a workload", evicted=True)
POD = Pod(name="p", phase="Running", node="node-1", started_at=world.NOW, extended={"nvidia.com/gpu": 1})
LEAVING = replace(POD, gone_by=world.NOW + timedelta(minutes=2))
ENDED = replace(POD, phase="Failed", exit_code=75, finished_at=world.NOW)
NEXT = Pod(name="q", phase="Pending")
AGAIN = replace(NEXT, phase="Running", node="node-2", started_at=world.NOW + timedelta(minutes=1))


def cria(*pods: Pod, suspended: bool = False, queued: Queued | None = None) -> Child:
    (work,) = (work for work in graph.build(OWNER.spec, MANIFESTS).works if work.stage is Stage.CRIA)
    queued = PREEMPTED if suspended else queued
    return world.child_of(OWNER, work, suspended=suspended, queued=queued, pods=pods)


def story(*children: Child) -> list[Event]:
    """The events of the Cria's row, its Job being seen as this, then that, some seconds apart."""
    tenant, told = OWNER, {}
    for number, child in enumerate(children):
        observed = Observed(children=(child,), store=StoreView(None, MANIFESTS))
        plan = reconcile(tenant, observed, world.SETTINGS, world.NOW + timedelta(seconds=5 * number))
        for event in plan.events:
            if event.message.startswith("Cria 0 "):
                told.setdefault(event.identity, event)  # an event told twice is made once
        tenant = tenant.model_copy(update={"status": plan.status})
    return list(told.values())


def reasons(events: list[Event]) -> list[str]:
    return [event.reason for event in events]


def ways() -> list[list[tuple[bool, int]]]:
    """All that may be seen between a Job that runs and one that was taken back: neither goes backwards."""
    between = [(suspended, pods) for suspended in (False, True) for pods in range(3)][1:-1]
    some = [list(way) for n in range(len(between) + 1) for way in combinations(between, n)]
    return [way for way in some if [pods for _, pods in way] == sorted(pods for _, pods in way)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("way", ways())
def test_that_kueue_takes_back_what_ran_is_told_once_whatever_is_heard_of_first(
    way: list[tuple[bool, int]], known: bool
) -> None:
    """Its Workload says so before its pods are ended, but may be read late."""
    pods: list[tuple[Pod, ...]] = [(POD,), (LEAVING,), ()]
    queued = PREEMPTED if known else None
    seen = [cria(*pods[number], suspended=suspended, queued=queued) for suspended, number in way]
    told = reasons(story(cria(POD), *seen, cria(suspended=True)))
    if not known and "Interrupted" in told:
        told.remove("Interrupted")
    assert told == ["Running", "Requeued"]


def test_what_kueue_takes_back_before_it_ran_has_no_checkpoint_to_go_on_from() -> None:
    told = [event.message for event in story(cria(), cria(suspended=True))]
    assert told == ["Cria 0 (layers 0-11) gives way and starts later: Kueue: " + PREEMPTED.message]


def test_what_kueue_has_not_let_run_yet_gives_no_way() -> None:
    told = story(cria(suspended=True), cria(suspended=True))
    assert reasons(told) == ["Waits"]
    assert told[0].message.startswith("Cria 0 (layers 0-11) waits for Kueue since ")


def test_each_turn_of_one_try_is_told_though_no_step_was_done_between() -> None:
    taken, runs = cria(suspended=True), cria(POD)
    told = reasons(story(runs, taken, runs, taken, runs))
    assert told == ["Running", "Requeued", "Running", "Requeued", "Running"]


@pytest.mark.parametrize("first", [cria(LEAVING), cria(), cria(ENDED, NEXT)])
def test_a_pod_that_the_cluster_ends_is_an_interruption(first: Child) -> None:
    told = story(cria(POD), first, cria(NEXT), cria(AGAIN))
    assert reasons(told) == ["Running", "Interrupted", "Running"]
    assert told[0].message == "Cria 0 (layers 0-11) runs on node-1, try 1"
    assert told[2].message == "Cria 0 (layers 0-11) runs again on node-2, try 1"


def test_the_end_of_a_pod_is_none_before_its_controller_has_seen_it() -> None:
    assert reasons(story(cria(POD), cria(ENDED), cria(ENDED))) == ["Running"]
