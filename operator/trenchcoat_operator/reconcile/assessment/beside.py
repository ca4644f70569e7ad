"""Containers that go on beside a stage that has ended: sidecars keep its pod, and with it the GPU."""

from datetime import datetime, timedelta

from trenchcoat_operator.model.observed import Child, Pod

SIDECAR_GRACE = timedelta(seconds=20)
"""Sidecars that watch the stage have this long to end by themselves."""


def outstaying(child: Child) -> tuple[Pod, ...]:
    """Pods of a child whose stage is over and that go on all the same; none while any of it has work to do.

    A rank that failed ends the work of all.
    """
    left = tuple(pod for pod in child.pods if pod.outstays_its_stage)
    failed = any(pod.exit_code for pod in left)
    return left if failed or all(pod.exit_code is not None or pod.over for pod in child.pods) else ()


def ends_at(child: Child) -> datetime | None:
    """When such pods are ended, from which on the GPUs that they hold are given back.

    None where all of their containers have ended by themselves: nothing is left to end, the node is slow.
    """
    ends = [pod.ended_at for pod in outstaying(child) if pod.ended_at is not None and pod.beside]
    return max(ends) + SIDECAR_GRACE if ends else None


def told(child: Child) -> str:
    """Which containers are waited for.

    A kubelet tells that a container has ended some seconds before it says so of the pod.
    """
    left = outstaying(child)
    pod = next((pod for pod in left if pod.beside), left[0])
    if not pod.beside:
        return f"its stage has ended, and its node still has to clear pod {pod.name} away"
    names = " and ".join(pod.beside)
    verb = "runs and keeps" if len(pod.beside) == 1 else "run and keep"
    return f"its stage has ended, but {names} of pod {pod.name} still {verb} what the pod holds"
