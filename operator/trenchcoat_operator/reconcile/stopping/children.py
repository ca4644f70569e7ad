"""Which children are taken away or stopped, and why."""

from datetime import datetime

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.gpus import sharing
from trenchcoat_operator.model.observed import Child, ChildKind, Observed
from trenchcoat_operator.model.plan import Action, Delete, ForcePod, RecordOutcome, Stop
from trenchcoat_operator.reconcile.assessment import failures
from trenchcoat_operator.reconcile.assessment.assess import (
    UNSCHEDULABLE_GRACE,
    deadline_exceeded,
    deadline_of,
)
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.works.graph import Graph, Work


def deletions(
    desired: Trenchcoat, graph: Graph, observed: Observed, settings: Settings, now: datetime
) -> list[Delete]:
    """Children and ConfigMaps that are not wanted, or not so."""
    wanted = {work.key: work for work in graph.works}
    homeless = _homeless(desired, observed, now)
    result: list[Delete] = []
    going = set()
    for child in sorted(observed.children, key=lambda child: child.name):
        if not child.owned or child.terminating:
            continue
        work = wanted.get(child.key)
        reason = _reason(desired, child, work, observed, settings)
        if not reason and child.name in homeless:
            reason = "the GPUs that were free for it are taken; it waits for others"
        if reason:
            going.add(child.name)
            result.append(Delete(child.kind, child.name, reason))
    needed = {child.spec_name for child in observed.children if child.active and child.name not in going}
    needed.add(specs.spec_name(desired))
    for name in sorted(observed.config_maps - needed):
        result.append(Delete("ConfigMap", name, "no Job reads it any more"))
    return result


def _reason(
    desired: Trenchcoat, child: Child, work: Work | None, observed: Observed, settings: Settings
) -> str:
    known = observed.store.problem is None  # or else what is wanted is not known
    if known and work is None:
        return "the spec no longer asks for its artifact"
    if child.active and desired.spec.suspend:
        return "spec.suspend is true"
    if (
        known
        and work is not None
        and child.active
        and child.waiting
        and child.template != jobs.template_hash(desired, work, settings.pods)
    ):
        return "its pod settings changed while it waited"
    if child.kind is ChildKind.PYTORCH_JOB and child.active and any(pod.disrupted for pod in child.pods):
        # Its other pods cannot go on without the one that is gone; their ends would count as failures.
        return "the cluster ended a pod of it; it starts again from its checkpoint"
    return ""


def stuck(desired: Trenchcoat, observed: Observed, now: datetime) -> list[Child]:
    """Children with a pod that has waited for a node for long, where this operator counts GPUs itself."""
    if desired.spec.scheduling.queue_name:
        return []
    return [
        child
        for child in observed.children
        if child.owned and child.active and not child.terminating and _stuck_for_long(child, now)
    ]


def _stuck_for_long(child: Child, now: datetime) -> bool:
    return any(
        pod.waits_for_node
        and pod.unschedulable_since is not None
        and now - pod.unschedulable_since >= UNSCHEDULABLE_GRACE
        for pod in child.pods
    )


def _homeless(desired: Trenchcoat, observed: Observed, now: datetime) -> set[str]:
    """Stuck children whose GPUs somebody else has taken.

    A gang of which some pods run and others find no place goes as a whole: it would hold GPUs that another
    half-placed gang waits for.
    """
    if observed.capacity is None or not observed.capacity.known:
        return set()
    waiting = stuck(desired, observed, now)
    if not waiting:
        return set()
    unplaced = sharing.unplaced(observed.capacity)
    namespace = desired.metadata.namespace
    return {child.name for child in waiting if f"{namespace}/{child.name}" in unplaced}


def past_deadline(desired: Trenchcoat, graph: Graph, observed: Observed, now: datetime) -> list[Action]:
    """Children that ran for longer than they may: the verdict is recorded first, so that it is never lost."""
    wanted = {work.key: work for work in graph.works}
    result: list[Action] = []
    for child in sorted(observed.children, key=lambda child: child.name):
        work = wanted.get(child.key)
        if not child.owned or not child.active or child.terminating or child.stopped or work is None:
            continue
        deadline = deadline_of(work, desired, child)
        if deadline is None or now < deadline:
            continue
        outcome = deadline_exceeded(work, desired)
        result.append(RecordOutcome(child.kind, child.name, outcome.failure.value, outcome.message))
        result.append(Stop(child.kind, child.name, outcome.message))
    return result


def lost_pods(observed: Observed, now: datetime) -> list[ForcePod]:
    """Pods that should have ended long ago: their nodes do not answer."""
    lost = [
        ForcePod(pod.name, pod.node)
        for child in observed.children
        for pod in child.pods
        if failures.is_lost(pod, now)
    ]
    return sorted(lost, key=lambda action: action.name)
