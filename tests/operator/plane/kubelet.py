"""Kubelets that are not there: a test writes what they would say of pods, on a real API server."""

import time
from typing import Any

from kubernetes.client.exceptions import ApiException

from tests.control_plane import Body, ControlPlane


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def run(plane: ControlPlane, pod: Any) -> None:
    """Let all containers of a pod run."""
    write(
        plane, pod, "Running", {item.name: {"running": {"startedAt": now()}} for item in pod.spec.containers}
    )


def end(plane: ControlPlane, pod: Any, codes: dict[str, int], phase: str, *, at: str = "") -> None:
    """Let containers of a pod end with these exit codes, now or at a time; the others run on."""
    states: Body = {}
    for item in pod.spec.containers:
        states[item.name] = {"running": {"startedAt": now()}}
        if item.name in codes:
            code = codes[item.name]
            reason = "Error" if code else "Completed"
            end = {"exitCode": code, "reason": reason, "startedAt": now(), "finishedAt": at or now()}
            states[item.name] = {"terminated": end}
    write(plane, pod, phase, states)


def refuse(plane: ControlPlane, pod: Any, reason: str, message: str) -> None:
    """Take a pod that was bound to the node not at all."""
    patch(plane, pod, {"phase": "Failed", "reason": reason, "message": message, "startTime": now()})


def write(plane: ControlPlane, pod: Any, phase: str, states: Body) -> None:
    statuses = [
        {
            "name": item.name,
            "image": item.image,
            "imageID": "",
            "ready": "running" in states[item.name],
            "restartCount": 0,
            "state": states[item.name],
        }
        for item in pod.spec.containers
    ]
    patch(plane, pod, {"phase": phase, "containerStatuses": statuses})


def patch(plane: ControlPlane, pod: Any, status: Body) -> None:
    plane.core.patch_namespaced_pod_status(pod.metadata.name, pod.metadata.namespace, {"status": status})


def remove(plane: ControlPlane, pod: Any) -> None:
    """Let a pod that was told to end be gone."""
    try:
        plane.core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0)
    except ApiException as error:
        if error.status != 404:
            raise
