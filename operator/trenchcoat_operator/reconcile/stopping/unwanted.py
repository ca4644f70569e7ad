"""Children, and what stands beside them, that are not wanted, or not so: what is wanted is made anew."""

from trenchcoat_api.stages import Stage

from trenchcoat_operator.children import jobs, rendezvous, specs
from trenchcoat_operator.gpus import places
from trenchcoat_operator.gpus.places import UNSCHEDULABLE_GRACE
from trenchcoat_operator.model.observed import Child, ChildKind, ChildPhase
from trenchcoat_operator.model.plan import Delete
from trenchcoat_operator.reconcile.assessment import placing, podless
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, evicted_itself
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.works.graph import Work

KEPT = 8
"""Tries that the cluster ended, and that are kept: the back-off grows no further with them."""


def deletions(look: Look) -> list[Delete]:
    """What is deleted, and why."""
    wanted = {work.key: work for work in look.graph.works}
    homeless, bygone = _homeless(look), _bygone(look)
    result: list[Delete] = []
    going = set()
    for child in look.children:
        if child.terminating:
            continue
        reason = _reason(look, child, wanted.get(child.key))
        if not reason and child.name in homeless:
            reason = "the GPUs that were free for it are taken; it waits for others"
        if not reason and child.name in bygone:
            reason = f"the cluster has ended more than {KEPT} tries since"
        if reason:
            going.add(child.name)
            result.append(Delete(child.kind, child.name, reason))
    needed = {child.spec_name for child in look.observed.children if child.active and child.name not in going}
    needed.add(specs.spec_name(look.trenchcoat))
    for name in sorted(look.observed.config_maps - needed):
        result.append(Delete("ConfigMap", name, "no Job reads it any more"))
    if look.store_is_known:  # else nobody knows which gangs are to come
        for name in sorted(look.observed.services - _services(look, going)):
            result.append(Delete("Service", name, "no gang meets by it any more"))
    return result


def _services(look: Look, going: set[str]) -> set[str]:
    """Services by which gangs meet, or will."""
    to_come = [work for work in look.graph.works if work.key in look.needed]
    result = set(jobs.services(look.trenchcoat, to_come))
    if any(
        child.active and child.gang and child.kind is ChildKind.JOB and child.name not in going
        for child in look.children
    ):  # of a spec that asked for other gangs, it may be
        result.add(rendezvous.service_name(look.trenchcoat))
    return result


def _reason(look: Look, child: Child, work: Work | None) -> str:
    """Why a child is not wanted; empty when it is."""
    if look.store_is_known and work is None:
        return "the spec no longer asks for its artifact"
    if look.store_is_known and work is not None and child.active and _is_read_by_none(work, look):
        return "no Cria is still to read what it makes"
    if child.active and look.trenchcoat.spec.suspend:
        return "spec.suspend is true"
    if (
        look.store_is_known
        and work is not None
        and child.active
        and child.waiting
        and child.template != jobs.template_hash(look.trenchcoat, work, look.settings.pods)
    ):
        return "its pod settings changed while it waited"
    if work is not None and podless.is_taken_back(child, work, look):
        return f"no pod is made for it: {child.refusal}"
    broken = any(pod.disrupted and not evicted_itself(pod) for pod in child.pods)
    if child.gang and child.active and broken:
        # Its other pods cannot go on without the one that is gone; their ends would count as failures.
        return "the cluster ended a pod of it; it starts again from its checkpoint"
    return ""


def _is_read_by_none(work: Work, look: Look) -> bool:
    """Whether it makes hidden states of which all readers are complete, by the other strategy perhaps."""
    is_there = work.key in look.observed.store.manifests
    return work.stage is Stage.COLLECT and not is_there and work.key not in look.needed


def _bygone(look: Look) -> set[str]:
    """Tries that the cluster ended long ago: on nodes that come and go there would be hundreds."""
    ended: dict[str, list[Child]] = {}
    for child in look.children:
        if child.phase is ChildPhase.FAILED and child.outcome == FailureClass.PREEMPTED.value:
            ended.setdefault(child.key, []).append(child)
    return {
        child.name
        for tries in ended.values()
        for child in sorted(tries, key=lambda child: child.attempt)[:-KEPT]
    }


def stuck(look: Look) -> list[Child]:
    """Children with a pod that has waited for a node for long, where this operator counts GPUs itself."""
    if look.trenchcoat.spec.scheduling.queue_name:
        return []
    return [
        child
        for child in look.children
        if child.active
        and not child.terminating
        and _stuck_for_long(child, look)
        and not _expects_nodes(child, look)
        and not child.queue  # Kueue's, though the spec names no queue
    ]


def _expects_nodes(child: Child, look: Look) -> bool:
    """Whether a child's pods may wait on; half a gang holds GPUs, and that only for a while."""
    until = placing.may_wait_until(child, look) if child.expects_nodes else None
    return until is not None and (look.now < until or not any(pod.node for pod in child.pods))


def _stuck_for_long(child: Child, look: Look) -> bool:
    return any(
        pod.waits_for_node
        and pod.unschedulable_since is not None
        and look.now - pod.unschedulable_since >= UNSCHEDULABLE_GRACE
        for pod in child.pods
    )


def _homeless(look: Look) -> set[str]:
    """Stuck children whose GPUs somebody else has taken.

    A gang of which some pods run and others find no place goes as a whole: it would hold GPUs that another
    half-placed gang waits for.
    """
    if look.observed.capacity is None or not look.observed.capacity.known:
        return set()
    waiting = stuck(look)
    if not waiting:
        return set()
    unplaced = places.unplaced(look.observed.capacity, look.trenchcoat.spec.scheduling.gpu_resource)
    namespace = look.trenchcoat.metadata.namespace
    return {child.name for child in waiting if f"{namespace}/{child.name}" in unplaced}
