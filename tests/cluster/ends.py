"""How pods end that are told to, as the API server tells of it until they are gone."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from demo.environment import Environment
from kubernetes.client import CoreV1Api
from kubernetes.watch import Watch

from tests.cluster.objects import connect

KILLED = 137
"""Exit code of what did not end by itself within its grace period."""
PATIENCE = 300


@dataclass(frozen=True)
class End:
    """The end of a container."""

    pod: str
    exit_code: int
    seconds: float
    """From when its pod was told to end, by the times that API server and kubelet wrote down."""


def ends(environment: Environment, tell: Callable[[], object], **which: str) -> list[End]:
    """Have pods be told to end, and follow them until they are gone.

    Args:
        environment: The cluster.
        tell: Does it, and does not wait for them.
        which: A selector of these pods, as the Kubernetes client names it; what comes later does not count.

    Raises:
        AssertionError: one is still there after minutes.
    """
    core = CoreV1Api(connect(environment))
    before = core.list_namespaced_pod(environment.namespace, **which)
    last = {pod.metadata.uid: pod for pod in before.items}
    assert last, f"no pod is there of {which}"
    left, since, deadline = set(last), before.metadata.resource_version, time.monotonic() + PATIENCE
    told: dict[str, datetime] = {}
    tell()
    following = Watch()
    while left and time.monotonic() < deadline:
        for event in following.stream(
            core.list_namespaced_pod,
            environment.namespace,
            resource_version=since,
            timeout_seconds=PATIENCE,
            **which,
        ):
            pod = event["object"]
            if pod.metadata.uid in left:
                last[pod.metadata.uid] = pod
                # The kubelet's own request, when all is over, writes another time over that of the first.
                if pod.metadata.deletion_timestamp is not None:
                    told.setdefault(pod.metadata.uid, told_at(pod))
                if event["type"] == "DELETED":
                    left.discard(pod.metadata.uid)
            if not left:
                following.stop()
    assert not left, f"told to end, and there after {PATIENCE} s: {[last[uid].metadata.name for uid in left]}"
    found = [end for uid, when in told.items() for end in _of_containers(last[uid], when)]
    print("\n".join(map(str, found)))
    return found


def told_at(pod: Any) -> datetime:
    """When a pod was told to end that has its grace period before it."""
    grace = timedelta(seconds=pod.metadata.deletion_grace_period_seconds)
    told: datetime = pod.metadata.deletion_timestamp - grace
    return told


def _of_containers(pod: Any, told: datetime) -> list[End]:
    """Of those that had started."""
    statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    states = [status.state.terminated for status in statuses if status.state.terminated is not None]
    return [
        End(pod.metadata.name, state.exit_code, (state.finished_at - told).total_seconds())
        for state in states
        if state.started_at is not None
    ]
