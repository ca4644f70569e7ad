"""Pods as clusters write them: with sidecars of both kinds, and init containers that fail."""

from typing import Any

import pytest
from trenchcoat_operator.model import views

Body = dict[str, Any]
BEGUN, ENDED = "2026-01-01T11:50:00Z", "2026-01-01T11:59:00Z"


def running() -> Body:
    return {"running": {"startedAt": BEGUN}}


def ended(code: int, reason: str = "", message: str = "") -> Body:
    reason = reason or ("Error" if code else "Completed")
    end = {"exitCode": code, "reason": reason, "startedAt": BEGUN, "finishedAt": ENDED}
    return {"terminated": {**end, "message": message} if message else end}


def waiting(reason: str, message: str = "") -> Body:
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


def body(
    phase: str, *, kind: str = "Job", init: Body | None = None, native: tuple[str, ...] = (), **own: Body
) -> Body:
    """A pod with the given states of its containers; `native` names init containers that are restarted."""
    init = init or {}
    return {
        "metadata": {
            "name": "p",
            "creationTimestamp": BEGUN,
            "ownerReferences": [{"kind": kind, "name": "j", "uid": "u", "controller": True}],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": name.replace("_", "-")} for name in own],
            "initContainers": [
                {"name": name, "restartPolicy": "Always"} if name in native else {"name": name}
                for name in init
            ],
        },
        "status": {
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": BEGUN}],
            "initContainerStatuses": [{"name": name, "state": state} for name, state in init.items()],
            "containerStatuses": [
                {"name": name.replace("_", "-"), "state": state} for name, state in own.items()
            ],
        },
    }


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("code", "reason"), [(64, "Error"), (69, "Error"), (137, "OOMKilled"), (0, "Completed")]
)
@pytest.mark.parametrize("other", [ended(143), ended(137, "OOMKilled"), ended(1), ended(0)])
def test_the_exit_code_is_the_stages_own(code: int, reason: str, other: Body, first: bool) -> None:
    """The kubelet lists containers by name, or as in the spec: where it stands says nothing."""
    own = ended(code, reason, "what it said")
    states = {"stage": own, "a_shipper": other} if first else {"a_shipper": other, "stage": own}
    found = views.pod(body("Failed", **states))
    assert (found.exit_code, found.exit_reason, found.exit_message) == (code, reason, "what it said")
    assert found.exit_of == ""
    assert found.beside == ()


def test_a_native_sidecar_that_is_told_to_end_is_not_the_stage() -> None:
    mesh = {"istio-proxy": ended(143)}
    found = views.pod(body("Failed", init=mesh, native=("istio-proxy",), stage=ended(64, message="bad")))
    assert (found.exit_code, found.exit_message) == (64, "bad")


def test_the_container_of_a_gang_has_the_name_that_its_operator_insists_on() -> None:
    states = {"stage": ended(1), "pytorch": ended(65)}
    assert views.pod(body("Failed", kind="PyTorchJob", **states)).exit_code == 65
    assert views.pod(body("Failed", kind="Job", **states)).exit_code == 1


def test_a_sidecar_that_goes_on() -> None:
    found = views.pod(body("Running", stage=ended(0), log_shipper=running()))
    assert (found.phase, found.exit_code, found.beside) == ("Running", 0, ("log-shipper",))
    assert found.ended_at is not None
    assert found.finished_at is None, "the pod holds its GPU"
    assert found.outstays_its_stage
    assert not views.pod(body("Running", stage=running(), log_shipper=running())).outstays_its_stage


def test_a_sidecar_that_cannot_start_does_not_keep_the_stage_from_running() -> None:
    """The kubelet calls such a pod Pending for as long."""
    pulling = waiting("ImagePullBackOff", "Back-off pulling image")
    assert views.pod(body("Pending", stage=running(), log_shipper=pulling)).phase == "Running"
    assert views.pod(body("Pending", stage=ended(0), log_shipper=pulling)).outstays_its_stage
    held = views.pod(body("Pending", stage=waiting("PodInitializing"), log_shipper=pulling))
    assert (held.phase, held.waiting_container) == ("Pending", "log-shipper")


def test_an_init_container_that_fails_is_named() -> None:
    found = views.pod(
        body(
            "Failed",
            init={"vault-agent-init": ended(64, message="no role")},
            stage=waiting("PodInitializing"),
        )
    )
    assert (found.exit_of, found.exit_code, found.exit_message) == ("vault-agent-init", 64, "no role")


def test_a_native_sidecar_that_crashes_says_how_it_ended() -> None:
    pod = body(
        "Pending",
        init={"istio-proxy": waiting("CrashLoopBackOff", "back-off 40s restarting failed container")},
        native=("istio-proxy",),
        stage=waiting("PodInitializing"),
    )
    pod["status"]["initContainerStatuses"][0]["lastState"] = ended(255, message="no certificate")
    found = views.pod(pod)
    assert (found.waiting_reason, found.waiting_container) == ("CrashLoopBackOff", "istio-proxy")
    assert found.waiting_message == (
        "back-off 40s restarting failed container; it ended with exit code 255: no certificate"
    )


def test_an_init_container_that_runs_is_waited_for_and_a_native_sidecar_is_not() -> None:
    init = {"istio-proxy": running(), "clone": running()}
    found = views.pod(body("Pending", init=init, native=("istio-proxy",), stage=waiting("PodInitializing")))
    assert found.initializing == "clone"
    only = {"istio-proxy": running()}
    held = views.pod(body("Pending", init=only, native=("istio-proxy",), stage=waiting("PodInitializing")))
    assert held.initializing == ""


GPU, NIC = "nvidia.com/gpu", "rdma/hca"


def container(gpus: int, *, native: bool = False, nics: int = 0) -> Body:
    requests = {name: str(count) for name, count in ((GPU, gpus), (NIC, nics), ("cpu", 1)) if count}
    return {"resources": {"requests": requests}, **({"restartPolicy": "Always"} if native else {})}


@pytest.mark.parametrize(
    ("containers", "init", "expected"),
    [
        ([container(1)], [], {GPU: 1}),
        ([container(1), container(1)], [], {GPU: 2}),
        ([container(1)], [container(1)], {GPU: 1}),
        ([container(1)], [container(3)], {GPU: 3}),
        ([container(1)], [container(1, native=True)], {GPU: 2}),
        # An init container runs beside the native sidecars before it, and beside none after it.
        ([container(1)], [container(1, native=True), container(2)], {GPU: 3}),
        ([container(1)], [container(2), container(1, native=True)], {GPU: 2}),
        ([container(1)], [container(1, native=True), container(1, native=True)], {GPU: 3}),
        ([container(0, nics=1)], [container(1, native=True)], {GPU: 1, NIC: 1}),
        ([container(0)], [], {}),
    ],
)
def test_extended_resources_are_added_up_as_the_scheduler_does(
    containers: list[Body], init: list[Body], expected: dict[str, int]
) -> None:
    assert views.extended_requests({"containers": containers, "initContainers": init}) == expected
