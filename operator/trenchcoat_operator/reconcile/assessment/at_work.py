"""How a try gets on whose Job is not over: queued, without a node, starting, running."""

from dataclasses import replace
from datetime import timedelta

from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.model.observed import Child, ChildKind, Problem
from trenchcoat_operator.reconcile.assessment import beside, placing, podless
from trenchcoat_operator.reconcile.assessment.containers import held_up, pod_fault
from trenchcoat_operator.reconcile.assessment.deadlines import deadline_of
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look

NO_POD_GRACE = timedelta(seconds=20)
NO_WORKLOAD_GRACE = timedelta(seconds=20)

_INTEGRATIONS = {ChildKind.JOB: "batch/job", ChildKind.PYTORCH_JOB: "kubeflow.org/pytorchjob"}


def at_work(base: Assessment, child: Child, look: Look) -> Assessment:
    """Where a work stands by its latest try.

    Args:
        base: What is known of the work so far.
        child: The try.
        look: The look.
    """
    if child.stopped:
        return replace(
            base,
            state=State.WAITING,
            waiting=WaitingReason.CLEANUP,
            message=f"{child.kind} {child.name} is being stopped: {child.outcome_message}",
        )
    leaving = [pod for pod in child.pods if pod.gone_by is not None]
    taken_back = child.suspended or (child.queued is not None and child.queued.evicted)
    if taken_back and (leaving or not child.running):
        return _queued(base, child, look)
    refused = podless.of_child(base, child, look)
    if refused is not None:
        return refused
    without_node = placing.of_pods(base, child, look)
    if without_node is not None:
        return without_node
    if beside.outstaying(child) and not leaving:
        return replace(base, state=State.RUNNING, message=beside.told(child), look_at=beside.ends_at(child))
    if child.running and not leaving:
        return replace(base, state=State.RUNNING, look_at=deadline_of(base.work, look.trenchcoat, child))
    if leaving:
        pod = min(leaving, key=lambda pod: pod.name)
        message = f"the cluster ends pod {pod.name} on {pod.node}; it goes on elsewhere from its checkpoint"
        return replace(base, state=State.STARTING, message=message)
    fault = pod_fault(child)
    if fault is not None:
        told = replace(base, state=State.STARTING, message=fault.problem.message)
        if fault.stalls_at is not None and look.now < fault.stalls_at:
            return replace(told, look_at=fault.stalls_at)
        return replace(told, problem=fault.problem)
    waits = held_up(child)
    if waits is not None:
        known = look.now >= waits.tell_at
        message = waits.message if known else "its pods start"
        return replace(base, state=State.STARTING, message=message, look_at=None if known else waits.tell_at)
    return _between_pods(base, child, look)


def _between_pods(base: Assessment, child: Child, look: Look) -> Assessment:
    """A controller takes a moment to make pods, and to make something of their end."""
    ended = [pod.finished_at for pod in child.pods if pod.finished_at is not None]
    since = max(ended, default=child.created_at) if len(ended) == len(child.pods) else None
    if since is not None and look.now - since > NO_POD_GRACE and child.kind is ChildKind.JOB and ended:
        # Of a queued Job, or of one made by an earlier version: the next pod is its controller's.
        message = (
            "its pod has ended, and the Job controller makes another after its back-off: 10 s to 10 minutes, "
            "by how often that happened"
        )
        return replace(base, state=State.STARTING, message=message)
    if since is not None and look.now - since > NO_POD_GRACE:
        return replace(
            base,
            state=State.STARTING,
            message=f"no pod was made for it: `kubectl describe {child.kind.lower()} {child.name}` says why",
        )
    look_at = None if since is None else since + NO_POD_GRACE
    if ended and since is not None:
        return replace(base, state=State.RUNNING, message="its pods have ended", look_at=look_at)
    return replace(base, state=State.STARTING, message="its pods start", look_at=look_at)


def _queued(base: Assessment, child: Child, look: Look) -> Assessment:
    """A child that is suspended: it waits for Kueue."""
    waits = replace(base, state=State.WAITING, waiting=WaitingReason.QUEUE)
    queue = look.trenchcoat.spec.scheduling.queue_name or child.queue
    if not queue:
        return replace(waits, message=f"{child.kind} {child.name} is suspended, though not by this operator")
    if not look.observed.kueue:
        message = "the cluster has no Kueue (v0.15 or newer): install it, or remove spec.scheduling.queueName"
        return replace(waits, message=message, problem=Problem("KueueMissing", message))
    if child.queued is not None and child.queued.mend:
        message = f"Kueue: {child.queued.message}; mend it, or name another in spec.scheduling.queueName"
        return replace(waits, message=message, problem=Problem("QueueInadmissible", message))
    if child.queued is not None:
        message = f"Kueue: {child.queued.message}"
        if not look.trenchcoat.spec.scheduling.queue_name:
            message += f" (in LocalQueue {queue}, into which the cluster put it: the spec names none)"
        return replace(waits, message=message)
    if child.created_at is not None and look.now - child.created_at > NO_WORKLOAD_GRACE:
        return replace(
            waits,
            message=f"Kueue has made no Workload for {child.kind} {child.name}: does it run, and do its "
            f"integrations include {_INTEGRATIONS[child.kind]}?",
        )
    look_at = None if child.created_at is None else child.created_at + NO_WORKLOAD_GRACE
    return replace(waits, message=not_admitted(queue), look_at=look_at)


def not_admitted(queue: str) -> str:
    """What is said of a child that Kueue was asked for and has not spoken of."""
    return f"Kueue has not admitted it to LocalQueue {queue} yet"
