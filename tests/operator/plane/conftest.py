"""One control plane for the tests of this folder, with the definition of Trenchcoats."""

from collections.abc import Iterator

import pytest
from kubernetes import client

from tests.control_plane import ControlPlane, control_plane
from tests.minio_server import MinioServer, minio_or_skip
from tests.operator.plane import kubelet
from tests.waiting import until

GATES = "MutatingAdmissionPolicy=true,DRAExtendedResource=true"
RUNTIME = "admissionregistration.k8s.io/v1beta1=true"


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("plane")
    with control_plane(folder, gates=GATES, runtime=RUNTIME) as made:
        made.define()
        yield made


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with minio_or_skip(tmp_path_factory.mktemp("minio")) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(plane: ControlPlane) -> Iterator[None]:
    """No Jobs, pods and nodes of a test: no kubelet ends pods, and they would take the GPUs of others' nodes.

    With their Trenchcoats they go only once the garbage collector has looked for kinds that are new to it.
    """
    yield
    batch = client.BatchV1Api(plane.api)

    def all_gone() -> bool:
        jobs = batch.list_job_for_all_namespaces().items
        for namespace in {job.metadata.namespace for job in jobs}:
            batch.delete_collection_namespaced_job(namespace, propagation_policy="Background")
        pods = plane.core.list_pod_for_all_namespaces().items
        for pod in pods:
            kubelet.remove(plane, pod)
        return not jobs and not pods

    # Their controller may be making another pod just now, and has to let go of each.
    until(all_gone, 120, "Jobs and pods of the test are gone")
    plane.core.delete_collection_node()
