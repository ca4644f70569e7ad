"""Pods that cannot start, told from those that merely start."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from trenchcoat_api.stages import Stage
from trenchcoat_operator.model.observed import Child, ChildKind, Pod
from trenchcoat_operator.reconcile.assessment.containers import (
    KUBELET_GRACE,
    STARTING_GRACE,
    held_up,
    pod_fault,
)


def child(*pods: Pod) -> Child:
    return Child(
        kind=ChildKind.JOB,
        name="tiny-cria-00-01234567-1",
        stage=Stage.CRIA,
        cria=0,
        key="0123456789abcdef",
        attempt=1,
        spec_name="tiny-spec-01234567",
        template="01234567",
        owned=True,
        pods=pods,
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("ErrImagePull", "ImagePullFailed"),
        ("ImagePullBackOff", "ImagePullFailed"),
        ("InvalidImageName", "ImagePullFailed"),
        ("ErrImageNeverPull", "ImagePullFailed"),
        ("CreateContainerConfigError", "ContainerConfigError"),
    ],
)
def test_pods_that_cannot_start(reason: str, expected: str) -> None:
    pod = Pod(name="p", phase="Pending", waiting_reason=reason, waiting_message="why")
    fault = pod_fault(child(pod))
    assert fault is not None
    assert fault.problem.reason == expected
    assert "why" in fault.problem.message
    assert fault.stalls_at is None


def test_what_the_kubelet_tries_again_stalls_after_a_while() -> None:
    """A registry that does not answer once, or a Secret that it could not read in time, is no stall."""
    fault = pod_fault(child(replace(PENDING, waiting_reason="ErrImagePull")))
    assert fault is not None
    assert fault.stalls_at == SINCE + KUBELET_GRACE


def test_pods_that_merely_start() -> None:
    pod = Pod(name="p", phase="Pending", waiting_reason="")
    assert pod_fault(child(pod)) is None


def test_a_container_of_others_that_cannot_start_is_named_with_whose_it_is() -> None:
    pod = Pod(
        name="p",
        phase="Pending",
        waiting_reason="ErrImagePull",
        waiting_message="why",
        waiting_container="mesh",
    )
    fault = pod_fault(child(pod))
    assert fault is not None
    assert fault.problem.message.startswith("pod p, container mesh: ErrImagePull: why")
    assert "spec.pods" not in fault.problem.message
    crashes = pod_fault(child(replace(pod, waiting_reason="CrashLoopBackOff")))
    assert crashes is not None
    assert crashes.problem.reason == "ContainerCrashes"
    assert "kubectl logs p -c mesh" in crashes.problem.message


SINCE = datetime(2026, 1, 1, 12, tzinfo=UTC)
PENDING = Pod(name="p", phase="Pending", node="n1", scheduled_at=SINCE)


def test_what_a_pod_with_a_node_waits_for_is_told_after_a_while() -> None:
    """A mount or a network that is missing shows as ContainerCreating for ever."""
    waits = held_up(child(PENDING))
    assert waits is not None
    assert waits.tell_at == SINCE + STARTING_GRACE
    assert "node n1 starts no container of pod p" in waits.message
    assert "kubectl describe pod p" in waits.message
    init = held_up(child(replace(PENDING, initializing="clone", initializing_since=SINCE)))
    assert init is not None
    assert "waits for its init container clone" in init.message
    assert "kubectl logs p -c clone" in init.message


@pytest.mark.parametrize("pod", [replace(PENDING, phase="Running"), replace(PENDING, node="")])
def test_pods_that_run_or_have_no_node_are_not_held_up(pod: Pod) -> None:
    assert held_up(child(pod)) is None
