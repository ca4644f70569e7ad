"""GPUs by dynamic resource allocation: pods ask for nvidia.com/gpu, and no node has it among its resources.

The feature gate DRAExtendedResource is on (alpha in 1.34). No driver runs: a test makes ResourceSlices, and
the real scheduler allocates the devices.
"""

from collections.abc import Iterator

import pytest
from kubernetes import client

from tests.control_plane import Body, ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, condition, crias, namespace, operator
from tests.waiting import until

pytestmark = pytest.mark.slow

DRIVER, CLASS = "gpu.example.com", "gpus"
HELD, PENDING, STARTING = ("Waiting", "Gpu"), ("Waiting", "Scheduler"), ("Starting", "")


def device_class(expression: str) -> Body:
    spec = {"extendedResourceName": "nvidia.com/gpu", "selectors": [{"cel": {"expression": expression}}]}
    return {"metadata": {"name": CLASS}, "spec": spec}


def resource_slice(where: str, *names: str) -> Body:
    devices = [{"name": name, "attributes": {"type": {"string": "gpu"}}} for name in names]
    pool = {"name": where, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": DRIVER, "nodeName": where, "pool": pool, "devices": devices}
    return {"metadata": {"name": where}, "spec": spec}


@pytest.fixture
def resources(plane: ControlPlane) -> Iterator[client.ResourceV1Api]:
    api = client.ResourceV1Api(plane.api)
    yield api
    api.delete_device_class(CLASS)
    for item in api.list_resource_slice().items:
        api.delete_resource_slice(item.metadata.name)
        plane.core.delete_node(item.spec.node_name)


def test_devices_less_those_that_claims_hold_are_given_to_crias(
    plane: ControlPlane, server: MinioServer, resources: client.ResourceV1Api
) -> None:
    resources.create_device_class(
        device_class(f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == 'gpu'")
    )
    node(plane, "devices-1", {})
    resources.create_resource_slice(resource_slice("devices-1", "gpu-0", "gpu-1", "gpu-2"))
    where = namespace(plane, "devices")
    request = {
        "name": "gpu",
        "exactly": {"deviceClassName": CLASS, "allocationMode": "ExactCount", "count": 1},
    }
    resources.create_namespaced_resource_claim(
        where, {"metadata": {"name": "direct"}, "spec": {"devices": {"requests": [request]}}}
    )
    container = {"name": "x", "image": "x", "resources": {"claims": [{"name": "gpu"}]}}
    claims = [{"name": "gpu", "resourceClaimName": "direct"}]
    other = {"metadata": {"name": "other"}, "spec": {"containers": [container], "resourceClaims": claims}}
    plane.core.create_namespaced_pod(where, other)

    def is_held() -> bool:
        return resources.read_namespaced_resource_claim("direct", where).status.allocation is not None

    until(is_held, 120, "the other pod's device is allocated")
    run = Run(plane, server, where, "devices")
    with operator(plane) as loop:
        run.begin()
        seen = loop.until(
            run, lambda status: crias(status) == [STARTING, STARTING, HELD] and status, 120, "two have a GPU"
        )
        assert seen["crias"][2]["message"] == "0 of 1 node have a free nvidia.com/gpu"
        loop.until(
            run,
            lambda _: [pod.spec.node_name for pod in run.pods()] == 2 * ["devices-1"],
            120,
            "both are placed",
        )
        plane.core.delete_namespaced_pod("other", where, grace_period_seconds=0)
        resources.delete_namespaced_resource_claim("direct", where)
        loop.until(run, lambda status: crias(status) == 3 * [STARTING], 120, "the third has what it held")
        loop.until(
            run, lambda _: all(pod.spec.node_name == "devices-1" for pod in run.pods()), 120, "it is placed"
        )
        assert {job.metadata.annotations.get("trenchcoat.dev/expects-nodes") for job in run.jobs()} == {None}
    plane.delete("devices", where)


def test_stages_can_claim_devices_by_a_template(
    plane: ControlPlane, server: MinioServer, resources: client.ResourceV1Api
) -> None:
    resources.create_device_class({"metadata": {"name": CLASS}, "spec": {"selectors": []}})
    node(plane, "devices-3", {})
    resources.create_resource_slice(resource_slice("devices-3", "gpu-0", "gpu-1"))
    where = namespace(plane, "claims")
    request = {
        "name": "gpu",
        "exactly": {"deviceClassName": CLASS, "allocationMode": "ExactCount", "count": 1},
    }
    template = {"metadata": {"name": "one-gpu"}, "spec": {"spec": {"devices": {"requests": [request]}}}}
    resources.create_namespaced_resource_claim_template(where, template)
    run = Run(plane, server, where, "claims", pods={"cria": {"resourceClaimTemplateName": "one-gpu"}})
    run.begin()
    with operator(plane) as loop:
        loop.until(
            run,
            lambda status: crias(status) == [STARTING, STARTING, PENDING],
            120,
            "two have devices, one waits",
        )
        resources.delete_resource_slice("devices-3")
        resources.create_resource_slice(resource_slice("devices-3", "gpu-0", "gpu-1", "gpu-2"))
        loop.until(
            run, lambda status: crias(status) == 3 * [STARTING], 120, "the third has the one that came"
        )
        claims = resources.list_namespaced_resource_claim(where).items
        held = {item.status.allocation.devices.results[0].device for item in claims}
        assert held == {"gpu-0", "gpu-1", "gpu-2"}
    plane.delete("claims", where)


def test_where_nobody_can_tell_jobs_are_made_one_by_one(
    plane: ControlPlane, server: MinioServer, resources: client.ResourceV1Api
) -> None:
    resources.create_device_class(device_class(f"device.driver.startsWith('{DRIVER}')"))
    node(plane, "devices-2", {})  # another: pods that nobody ends keep their devices for a while
    resources.create_resource_slice(resource_slice("devices-2", "gpu-0", "gpu-1"))
    run = Run(plane, server, namespace(plane, "unknown"), "unknown", layersPerCria=2)
    run.begin()
    with operator(plane) as loop:
        seen = loop.until(
            run,
            lambda status: (
                sorted(crias(status)) == sorted([STARTING, STARTING, PENDING, *3 * [HELD]]) and status
            ),
            120,
            "two are placed, and one waits",
        )
        assert len(run.jobs()) == 3
        assert condition(seen, "Stalled")["status"] == "False"
    plane.delete("unknown", run.namespace)
