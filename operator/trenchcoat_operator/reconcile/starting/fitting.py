"""Whether the stages that are still to run can fit into the GPUs that they could get."""

from collections.abc import Callable

from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.planning.fit import explain, misfits
from trenchcoat_api.planning.plan import Plan
from trenchcoat_api.planning.rates import labelled_memory
from trenchcoat_api.stage_size import stage_size
from trenchcoat_api.stages import Stage

from trenchcoat_operator.gpus import contenders
from trenchcoat_operator.gpus.placement import admits
from trenchcoat_operator.model.capacity import Capacity
from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.planned import planned

REASON = "DoesNotFit"
WAITS = "does not start, for the run cannot fit by its plan: the condition Accepted tells what and the remedy"


def judge(look: Look) -> Problem | None:
    """What cannot fit, with the remedy; None where all does, nobody knows, or spec.plan.force is set."""
    spec = look.trenchcoat.spec
    tokenize = look.observed.store.told.get(Artifacts(spec).tokenize.key)
    if tokenize is None or spec.plan.force:
        return None
    known = planned(spec, tokenize.facts)
    if known.fault:
        return Problem("InvalidInput", known.fault)
    if known.outline is None or known.plan is None:
        return None
    wanted = list(dict.fromkeys(work.stage for work in look.graph.works if work.key in look.needed))
    found = misfits(known.outline, _memory(look, known.plan), wanted)
    if not found:
        return None
    return Problem(REASON, f"{explain(found)}; or set spec.plan.force to true to go on all the same")


def _memory(look: Look, plan: Plan) -> Callable[[Stage], int | None]:
    """Bytes of the largest GPU that a stage could get: by the spec, or else by the nodes' labels."""
    wishes = look.trenchcoat.spec.plan
    if wishes.gpu_memory is not None or wishes.gpu is not None:
        return lambda stage: plan.gpu_memory_bytes
    capacity = look.observed.capacity
    if capacity is None or not capacity.known or look.pending_jobs:
        return lambda stage: None  # nobody looked, or an autoscaler may add other nodes than there are
    return lambda stage: _of_nodes(look, capacity, stage)


def _of_nodes(look: Look, capacity: Capacity, stage: Stage) -> int | None:
    """The largest of the nodes that may ever run the stage's pods; None where one of them does not tell."""
    spec = look.trenchcoat.spec
    gpus = stage_size(spec, stage).gpus_per_node
    if not gpus or graph.overrides(spec, stage).resource_claim_template_name:
        return None
    resource = spec.scheduling.gpu_resource
    placement = contenders.placement(look.trenchcoat, stage, gpus)
    sizes = [
        labelled_memory(node.labels, resource)
        for node in capacity.nodes
        if node.allocatable.get(resource, 0) >= gpus and admits(node, placement, ever=True)
    ]
    told = [size for size in sizes if size is not None]
    return max(told) if told and len(told) == len(sizes) else None
