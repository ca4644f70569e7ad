"""What becomes of a Job whose pod settings are no longer those of the spec."""

from dataclasses import replace

import pytest
from trenchcoat_api.stages import Stage
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
