"""Which tries count, and how long those that do not may follow one another."""

from dataclasses import replace
from datetime import timedelta

import pytest
from trenchcoat_api.artifacts import Progress
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State
from trenchcoat_operator.model import views
from trenchcoat_operator.model.observed import Child, ChildKind, ChildPhase, Observed, Peers, Pod, StoreView
from trenchcoat_operator.model.plan import Apply, Delete, Plan, RecordOutcome
from trenchcoat_operator.reconcile.assessment.counting import counted
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, Outcome
from trenchcoat_operator.reconcile.assessment.retries import MAX_REFUSALS
from trenchcoat_operator.reconcile.decide import reconcile
from trenchcoat_operator.reconcile.stopping.unwanted import KEPT
from trenchcoat_operator.works import graph

from tests.operator import world
from tests.operator.simulation import trenchcoat

OWNER = trenchcoat(layersPerCria=12, evaluate={"enabled": False})
MANIFESTS = world.manifests_before_crias(OWNER.spec)
(CRIA,) = (work for work in graph.build(OWNER.spec, MANIFESTS).works if work.stage is Stage.CRIA)
EVICTED, FREE, REFUSED = FailureClass.EVICTED, FailureClass.PREEMPTED, FailureClass.NODE_REFUSED


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([FREE] * 20, 0),
        ([REFUSED] * 20, 0),
        ([EVICTED], 0),
        ([EVICTED, EVICTED], 1),
        ([EVICTED, FREE, EVICTED, EVICTED], 2),
        ([FailureClass.FAILED, EVICTED], 1),
        ([FailureClass.FAILED, FREE, FailureClass.STORE_UNAVAILABLE], 2),
    ],
)
def test_what_counts(failures: list[FailureClass], expected: int) -> None:
    assert counted([Outcome(failure, "") for failure in failures]) == expected


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([None, None], 2),
        ([0.1, 0.1], 2),
        ([None, 0.1], 1),
        ([0.1, None, 0.2], 1),
        ([0.1, 0.2, None, 0.2], 3),
        ([0.3, 0.1, 0.2], 3),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 1),
    ],
)
def test_tries_before_a_later_checkpoint_are_forgiven(saved: list[float | None], expected: int) -> None:
    assert counted([Outcome(FailureClass.FAILED, "", share) for share in saved]) == expected


def test_how_far_a_failed_try_came_is_recorded_with_its_verdict() -> None:
    failed = world.child_of(OWNER, CRIA, phase=ChildPhase.FAILED, finished_at=world.NOW)
    report = Progress(
        stage=CRIA.stage,
        key=CRIA.key,
        phase="lora",
        step=5,
        steps=9,
        fraction=0.6,
        saved_fraction=1 / 3,
        updated_at=world.NOW,
    )
    seen = Observed(
        children=(failed,),
        store=StoreView(None, MANIFESTS, {CRIA.key: report}),
        peers=Peers(),
        capacity=world.Capacity(known=False),
    )
    plan = reconcile(OWNER, seen, world.SETTINGS, world.NOW)
    (record,) = (item for item in plan.actions if isinstance(item, RecordOutcome))
    assert record.saved == 0.333333
    read = views.child(
        ChildKind.JOB,
        {
            "metadata": {
                "name": "j",
                "labels": {"trenchcoat.dev/stage": "cria"},
                "annotations": {"trenchcoat.dev/saved": f"{record.saved:.6f}"},
            }
        },
        "",
        (),
    )
    assert read is not None
    assert read.saved == record.saved, "else it would be counted otherwise at the next look"


def tries(*failures: FailureClass, node: str = "n1") -> tuple[Child, ...]:
    """Failed tries of the one Cria, a minute apart, with their pods."""
    first = world.child_of(OWNER, CRIA)
    return tuple(
        replace(
            first,
            name=f"{first.name[:-1]}{number}",
            attempt=number,
            phase=ChildPhase.FAILED,
            outcome=failure.value,
            outcome_message="its node said no",
            finished_at=world.NOW + timedelta(minutes=number),
            pods=(Pod(name=f"p{number}", phase="Failed", node=node),),
        )
        for number, failure in enumerate(failures, 1)
    )


def decided(children: tuple[Child, ...], seconds: float = 3600) -> Plan:
    seen = Observed(
        children=children,
        store=StoreView(None, MANIFESTS),
        peers=Peers(),
        capacity=world.Capacity(known=False),
    )
    last = children[-1].finished_at or world.NOW
    return reconcile(OWNER, seen, world.SETTINGS, last + timedelta(seconds=seconds))


def made(plan: Plan) -> list[dict]:
    return [
        item.manifest for item in plan.actions if isinstance(item, Apply) and item.manifest["kind"] == "Job"
    ]


def test_a_node_that_refuses_for_long_is_a_persons() -> None:
    (job,) = made(decided(tries(*[REFUSED] * (MAX_REFUSALS - 1))))
    assert job["metadata"]["annotations"]["trenchcoat.dev/attempt"] == str(MAX_REFUSALS)
    plan = decided(tries(*[REFUSED] * MAX_REFUSALS))
    assert made(plan) == []
    (row,) = plan.status.crias
    assert row.state is State.FAILED
    assert f"refused {MAX_REFUSALS} times in a row, lastly: its node said no" in row.message
    # A try that was taken in between begins anew.
    assert len(made(decided(tries(*[REFUSED] * (MAX_REFUSALS - 1), FREE, REFUSED)))) == 1


def test_another_node_than_the_one_that_refused_is_preferred() -> None:
    def preferred(*children: Child) -> list[str]:
        (job,) = made(decided(children))
        affinity = job["spec"]["template"]["spec"]["affinity"]
        assert affinity["podAffinity"], "the preference for nodes where others run stays"
        terms = affinity.get("nodeAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", [])
        return [item["values"][0] for term in terms for item in term["preference"]["matchFields"]]

    assert preferred(*tries(REFUSED)) == ["n1"]
    assert preferred(*tries(REFUSED, FREE)) == []
    assert preferred(tries(REFUSED)[0], tries(REFUSED, REFUSED, node="n2")[1]) == ["n1", "n2"]
    (avoiding,) = made(decided(tries(REFUSED)))
    (plain,) = made(decided(tries(FREE)))
    hashes = {job["metadata"]["annotations"]["trenchcoat.dev/pod-template"] for job in (avoiding, plain)}
    assert len(hashes) == 1, "else a Job that waits would be made again and again"


def test_evicted_again_and_again_it_fails_with_the_remedy() -> None:
    limit = OWNER.spec.scheduling.max_attempts
    assert len(made(decided(tries(*[EVICTED] * limit)))) == 1
    (row,) = decided(tries(*[EVICTED] * (limit + 1))).status.crias
    assert row.state is State.FAILED


def test_of_many_tries_that_the_cluster_ended_the_latest_stay() -> None:
    plan = decided(tries(FailureClass.FAILED, *[FREE] * (KEPT + 2)))
    gone = [item.name for item in plan.actions if isinstance(item, Delete)]
    first = world.child_of(OWNER, CRIA).name[:-1]
    assert gone == [f"{first}2", f"{first}3"], "those that count stay"
    (row,) = plan.status.crias
    assert row.attempt == KEPT + 4
