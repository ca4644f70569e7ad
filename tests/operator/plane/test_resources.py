"""What pods ask for besides GPUs: the real API server lets it pass, and the real scheduler goes by it."""

import pytest

from tests.control_plane import ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, namespace, operator

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"


def test_fast_networks_huge_pages_and_accounts_of_ones_own(plane: ControlPlane, server: MinioServer) -> None:
    node(plane, "plain", {GPU: "8"}, labels={"for": "resources"})
    node(plane, "fast", {GPU: "1", "rdma/hca": "1", "hugepages-2Mi": "1Gi"}, labels={"for": "resources"})
    where = namespace(plane, "resources")
    plane.core.create_namespaced_service_account(where, {"metadata": {"name": "trainer"}})
    asked = {
        "nodeSelector": {"for": "resources"},
        "serviceAccountName": "trainer",
        "extendedResources": [
            {"name": "rdma/hca", "quantity": "1"},
            {"name": "hugepages-2Mi", "quantity": "512Mi"},
        ],
        "volumes": [{"name": "pages", "emptyDir": {"medium": "HugePages"}}],
        "volumeMounts": [{"name": "pages", "mountPath": "/hugepages"}],
    }
    run = Run(plane, server, where, "resources", layersPerCria=12, pods={"cria": asked})
    run.begin()
    try:
        with operator(plane) as loop:
            loop.until(
                run,
                lambda _: [pod.spec.node_name for pod in run.pods()] == ["fast"],
                120,
                "it has the node with all of it, though another has more GPUs",
            )
        (pod,) = run.pods()
        assert pod.spec.service_account_name == "trainer"
        limits = pod.spec.containers[0].resources.limits
        assert limits == {GPU: "1", "rdma/hca": "1", "hugepages-2Mi": "512Mi"}
    finally:
        plane.delete("resources", where)
        plane.core.delete_node("plain")
        plane.core.delete_node("fast")
