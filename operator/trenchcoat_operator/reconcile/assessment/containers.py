"""Containers that do not start, and what a person must mend so that they do."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from trenchcoat_api import texts

from trenchcoat_operator.model.observed import Child, Pod, Problem
from trenchcoat_operator.reconcile.assessment.failures import short
from trenchcoat_operator.works import graph

_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
}
_CONTAINER_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_CRASHES = "CrashLoopBackOff"

STARTING_GRACE = timedelta(seconds=60)
"""A pod that has a node may take so long to start its containers before anybody is told."""
KUBELET_GRACE = timedelta(seconds=20)
"""What a kubelet could not do at once it tries again after 10 to 15 s: what that mends is no stall."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What keeps a pod from starting."""

    problem: Problem
    stalls_at: datetime | None
    """When nobody but a person will mend it; None where that is not known, and so at once."""


@dataclass(frozen=True, slots=True)
class HeldUp:
    """What a pod that has a node waits for."""

    message: str
    tell_at: datetime
    """When it has waited for so long that it is told."""


def pod_fault(child: Child) -> Fault | None:
    """What a child's pods tell of why they cannot start; None where they tell nothing."""
    for pod in sorted(child.pods, key=lambda pod: pod.name):
        problem = _of_pod(child, pod)
        if problem is not None:
            return Fault(problem, pod.scheduled_at + KUBELET_GRACE if pod.scheduled_at else None)
    return None


def _of_pod(child: Child, pod: Pod) -> Problem | None:
    said = f"{pod.waiting_reason}: {pod.waiting_message or 'no message'}"
    if pod.waiting_reason in _IMAGE_REASONS:
        field = f"spec.pods.{graph.pods_of(child.stage)}.image"
        remedy = f"set {field}, or the operator's trainerImage, to an image that the node can pull"
        if pod.waiting_container:
            remedy = "it is not of this operator's making: mend what adds it to pods"
        return Problem("ImagePullFailed", short(f"{_subject(pod)}: {said}; {remedy}"))
    if pod.waiting_reason in _CONTAINER_REASONS:
        return Problem("ContainerConfigError", short(f"{_subject(pod)}: {said}"))
    if pod.waiting_reason == _CRASHES:
        remedy = f"`kubectl logs {pod.name} -c {pod.waiting_container}` says why"
        return Problem("ContainerCrashes", short(f"{_subject(pod)}: {said}; {remedy}"))
    return None


def held_up(child: Child) -> HeldUp | None:
    """What the first of a child's pods that have a node and do not run waits for; None if there is none."""
    for pod in sorted(child.pods, key=lambda pod: pod.name):
        if pod.phase != "Pending" or not pod.node:
            continue
        if pod.initializing and pod.initializing_since is not None:
            return _since(
                pod.initializing_since,
                f"pod {pod.name} on {pod.node} waits for its init container {pod.initializing}",
                f"`kubectl logs {pod.name} -c {pod.initializing}`",
            )
        if pod.scheduled_at is not None:
            return _since(
                pod.scheduled_at,
                f"node {pod.node} starts no container of pod {pod.name}: it pulls an image, or finds a "
                "volume or a network missing",
                f"`kubectl describe pod {pod.name}`",
            )
    return None


def _since(moment: datetime, what: str, command: str) -> HeldUp:
    return HeldUp(f"since {texts.timestamp(moment)} {what}; {command} says why", moment + STARTING_GRACE)


def _subject(pod: Pod) -> str:
    """The pod, and its container where that is not the stage's own."""
    return (
        f"pod {pod.name}, container {pod.waiting_container}" if pod.waiting_container else f"pod {pod.name}"
    )
