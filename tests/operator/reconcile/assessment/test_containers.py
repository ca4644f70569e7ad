"""Pods that cannot start, told from those that merely start."""

import pytest
from trenchcoat_api.stages import Stage
from trenchcoat_operator.model.observed import Child, ChildKind, Pod
from trenchcoat_operator.reconcile.assessment.containers import pod_problem


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
    problem = pod_problem(child(pod))
    assert problem is not None
    assert problem.reason == expected
    assert "why" in problem.message


def test_pods_that_merely_start() -> None:
    pod = Pod(name="p", phase="Pending", waiting_reason="")
    assert pod_problem(child(pod)) is None
