"""Pools of nodes that grow: pods wait for the real scheduler, which finds the node that a test adds later.

What an autoscaler says of a pod is written by the test, as Cluster Autoscaler writes it.
"""

from datetime import UTC, datetime

import pytest

from tests.control_plane import ControlPlane, node
from tests.minio_server import MinioServer
from tests.operator.plane.runs import Run, condition, crias, namespace, operator, policy, row
from tests.waiting import until

pytestmark = pytest.mark.slow

GPU = "nvidia.com/gpu"
PENDING, HELD = ("Waiting", "Scheduler"), ("Waiting", "Gpu")


def say_as_autoscaler(plane: ControlPlane, where: str, pod: str, reason: str, message: str) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {
        "metadata": {"name": f"{pod}.{reason.lower()}", "namespace": where},
        "involvedObject": {"kind": "Pod", "namespace": where, "name": pod, "apiVersion": "v1"},
        "reason": reason,
        "message": message,
        "type": "Normal",
        "source": {"component": "cluster-autoscaler"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    plane.core.create_namespaced_event(where, body)


def gate_all_pods(plane: ControlPlane, where: str) -> None:
    gate = 'Object.spec.schedulingGates{name: "kueue.x-k8s.io/topology"}'
    change = f"Object{{spec: Object.spec{{schedulingGates: [{gate}]}}}}"
    policy(plane, where, {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}, change)

    def gated() -> bool:
        pod = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
        return bool(plane.core.create_namespaced_pod(where, pod, dry_run="All").spec.scheduling_gates)

    until(gated, 120, "the policy is in force")


def test_where_no_node_has_a_gpu_one_job_waits_for_a_node_that_is_added_later(
    plane: ControlPlane, server: MinioServer
) -> None:
    run = Run(plane, server, namespace(plane, "pool"), "none")
    run.begin()
    with operator(plane) as loop:
        seen = loop.until(
            run,
            lambda status: crias(status) == [PENDING, HELD, HELD] and status,
            120,
            "one waits for the scheduler",
        )
        [pod] = run.pods()
        message = seen["crias"][0]["message"]
        assert message.startswith(f"pod {pod.metadata.name} waits for a node: ")
        assert "no nodes available" in message or "Insufficient" in message, message
        assert condition(seen, "Stalled")["status"] == "False"
        assert "1 Job waits for nodes to be added" in seen["crias"][1]["message"]

        up = "pod triggered scale-up: [{gpu-pool 0->1 (max: 8)}]"
        say_as_autoscaler(plane, run.namespace, pod.metadata.name, "TriggeredScaleUp", up)
        told = f"TriggeredScaleUp: {up}"
        loop.until(run, lambda status: told in status["crias"][0]["message"], 120, "its words are told")

        node(plane, "pool-1", {GPU: "1"})
        loop.until(
            run,
            lambda status: run.pods()[0].spec.node_name == "pool-1" and crias(status)[0][0] == "Starting",
            120,
            "its pod has the node",
        )
        loop.until(run, lambda status: crias(status)[1:] == [HELD, HELD], 120, "the others wait for GPUs")
        assert len(run.jobs()) == 1, "a node is there now: no more is made than it takes"
    plane.delete("none", run.namespace)
    plane.core.delete_node("pool-1")


def test_a_pool_that_can_grow_is_asked_for_so_many_nodes_at_a_time(
    plane: ControlPlane, server: MinioServer
) -> None:
    node(plane, "grows-1", {GPU: "1"})
    run = Run(
        plane, server, namespace(plane, "grows"), "grows", layersPerCria=2, scheduling={"pendingJobs": 2}
    )
    run.begin()
    try:
        with operator(plane, pending_patience_seconds=8.0) as loop:
            loop.until(
                run,
                lambda status: (
                    sorted(crias(status)) == sorted([("Starting", ""), *2 * [PENDING], *3 * [HELD]])
                ),
                120,
                "one has the GPU, two wait for nodes, three are not made",
            )
            assert len(run.jobs()) == 3
            stalled = loop.until(
                run,
                lambda status: (found := condition(status, "Stalled")).get("status") == "True" and found,
                120,
                "its patience is over",
            )
            assert stalled["reason"] == "Unschedulable"
            assert len(run.jobs()) == 3, "they go on waiting"

            node(plane, "grows-2", {GPU: "2"})
            loop.until(
                run, lambda status: crias(status).count(("Starting", "")) == 3, 120, "both have their nodes"
            )
            loop.until(run, lambda status: crias(status).count(PENDING) == 2, 120, "two more wait")
            assert len(run.jobs()) == 5
            loop.until(
                run, lambda status: condition(status, "Stalled").get("status") == "False", 120, "it goes on"
            )
    finally:
        plane.delete("grows", run.namespace)
        plane.core.delete_node("grows-1")
        plane.core.delete_node("grows-2")


def test_a_pod_behind_scheduling_gates_is_told_to_be(plane: ControlPlane, server: MinioServer) -> None:
    """The gate is put on by the API server's own admission policy, as Kueue's webhook puts one on."""
    where = namespace(plane, "gated")
    run = Run(plane, server, where, "gated")
    gate_all_pods(plane, where)
    run.begin(done=())
    with operator(plane) as loop:
        seen = loop.until(
            run,
            lambda status: (found := row(status, "tokenize")).get("waitingReason") == "Scheduler" and found,
            120,
            "it is told",
        )
        assert "its scheduling gates kueue.x-k8s.io/topology are to be lifted" in seen["message"]
        assert condition(run.status(), "Stalled")["status"] == "False"
        [pod] = run.pods()
        plane.core.patch_namespaced_pod(
            pod.metadata.name, where, [{"op": "remove", "path": "/spec/schedulingGates"}]
        )
        node(plane, "gated-1", {})
        try:
            loop.until(
                run,
                lambda status: row(status, "tokenize").get("state") == "Starting",
                120,
                "the scheduler looks at it",
            )
        finally:
            plane.delete("gated", where)
            plane.core.delete_node("gated-1")
