"""Pods that end otherwise than with their stage: what the real Job controller and scheduler make of them."""

import time
from typing import Any

import pytest
from kubernetes import client
from trenchcoat_operator.reconcile.assessment import beside

from tests.control_plane import Body, ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane import kubelet
from tests.operator.plane.runs import Run, crias, namespace, operator
from tests.waiting import until

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"


def made(plane: ControlPlane, server: MinioServer, name: str, **spec: Any) -> Run:
    """A Trenchcoat with one Cria that is to be trained, on nodes of its own."""
    pods = {"cria": {"nodeSelector": {"for": name}}}
    return Run(plane, server, namespace(plane, name), name, **{"layersPerCria": 12, "pods": pods, **spec})


def bound(run: Run) -> list[Any]:
    return [pod for pod in run.pods() if pod.spec.node_name and pod.status.phase in ("Pending", "Running")]


def tries(status: Body) -> list[str]:
    first, *_ = status.get("crias", [{}])
    return [item.get("outcome", "") for item in first.get("attempts", [])]


def job_of(pod: Any) -> str:
    name: str = pod.metadata.labels["batch.kubernetes.io/job-name"]
    return name


@pytest.fixture
def own_nodes(plane: ControlPlane):
    names: list[str] = []

    def make(name: str, labels: Body) -> str:
        node(plane, name, {GPU: "1"}, labels=labels)
        names.append(name)
        return name

    yield make
    for name in names:
        plane.core.delete_node(name)


def test_an_evicted_pod_is_followed_by_another_before_its_job_would_make_one(
    plane: ControlPlane, server: MinioServer, own_nodes: Any
) -> None:
    own_nodes("n-evicted", {"for": "evicted"})
    run = made(plane, server, "evicted", scheduling={"maxAttempts": 1})
    run.begin()
    with operator(plane) as loop:
        loop.until(run, lambda _: bound(run), 120, "the Cria has a node")
        (pod,) = bound(run)
        kubelet.run(plane, pod)
        loop.until(run, lambda status: crias(status) == [("Running", "")], 120, "it runs")
        metadata = {"name": pod.metadata.name, "namespace": run.namespace}
        plane.core.create_namespaced_pod_eviction(
            pod.metadata.name, run.namespace, client.V1Eviction(metadata=metadata)
        )
        kubelet.end(plane, pod, {"stage": 75}, "Failed")
        kubelet.remove(plane, pod)
        began = time.monotonic()
        loop.until(run, lambda _: bound(run), 120, "another pod has the node")
        print(f"from the end of an evicted pod to the next on the node: {time.monotonic() - began:.1f} s")
        (other,) = bound(run)
        assert job_of(other) != job_of(pod), "its Job made one itself, 10 s later, and the GPU was idle"
        status = loop.until(run, lambda status: len(tries(status)) == 2 and status, 120, "it is told")
        assert tries(status) == ["Preempted", ""]


def test_tries_that_come_further_each_time_are_more_than_may_fail(
    plane: ControlPlane, server: MinioServer, own_nodes: Any
) -> None:
    """What share a failed try had saved stands on its Job, for the next one overwrites its progress."""
    own_nodes("n-further", {"for": "further"})
    run = made(plane, server, "further", scheduling={"maxAttempts": 2})
    run.begin()
    saved = (None, 0.25, 0.5, 0.5)
    with operator(plane) as loop:
        for number, share in enumerate(saved, 1):
            loop.until(run, lambda _: bound(run), 120, f"try {number} has a node")
            (pod,) = bound(run)
            kubelet.run(plane, pod)
            step = {"phase": "lora", "step": number, "steps": 9, "fraction": number / 9}
            run.report("cria-00", **step, saved_fraction=share)
            kubelet.end(plane, pod, {"stage": 1}, "Failed")
            expected = ["Failed"] * number
            loop.until(
                run,
                lambda status, expected=expected: tries(status) == expected,
                120,
                f"try {number} is judged",
            )
        loop.until(run, lambda status: crias(status)[:1] == [("Failed", "")], 120, "it came no further twice")
    told = {job.metadata.name: job.metadata.annotations.get("trenchcoat.dev/saved") for job in run.jobs()}
    assert [told[name] for name in sorted(told)] == [None, "0.250000", "0.500000", "0.500000"]


@pytest.mark.parametrize(("name", "ends_first"), [("paused", False), ("raced", True)])
def test_a_job_that_somebody_suspends_costs_no_try_whether_it_ends_as_failed_or_not(
    plane: ControlPlane, server: MinioServer, own_nodes: Any, name: str, ends_first: bool
) -> None:
    """The Job controller may count the end of a pod before it has seen the suspension."""
    own_nodes(f"n-{name}", {"for": name})
    run = made(plane, server, name, scheduling={"maxAttempts": 1})
    run.begin()
    batch = client.BatchV1Api(plane.api)
    with operator(plane) as loop:
        loop.until(run, lambda _: bound(run), 120, "the Cria has a node")
        (pod,) = bound(run)
        kubelet.run(plane, pod)
        loop.until(run, lambda status: crias(status) == [("Running", "")], 120, "it runs")
        (job,) = (job.metadata.name for job in run.jobs())

        def told_to_end() -> bool:
            found = plane.core.read_namespaced_pod(pod.metadata.name, run.namespace)
            return found.metadata.deletion_timestamp is not None

        if ends_first:
            kubelet.end(plane, pod, {"stage": 143}, "Failed")
        batch.patch_namespaced_job(job, run.namespace, {"spec": {"suspend": True}})
        if not ends_first:
            until(told_to_end, 120, "its pod is told to end")
            kubelet.end(plane, pod, {"stage": 143}, "Failed")
            kubelet.remove(plane, pod)

        def settled() -> str | None:
            ends = batch.read_namespaced_job(job, run.namespace).status.conditions or []
            found = [item.type for item in ends if item.status == "True"]
            gone = not bound(run)
            return next((kind for kind in ("Failed", "Suspended") if kind in found and gone), None)

        how = until(settled, 120, "its Job says what became of it")
        print(f"a suspended Job whose pod ended with 143 is {how}")
        if how == "Suspended":
            batch.patch_namespaced_job(job, run.namespace, {"spec": {"suspend": False}})
        loop.until(run, lambda _: bound(run), 120, "it goes on")
        status = loop.until(
            run, lambda status: crias(status) == [("Starting", "")] and status, 120, "it is told"
        )
        assert set(tries(status)) <= {"", "Preempted"}


def test_a_pod_that_a_node_refuses_goes_to_another_free_of_charge(
    plane: ControlPlane, server: MinioServer, own_nodes: Any
) -> None:
    """To the scheduler the node looks free: without a preference it would have it again."""
    broken = own_nodes("n-broken", {"for": "refused", "first": "yes"})
    own_nodes("n-whole", {"for": "refused"})
    first = {"matchExpressions": [{"key": "first", "operator": "Exists"}]}
    affinity = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": first}]
        }
    }
    pods = {"cria": {"nodeSelector": {"for": "refused"}, "affinity": affinity}}
    run = made(plane, server, "refused", pods=pods, scheduling={"maxAttempts": 1})
    run.begin()
    with operator(plane) as loop:
        loop.until(run, lambda _: bound(run), 120, "the Cria has a node")
        (pod,) = bound(run)
        assert pod.spec.node_name == broken
        kubelet.refuse(plane, pod, "UnexpectedAdmissionError", "Allocate failed: no healthy devices present")
        loop.until(run, lambda _: bound(run), 120, "it has another")
        assert [pod.spec.node_name for pod in bound(run)] == ["n-whole"]
        status = loop.until(run, lambda status: len(tries(status)) == 2 and status, 120, "it is told")
        assert tries(status) == ["NodeRefused", ""]
        assert "Allocate failed: no healthy devices present" in status["crias"][0]["lastFailure"]


def ship_logs(plane: ControlPlane, where: str) -> None:
    """Have every pod of a namespace get a log shipper, by the API server's own admission."""
    shipper = 'Object.spec.containers{name: "a-shipper", image: "shipper:1"}'
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    expression = f"Object{{spec: Object.spec{{containers: [{shipper}]}}}}"
    mutation = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}
    spec = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": rules},
        "mutations": [mutation],
    }
    chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": where}}}
    api = client.AdmissionregistrationV1beta1Api(plane.api)
    api.create_mutating_admission_policy({"metadata": {"name": where}, "spec": spec})
    binding = {"policyName": where, "matchResources": chosen}
    api.create_mutating_admission_policy_binding({"metadata": {"name": where}, "spec": binding})

    def in_force() -> bool:
        pod = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
        return len(plane.core.create_namespaced_pod(where, pod, dry_run="All").spec.containers) == 2

    until(in_force, 120, "the policy is in force")


@pytest.mark.parametrize(
    ("name", "code", "told"), [("shipped", 0, "Succeeded"), ("misled", 64, "InvalidInput")]
)
def test_a_stage_that_ended_is_told_from_the_sidecar_that_goes_on(
    plane: ControlPlane, server: MinioServer, own_nodes: Any, name: str, code: int, told: str
) -> None:
    """Its pod runs for as long as the shipper does, so that no controller would ever end its Job."""
    own_nodes(f"n-{name}", {"for": name})
    run = made(plane, server, name)
    ship_logs(plane, run.namespace)
    run.begin()
    with operator(plane) as loop:
        loop.until(run, lambda _: bound(run), 120, "the Cria has a node")
        (pod,) = bound(run)
        assert {item.name for item in pod.spec.containers} == {"stage", "a-shipper"}
        kubelet.run(plane, pod)
        loop.until(run, lambda status: crias(status) == [("Running", "")], 120, "it runs")
        began = time.monotonic()
        kubelet.end(plane, pod, {"stage": code}, "Running")
        if not code:
            run.complete("cria-00")

        def told_to_end(_: Body) -> bool:
            found = plane.core.read_namespaced_pod(pod.metadata.name, run.namespace)
            return found.metadata.deletion_timestamp is not None

        loop.until(run, told_to_end, 120, "its pod is told to end")
        assert time.monotonic() - began >= beside.SIDECAR_GRACE.total_seconds() - 1
        kubelet.end(plane, pod, {"stage": code, "a-shipper": 143}, "Failed")
        kubelet.remove(plane, pod)
        status = loop.until(run, lambda status: tries(status) == [told] and status, 120, "the try is judged")
        assert status["crias"][0]["state"] == ("Succeeded" if not code else "Failed")

        def left() -> list[str]:
            jobs = [job for job in run.jobs() if job.metadata.labels["trenchcoat.dev/stage"] == "cria"]
            return [
                item.type for job in jobs for item in job.status.conditions or [] if item.status == "True"
            ]

        until(lambda: "Failed" in left() if code else not left(), 120, "its Job has ended")
        until(lambda: not run.pods(), 120, "its pod is gone")
