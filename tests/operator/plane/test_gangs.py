"""Gangs without a training operator: Indexed Jobs and their Service, as the real controllers make of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_kubectl.commands import find
from trenchcoat_kubectl.kubectl import Kubectl

from tests.components import built_or_skip
from tests.control_plane import Body, ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane import kubelet
from tests.operator.plane.runs import Run, condition, namespace, operator, row
from tests.waiting import until

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"
RANKS = 2
BEFORE = ("tokenize", "shard")


@pytest.fixture
def gang(plane: ControlPlane, server: MinioServer, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A Trenchcoat whose gangs are to run on two nodes of its own."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:20].strip("-")
    nodes = [f"{name}-{number}" for number in range(RANKS)]
    for each in nodes:
        node(plane, each, {GPU: "1"}, labels={"for": name})
    yield Run(
        plane,
        server,
        namespace(plane, name),
        name,
        layersPerCria=12,
        collect={"nodes": RANKS, "gpusPerNode": 1},
        stitch={"nodes": RANKS, "gpusPerNode": 1},
        evaluate={"nodes": RANKS, "gpusPerNode": 1},
        scheduling={"distributed": "IndexedJob", "maxAttempts": 2},
        pods={stage: {"nodeSelector": {"for": name}} for stage in ("collect", "stitch", "evaluate")},
    )
    for each in nodes:
        plane.core.delete_node(each)


def ranks(run: Run, stage: str = "collect") -> list[Any]:
    """The pods of a stage that are bound and have not ended, by their index."""
    index = "batch.kubernetes.io/job-completion-index"
    found = [
        pod
        for pod in run.pods()
        if pod.metadata.labels[constants.LABEL_STAGE] == stage
        and pod.spec.node_name
        and pod.status.phase in ("Pending", "Running")
        and pod.metadata.deletion_timestamp is None
    ]
    return sorted(found, key=lambda pod: int(pod.metadata.annotations[index]))


def begun(loop: Any, run: Run, stage: str = "collect") -> list[Any]:
    """All ranks of a stage, once they run."""
    loop.until(run, lambda _: len(ranks(run, stage)) == RANKS, 120, "both ranks have nodes")
    found = ranks(run, stage)
    for pod in found:
        kubelet.run(run.plane, pod)
    loop.until(run, lambda status: row(status, stage).get("state") == "Running", 120, "it runs")
    return found


def collect(status: Body) -> Body:
    return row(status, "collect")


def services(run: Run) -> list[Any]:
    found = run.plane.core.list_namespaced_service(run.namespace).items
    return [item for item in found if item.metadata.name.startswith(f"{run.name}-ranks-")]


def told_to_end(run: Run, pod: Any) -> bool:
    found = run.plane.core.read_namespaced_pod(pod.metadata.name, run.namespace)
    return found.metadata.deletion_timestamp is not None


def leave(run: Run, pod: Any, code: int, *, at: str = "") -> None:
    """Let a pod that was told to end do so, now or at a time."""
    kubelet.end(run.plane, pod, {"stage": code}, "Failed", at=at)
    kubelet.remove(run.plane, pod)


def outcomes(status: Body) -> list[str]:
    return [item.get("outcome", "") for item in collect(status).get("attempts", [])]


def test_ranks_are_found_by_name_and_all_of_them_end_it(plane: ControlPlane, gang: Run) -> None:
    gang.begin(done=BEFORE)
    with operator(plane) as loop:
        first, second = begun(loop, gang)
        (service,) = services(gang)
        (job,) = (job.metadata.name for job in gang.jobs())
        variables = {item.name: item.value for item in first.spec.containers[0].env}
        assert variables["MASTER_ADDR"] == f"{job}-0.{service.metadata.name}"
        for number, pod in enumerate((first, second)):
            assert (pod.spec.hostname, pod.spec.subdomain) == (f"{job}-{number}", service.metadata.name)
            addresses = {"podIP": f"10.9.0.{number + 1}", "podIPs": [{"ip": f"10.9.0.{number + 1}"}]}
            kubelet.patch(plane, pod, addresses)
        slices = client.DiscoveryV1Api(plane.api)
        chosen = f"kubernetes.io/service-name={service.metadata.name}"

        def names() -> dict[str, str]:
            found = slices.list_namespaced_endpoint_slice(gang.namespace, label_selector=chosen).items
            ends = [end for item in found for end in item.endpoints or []]
            return {end.hostname: end.addresses[0] for end in ends}

        # What the cluster's DNS answers from; none of the pods is ready.
        expected = {f"{job}-0": "10.9.0.1", f"{job}-1": "10.9.0.2"}
        until(lambda: names() == expected, 120, "addresses are told")

        gang.complete("collect")
        kubelet.end(plane, first, {"stage": 0}, "Succeeded")
        kubelet.end(plane, second, {"stage": 0}, "Succeeded")
        status = loop.until(
            gang, lambda status: outcomes(status) == ["Succeeded"] and status, 120, "its end is told"
        )
        assert collect(status)["state"] == "Succeeded"
        assert services(gang), "the stitch is to come"
    plane.delete(gang.name, gang.namespace)
    # The garbage collector looks for kinds that are new to it every 30 s.
    until(lambda: not services(gang), 120, "the Service goes with its Trenchcoat")


def test_its_service_goes_when_no_gang_is_to_come(plane: ControlPlane, gang: Run) -> None:
    """The evaluation's, which is the last; the artifact is seen to be complete a moment before its Job is."""
    gang.begin(done=[name for name in gang.artifacts if name != "evaluate"])
    with operator(plane) as loop:
        pods = begun(loop, gang, "evaluate")
        gang.complete("evaluate")
        loop.until(
            gang,
            lambda status: condition(status, "Succeeded").get("status") == "True",
            120,
            "all is complete",
        )
        assert services(gang), "its pods have not ended"
        for pod in pods:
            kubelet.end(plane, pod, {"stage": 0}, "Succeeded")
        loop.until(gang, lambda _: not services(gang), 120, "the Service is gone")
    plane.delete(gang.name, gang.namespace)


def test_of_one_that_fails_the_others_end_and_the_try_counts(
    plane: ControlPlane, gang: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang.begin(done=BEFORE)
    with operator(plane) as loop:
        for number in (1, 2):
            first, second = begun(loop, gang)
            failed_at = kubelet.now()
            kubelet.end(plane, second, {"stage": 1}, "Failed", at=failed_at)
            until(lambda pod=first: told_to_end(gang, pod), 120, "the other is told to end")
            message = loop.until(
                gang,
                lambda status: "are being stopped" in (said := collect(status).get("message", "")) and said,
                120,
                "it is told",
            )
            assert "which failed" in message
            leave(gang, first, 75, at=failed_at)  # times are whole seconds: nobody knows the first
            loop.until(
                gang,
                lambda status, number=number: outcomes(status)[:number] == ["Failed"] * number,
                120,
                f"try {number} is judged",
            )
        loop.until(gang, lambda status: collect(status).get("state") == "Failed", 120, "no try is left")
        # Where PyTorchJobs are not served kubectl would refuse to be asked for them.
        monkeypatch.setenv("PATH", str(Path(built_or_skip("kubernetes", "kubectl")).parent))
        kubectl = Kubectl([f"--kubeconfig={plane.kubeconfig}", f"--namespace={gang.namespace}"])
        told = Trenchcoat.from_object(plane.read(gang.name, gang.namespace))
        attempts = find(told, "collect").attempts(kubectl)
        assert {name.partition("/")[2] for name in attempts} == {job.metadata.name for job in gang.jobs()}
    plane.delete(gang.name, gang.namespace)


def test_evicted_in_part_it_starts_again_as_a_whole(plane: ControlPlane, gang: Run) -> None:
    gang.begin(done=BEFORE)
    with operator(plane) as loop:
        for _ in range(3):  # more often than may fail
            first, second = begun(loop, gang)
            metadata = {"name": second.metadata.name, "namespace": gang.namespace}
            plane.core.create_namespaced_pod_eviction(
                second.metadata.name, gang.namespace, client.V1Eviction(metadata=metadata)
            )
            loop.until(gang, lambda _, pod=first: told_to_end(gang, pod), 120, "the other is told to end")
            # The one that is left breaks off before it has heard of it.
            leave(gang, first, 1)
            leave(gang, second, 75)
        begun(loop, gang)
        assert len(services(gang)) == 1
    plane.delete(gang.name, gang.namespace)


def test_taken_back_as_kueue_does_the_same_job_goes_on(plane: ControlPlane, gang: Run) -> None:
    gang.begin(done=BEFORE)
    batch = client.BatchV1Api(plane.api)
    with operator(plane) as loop:
        pods = begun(loop, gang)
        (job,) = (job.metadata.name for job in gang.jobs())
        batch.patch_namespaced_job(job, gang.namespace, {"spec": {"suspend": True}})
        for pod in pods:
            until(lambda pod=pod: told_to_end(gang, pod), 120, "it is told to end")
        for pod in pods:
            leave(gang, pod, 75)
        until(lambda: not gang.pods(), 120, "both are gone")
        batch.patch_namespaced_job(job, gang.namespace, {"spec": {"suspend": False}})
        again = begun(loop, gang)
        assert {pod.spec.hostname for pod in again} == {pod.spec.hostname for pod in pods}
        assert [found.metadata.name for found in gang.jobs()] == [job]
        assert outcomes(gang.status()) == [""]
    plane.delete(gang.name, gang.namespace)


def test_what_is_missing_is_told_at_once_and_the_other_kind_mends_it(plane: ControlPlane, gang: Run) -> None:
    """This cluster serves no PyTorchJob."""
    gang.body["spec"]["scheduling"]["distributed"] = "PyTorchJob"
    gang.begin(done=())
    with operator(plane) as loop:
        told = loop.until(
            gang,
            lambda status: (
                (found := condition(status, "Accepted")).get("reason") == "TrainingOperatorMissing" and found
            ),
            120,
            "it is told before the model is read",
        )
        assert told["status"] == "False"
        assert "kubectl apply" in told["message"]
        assert "spec.scheduling.distributed to IndexedJob" in told["message"]
        loop.until(gang, lambda _: gang.jobs(), 120, "tokenize runs all the same")
        assert condition(gang.status(), "Stalled")["status"] == "False"
        for name in BEFORE:
            gang.complete(name)
        loop.until(
            gang,
            lambda status: condition(status, "Stalled").get("status") == "True",
            120,
            "then nothing goes on",
        )
        change = {"spec": {"scheduling": {"distributed": "IndexedJob"}}}
        plane.trenchcoats.patch_namespaced_custom_object(
            "trenchcoat.dev", "v1alpha1", gang.namespace, "trenchcoats", gang.name, change
        )
        begun(loop, gang)
        status = gang.status()
        assert condition(status, "Accepted")["status"] == "True"
        assert condition(status, "Stalled")["status"] == "False"
    plane.delete(gang.name, gang.namespace)
