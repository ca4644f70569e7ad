"""GPUs that a driver offers by dynamic resource allocation, counted as nvidia.com/gpu.

The objects are as the API server and the scheduler of Kubernetes 1.34.4 have them; see tests/operator/plane.
"""

from typing import Any

import pytest
from trenchcoat_operator.gpus.devices import counted
from trenchcoat_operator.model import devices
from trenchcoat_operator.model.capacity import BoundPod, Node

GPU = "nvidia.com/gpu"
DRIVER = "device.driver == 'gpu.nvidia.com'"
Body = dict[str, Any]


def device_class(*expressions: str, resource: str = GPU) -> Body:
    selectors = [{"cel": {"expression": expression}} for expression in expressions]
    return {"metadata": {"name": "gpu"}, "spec": {"extendedResourceName": resource, "selectors": selectors}}


def resource_slice(node: str, *names: str, generation: int = 1, **device: Any) -> Body:
    made = [{"name": name, "attributes": {"type": {"string": "gpu"}}, **device} for name in names]
    pool = {"name": node, "generation": generation, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": node, "pool": pool, "devices": made}
    return {"metadata": {"name": f"{node}-{generation}"}, "spec": spec}


def claim(node: str, *names: str, extended: bool = False) -> Body:
    results = [{"driver": "gpu.nvidia.com", "pool": node, "device": name, "request": "r"} for name in names]
    annotations = {"resource.kubernetes.io/extended-resource-claim": "true"} if extended else {}
    status = {"allocation": {"devices": {"results": results}}} if names else {}
    return {"metadata": {"name": "c", "annotations": annotations}, "status": status}


def count(
    *nodes: Node, classes: list[Body], slices: list[Body], claims: list[Body]
) -> tuple[list[int], tuple[BoundPod, ...]]:
    read = (
        [item for body in classes if (item := devices.device_class(body)) is not None],
        [item for body in slices if (item := devices.resource_slice(body)) is not None],
        [item for body in claims if (item := devices.claim(body)) is not None],
    )
    found, held = counted(nodes, *read)
    return [node.allocatable.get(GPU, 0) for node in found], held


ONE, TWO = Node("n1", {}), Node("n2", {"example.com/nic": 4})


def test_devices_of_a_class_count_less_those_that_claims_hold() -> None:
    found = count(
        ONE,
        TWO,
        classes=[device_class(DRIVER)],
        slices=[resource_slice("n1", "gpu-0", "gpu-1"), resource_slice("n2", "gpu-0")],
        claims=[claim("n1", "gpu-1"), claim("n1"), claim("elsewhere", "gpu-0")],
    )
    assert found == ([2, 1], (BoundPod("n1", {GPU: 1}),))


def test_a_claim_for_an_extended_resource_is_counted_by_its_pod() -> None:
    slices = [resource_slice("n1", "gpu-0")]
    claims = [claim("n1", "gpu-0", extended=True)]
    assert count(ONE, classes=[device_class(DRIVER)], slices=slices, claims=claims) == ([1], ())


def test_a_node_with_a_device_plugin_has_what_that_says() -> None:
    node = Node("n1", {GPU: 8})
    slices = [resource_slice("n1", "gpu-0")]
    claims = [claim("n1", "gpu-0")]
    assert count(node, classes=[device_class(DRIVER)], slices=slices, claims=claims) == ([8], ())


@pytest.mark.parametrize(
    ("expressions", "gpus"),
    [
        ((), 1),
        ((DRIVER,), 1),
        ((f"{DRIVER} && device.attributes['gpu.nvidia.com'].type == 'gpu'",), 1),
        (('device.attributes["gpu.nvidia.com"].type == "gpu"', DRIVER), 1),
        ((f"{DRIVER} && device.attributes['gpu.nvidia.com'].type == 'mig'",), 0),
        (("device.driver == 'gpu.amd.com'",), 0),
        ((DRIVER, "device.driver == 'gpu.amd.com'"), 0),
        ((f"{DRIVER} || true",), 0),
        (("device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('40Gi')) >= 0",), 0),
        (("device.driver == 'gpu.nvidia.com' || device.attributes['a'].b == 'c'",), 0),
    ],
)
def test_selectors_that_are_equalities_are_read_and_others_count_for_nothing(
    expressions: tuple[str, ...], gpus: int
) -> None:
    found, _ = count(
        ONE, classes=[device_class(*expressions)], slices=[resource_slice("n1", "gpu-0")], claims=[]
    )
    assert found == [gpus]


def test_one_class_that_cannot_be_read_makes_its_resource_unknown() -> None:
    classes = [device_class(DRIVER), device_class("device.allowMultipleAllocations")]
    assert count(ONE, classes=classes, slices=[resource_slice("n1", "gpu-0")], claims=[])[0] == [0]
    classes[1]["spec"]["extendedResourceName"] = "example.com/nic"
    assert count(ONE, classes=classes, slices=[resource_slice("n1", "gpu-0")], claims=[])[0] == [1]


def test_only_the_newest_slices_of_a_pool_count_and_no_tainted_device() -> None:
    slices = [
        resource_slice("n1", "gpu-0", "gpu-1", "gpu-2"),
        resource_slice("n1", "gpu-0", "gpu-1", generation=2),
        resource_slice("n2", "gpu-0", taints=[{"key": "unhealthy", "effect": "NoExecute"}]),
        {
            "metadata": {"name": "fabric"},
            "spec": {"driver": "d", "allNodes": True, "devices": [{"name": "x"}]},
        },
    ]
    assert count(ONE, TWO, classes=[device_class()], slices=slices, claims=[])[0] == [2, 0]


def test_a_class_that_stands_for_no_extended_resource_is_none_of_ours() -> None:
    body = device_class(DRIVER)
    del body["spec"]["extendedResourceName"]
    assert devices.device_class(body) is None
