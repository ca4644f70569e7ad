"""Pods that are on no node yet: what is said of them, and how long they may wait."""

from dataclasses import replace
from datetime import datetime, timedelta

from trenchcoat_api import texts
from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.gpus.places import UNSCHEDULABLE_GRACE
from trenchcoat_operator.model.observed import Child, Pod, Problem
from trenchcoat_operator.reconcile.assessment.failures import short
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.works import graph


def of_pods(base: Assessment, child: Child, look: Look) -> Assessment | None:
    """Where a work stands whose pods are not all on nodes; None when they are.

    Args:
        base: What is known of the work so far.
        child: Its try.
        look: The look.
    """
    gated = next((pod for pod in child.pods if pod.gates), None)
    if gated is not None:
        return _gated(base, child, gated, look)
    stuck = next((pod for pod in child.pods if pod.waits_for_node), None)
    if stuck is not None:
        return _without_node(base, child, stuck, look)
    return None


def may_wait_until(child: Child, look: Look) -> datetime | None:
    """Until when a child's pods may wait for nodes to be added; None where nobody is known to add any."""
    waiting = [pod for pod in child.pods if pod.waits_for_node]
    expects = (
        child.expects_nodes
        or look.pending_jobs > 0
        or not look.settings.count_gpus
        or any(pod.autoscaler for pod in waiting)
    )
    if not expects:
        return None
    since = min((_since(child, pod, look) for pod in waiting), default=child.created_at or look.now)
    return since + timedelta(seconds=look.settings.pending_patience_seconds)


def _since(child: Child, pod: Pod, look: Look) -> datetime:
    return pod.unschedulable_since or pod.created_at or child.created_at or look.now


def _gated(base: Assessment, child: Child, pod: Pod, look: Look) -> Assessment:
    gates = ", ".join(pod.gates)
    message = f"pod {pod.name} is not to be scheduled yet: its scheduling gates {gates} are to be lifted"
    patience = timedelta(seconds=look.settings.pending_patience_seconds)
    until = (pod.created_at or child.created_at or look.now) + patience
    waits = replace(base, state=State.WAITING, waiting=WaitingReason.SCHEDULER, message=message)
    if look.now < until:
        return replace(waits, look_at=until)
    problem = Problem("SchedulingGated", f"{message}, by whoever set them (kueue.x-k8s.io are Kueue's)")
    return replace(waits, message=problem.message, problem=problem)


def _without_node(base: Assessment, child: Child, pod: Pod, look: Look) -> Assessment:
    message = f"pod {pod.name} waits for a node: {pod.unschedulable}"
    if pod.autoscaler:
        message += f"; {pod.autoscaler}"
    until = may_wait_until(child, look)
    if until is not None and look.now < until:
        waits = replace(base, state=State.WAITING, waiting=WaitingReason.SCHEDULER)
        return replace(waits, message=short(message), look_at=until)
    since = _since(child, pod, look)
    if until is None and child.room_by is not None and child.room_by > since:
        since = child.room_by
        message += f"; pods that end there should be gone by {texts.timestamp(since)}"
    if until is None and look.now - since < UNSCHEDULABLE_GRACE:
        return replace(base, state=State.STARTING, message=message, look_at=since + UNSCHEDULABLE_GRACE)
    field = f"spec.pods.{graph.pods_of(base.work.stage)}"
    remedy = f"add nodes, free some, or change {field}.resources, nodeSelector, tolerations or affinity"
    problem = Problem("Unschedulable", short(f"{message}; {remedy}"))
    if until is None:
        return replace(base, state=State.STARTING, message=problem.message, problem=problem)
    waits = replace(base, state=State.WAITING, waiting=WaitingReason.SCHEDULER)
    return replace(waits, message=problem.message, problem=problem)
