"""Namespaces with a ResourceQuota or a LimitRange: the API server refuses pods, and their Jobs say so."""

import pytest
from trenchcoat_operator.settings import PodDefaults

from tests.control_plane import Body, ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, condition, crias, namespace, operator, quota

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"
REFUSED = ("Waiting", "Refused")


def is_stalled(status: Body) -> Body | None:
    found = condition(status, "Stalled")
    return found if found.get("status") == "True" else None


def test_gpus_that_a_quota_keeps_from_one_namespace_go_to_another(
    plane: ControlPlane, server: MinioServer
) -> None:
    node(plane, "quota-1", {GPU: "2"})
    narrow, wide = namespace(plane, "narrow"), namespace(plane, "wide")
    quota(plane, narrow, **{f"requests.{GPU}": "1"})
    first, second = Run(plane, server, narrow, "first"), Run(plane, server, wide, "second")
    first.begin()
    try:
        with operator(plane) as loop:
            seen = loop.until(
                first, lambda status: REFUSED in crias(status) and status, 120, "one is refused"
            )
            message = next(row["message"] for row in seen["crias"] if row.get("waitingReason") == "Refused")
            assert "exceeded quota: team, requested: requests.nvidia.com/gpu=1" in message
            assert "raise the quota of the namespace" in message
            assert message in condition(seen, "CriasTrained")["message"]
            loop.until(first, lambda _: len(first.jobs()) == 1, 120, "its Job is taken back")
            second.begin()
            loop.until(
                second, lambda status: ("Starting", "") in crias(status), 120, "another namespace has the GPU"
            )
            loop.until(
                second, lambda _: [pod.spec.node_name for pod in second.pods()] == ["quota-1"], 120, "placed"
            )
            told = loop.until(first, is_stalled, 120, "no pod of it runs: a person is told")
            assert told["reason"] == "PodsRefused" and "exceeded quota: team" in told["message"]

            # The quota is raised, and there is a second node: what was refused has its pods a period later.
            plane.core.patch_namespaced_resource_quota(
                "team", narrow, {"spec": {"hard": {f"requests.{GPU}": "3"}}}
            )
            node(plane, "quota-2", {GPU: "4"})
            loop.until(
                first, lambda status: crias(status).count(("Starting", "")) == 3, 300, "all have their pods"
            )
            assert {row["attempt"] for row in first.status()["crias"]} == {1}, "what was refused was no try"
            loop.until(first, lambda status: not is_stalled(status), 120, "nothing keeps it any more")
    finally:
        for run in (first, second):
            plane.delete(run.name, run.namespace)
        plane.core.delete_node("quota-1")
        plane.core.delete_node("quota-2")


def test_what_a_limit_range_makes_of_a_pod_is_told_and_a_limit_of_its_own_mends_it(
    plane: ControlPlane, server: MinioServer
) -> None:
    where = namespace(plane, "limited")
    limits = {"limits": [{"type": "Container", "default": {"cpu": "50m"}, "max": {"cpu": "4"}}]}
    plane.core.create_namespaced_limit_range(where, {"metadata": {"name": "small"}, "spec": limits})
    run = Run(plane, server, where, "limited")
    run.begin(done=())
    with operator(plane) as loop:
        told = loop.until(run, is_stalled, 120, "it is told")
        assert told["reason"] == "PodsRefused"
        assert "must be less than or equal to cpu limit of 50m" in told["message"]
        assert "spec.pods.tokenize.resources" in told["message"] and "cpuLimit" in told["message"]
        assert not run.pods()
        plane.trenchcoats.patch_namespaced_custom_object(
            "trenchcoat.dev",
            "v1alpha1",
            where,
            "trenchcoats",
            "limited",
            {"spec": {"pods": {"tokenize": {"resources": {"cpuLimit": "2"}}}}},
        )
        loop.until(run, lambda _: run.pods(), 60, "its pod is made at once, for the spec is another")
        [pod] = run.pods()
        assert pod.spec.containers[0].resources.limits["cpu"] == "2"
        loop.until(
            run,
            lambda status: not is_stalled(status) or "waits for a node" in is_stalled(status)["message"],
            120,
            "nothing refuses it any more",
        )
    plane.delete("limited", where)


def test_an_operator_can_set_limits_for_all(plane: ControlPlane, server: MinioServer) -> None:
    where = namespace(plane, "metered")
    quota(plane, where, limits__cpu="8", limits__memory="8Gi")
    run = Run(plane, server, where, "metered")
    run.begin(done=())
    with operator(plane, pods=PodDefaults(cpu_limit="4", memory_limit="2Gi")) as loop:
        loop.until(run, lambda _: run.pods(), 120, "its pod is made")
        limits = run.pods()[0].spec.containers[0].resources.limits
        assert (limits["cpu"], limits["memory"]) == ("4", "2Gi")
    plane.delete("metered", where)
