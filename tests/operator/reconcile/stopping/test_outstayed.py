"""Jobs whose stage has ended while a sidecar goes on: the GPU is given back, the verdict is the stage's."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State
from trenchcoat_operator.model.observed import Child, ChildPhase, Observed, Peers, Pod, Problem, StoreView
from trenchcoat_operator.model.plan import Action, Delete, Plan, RecordOutcome, Stop
from trenchcoat_operator.reconcile.assessment.beside import SIDECAR_GRACE
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.works import graph

from tests.operator import world
from tests.operator.simulation import trenchcoat

OWNER = trenchcoat(layersPerCria=12)
MANIFESTS = world.manifests_before_crias(OWNER.spec)
WORKS = graph.build(OWNER.spec, MANIFESTS).works
(CRIA,) = (work for work in WORKS if work.stage is Stage.CRIA)
RUNS = Pod(name="p", phase="Running", node="n1", started_at=world.NOW)


def ended(code: int, **more: Any) -> Pod:
    return replace(RUNS, exit_code=code, ended_at=world.NOW, beside=("istio-proxy",), **more)


def plan(*pods: Pod, complete: bool, seconds: float) -> Plan:
    """What is decided so long after the stage's end; the cluster may know of no end of the Job."""
    child = world.child_of(OWNER, CRIA, pods=pods)
    manifests = {**MANIFESTS, CRIA.key: world.manifest(CRIA.artifact)} if complete else MANIFESTS
    seen = Observed(children=(child,), store=StoreView(None, manifests), peers=Peers())
    return reconcile(OWNER, seen, world.SETTINGS, world.NOW + timedelta(seconds=seconds))


def of_child(decided: Plan) -> list[Action]:
    return [item for item in decided.actions if isinstance(item, Delete | RecordOutcome | Stop)]


LATE = SIDECAR_GRACE.total_seconds()


def test_a_finished_stage_leaves_its_gpu_though_a_sidecar_runs() -> None:
    (action,) = of_child(plan(ended(0), complete=True, seconds=LATE))
    assert isinstance(action, Delete)
    assert "istio-proxy of pod p still runs" in action.reason
    decided = plan(ended(0), complete=True, seconds=LATE)
    (row,) = decided.status.crias
    assert (row.state, row.attempts[0].outcome) == (State.SUCCEEDED, "Succeeded")


def test_sidecars_have_a_moment_to_end_by_themselves() -> None:
    early = plan(ended(0), complete=True, seconds=LATE - 1)
    assert of_child(early) == []
    assert early.look_again is not None
    assert early.look_again <= world.SETTINGS.poll_seconds


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (("proxy",), "its stage has ended, but proxy of pod p still runs and keeps what the pod holds"),
        (("a", "b"), "its stage has ended, but a and b of pod p still run and keep what the pod holds"),
        ((), "its stage has ended, and its node still has to clear pod p away"),
    ],
)
def test_what_is_waited_for_is_told(beside: tuple[str, ...], told: str) -> None:
    (row,) = plan(replace(ended(0), beside=beside), complete=False, seconds=1).status.crias
    assert (row.state, row.message) == (State.RUNNING, told)


@pytest.mark.parametrize("complete", [True, False])
def test_a_node_that_is_slow_to_clear_a_pod_away_has_its_time(complete: bool) -> None:
    """Every container has ended: to delete the Job would give nothing back sooner, and lose how it ended."""
    assert of_child(plan(replace(ended(0), beside=()), complete=complete, seconds=10 * LATE)) == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_that_are_over_need_no_end(phase: str) -> None:
    over = replace(ended(0), beside=(), phase=phase)
    assert of_child(plan(over, complete=True, seconds=LATE)) == []


@pytest.mark.parametrize(
    ("code", "outcome"),
    [(1, "Failed"), (64, "InvalidInput"), (66, "OutOfMemory"), (69, "StoreUnavailable"), (0, "NoManifest")],
)
def test_a_stage_that_failed_beside_a_sidecar_is_judged_and_stopped(code: int, outcome: str) -> None:
    """Its Job would never say so: the pod runs."""
    record, stop = of_child(plan(ended(code), complete=False, seconds=LATE))
    assert isinstance(record, RecordOutcome)
    assert record.outcome == outcome
    assert isinstance(stop, Stop)


def test_what_runs_is_left_alone() -> None:
    assert of_child(plan(replace(RUNS, beside=("istio-proxy",)), complete=False, seconds=LATE)) == []


def test_a_pod_that_was_told_to_end_is_left_to_its_grace_period() -> None:
    going = ended(75, gone_by=world.NOW + timedelta(seconds=120))
    assert of_child(plan(going, complete=False, seconds=LATE)) == []


def test_the_store_is_asked_before_a_stage_is_said_to_have_left_nothing() -> None:
    child = world.child_of(OWNER, CRIA, pods=(ended(0),))
    broken = StoreView(Problem("StoreUnavailable", "it does not answer"), MANIFESTS)
    seen = Observed(children=(child,), store=broken, peers=Peers())
    assert of_child(reconcile(OWNER, seen, world.SETTINGS, world.NOW + timedelta(seconds=LATE))) == []


@pytest.mark.parametrize("complete", [True, False])
def test_a_rank_at_work_is_waited_for_unless_another_failed(complete: bool) -> None:
    (collect,) = (work for work in WORKS if work.stage is Stage.COLLECT)
    without = {key: item for key, item in MANIFESTS.items() if key != collect.key}
    worker = replace(RUNS, name="w")

    def decided(master: Pod) -> list[Action]:
        child = world.child_of(OWNER, collect, pods=(master, worker))
        seen = Observed(
            children=(child,), store=StoreView(None, MANIFESTS if complete else without), peers=Peers()
        )
        return of_child(reconcile(OWNER, seen, world.SETTINGS, world.NOW + timedelta(seconds=LATE)))

    assert decided(ended(0)) == []
    assert len(decided(ended(1))) == (1 if complete else 2)


AGAIN = State.STARTING
"""Its back-off is over: another try is made."""


def judged(phase: ChildPhase, *codes: int, complete: bool) -> tuple[State, str]:
    """State and latest failure of a collection whose ranks ended in one look."""
    (collect,) = (work for work in WORKS if work.stage is Stage.COLLECT)
    pods = tuple(
        Pod(name=f"p{rank}", phase="Failed" if code else "Succeeded", exit_code=code, ended_at=world.NOW)
        for rank, code in enumerate(codes)
    )
    child: Child = world.child_of(OWNER, collect, pods=pods, phase=phase, finished_at=world.NOW)
    manifests = {key: item for key, item in MANIFESTS.items() if complete or key != collect.key}
    seen = Observed(children=(child,), store=StoreView(None, manifests), peers=Peers())
    told = reconcile(OWNER, seen, world.SETTINGS, world.NOW + timedelta(seconds=60)).status
    row = next(row for row in told.stages if row.name == "collect")
    return row.state, row.last_failure.partition(":")[0]


@pytest.mark.parametrize("phase", [ChildPhase.SUCCEEDED, ChildPhase.FAILED])
def test_of_a_gang_that_ends_in_one_look_the_manifest_decides(phase: ChildPhase) -> None:
    """Master 0 and Worker 1: its controller calls it Succeeded or Failed by which it counts first."""
    assert judged(phase, 0, 1, complete=True)[0] is State.SUCCEEDED
    assert judged(phase, 0, 1, complete=False) == (AGAIN, "Failed")
    assert judged(phase, 0, 64, complete=False) == (State.FAILED, "InvalidInput")


def test_a_job_that_fails_for_a_sidecar_alone_has_not_failed() -> None:
    assert judged(ChildPhase.FAILED, 0, 0, complete=True) == (State.SUCCEEDED, "")
    assert judged(ChildPhase.FAILED, 0, 0, complete=False) == (AGAIN, "NoManifest")
