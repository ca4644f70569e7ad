"""Pods that are told to end before their program listens: preemption and suspension come when they like."""

import random
import time

import pytest
from demo.environment import Environment

from tests.cluster.held import held
from tests.cluster.objects import Body, apply, delete, example, pods, row, wait
from tests.cluster.security import restricted_pod
from tests.waiting import until

AT_ONCE = 20.0
"""Seconds for a pod to be gone: what a kubelet may take on a busy machine, far from the 120 of grace."""


TOKENS = 512 * random.randrange(160, 300)
"""No other test, nor this one on a cluster that was kept, has a tokenize stage of so many in the store."""


def trenchcoat(**changes: object) -> Body:
    return example("late", data__tokens=TOKENS, **changes)


def wait_for_start(environment: Environment, *others: str) -> str:
    """The name of its one pod besides others, once its container runs."""

    def started() -> str | None:
        for pod in pods(environment, "late", "trenchcoat.dev/stage=tokenize"):
            states = [item["state"] for item in pod["status"].get("containerStatuses", [])]
            if pod["metadata"]["name"] not in others and any("running" in state for state in states):
                return str(pod["metadata"]["name"])
        return None

    name: str = until(started, 90, "a pod starts")
    return name


@pytest.fixture
def late(store: Environment):
    """Its pod runs, and Python in it is not there yet."""
    with held(store) as settings:
        apply(store, trenchcoat(pods={"tokenize": settings}))
        yield store
        delete(store, "late")


def test_a_pod_told_to_end_while_python_starts_does_so_at_once(late: Environment) -> None:
    first = wait_for_start(late)
    began = time.monotonic()
    late.kubectl("delete", "pod", first, "--wait=true", "--timeout=150s")
    assert time.monotonic() - began < AT_ONCE

    # It is no failure: the same Job goes on with another pod.
    wait_for_start(late, first)
    (job,) = late.get("jobs", "-l", "trenchcoat.dev/name=late")["items"]
    assert not job["status"].get("conditions")

    began = time.monotonic()
    late.kubectl("patch", "trenchcoat", "late", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait(late, "late", lambda body: not pods(late, "late"), timeout=150)
    assert time.monotonic() - began < AT_ONCE

    apply(late, trenchcoat(pods={}, suspend=False))
    body = wait(late, "late", lambda body: row(body, "tokenize").get("state") == "Succeeded", timeout=120)
    assert "lastFailure" not in row(body, "tokenize")


def a_gang_without_its_master(image: str) -> Body:
    """A PyTorchJob whose worker has a node and waits there for a master that finds none."""

    def replica(**placement: object) -> Body:
        spec = restricted_pod(image, "sleep", "600") | placement | {"terminationGracePeriodSeconds": 120}
        spec["containers"][0]["name"] = "pytorch"
        return {"replicas": 1, "restartPolicy": "Never", "template": {"spec": spec}}

    nowhere = {"trenchcoat.dev/node": "none"}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "bereft"},
        "spec": {"pytorchReplicaSpecs": {"Master": replica(nodeSelector=nowhere), "Worker": replica()}},
    }


def test_a_worker_told_to_end_while_it_waits_for_its_master_does_so_at_once(environment: Environment) -> None:
    """Its init container is our template's, and a shell."""
    apply(environment, a_gang_without_its_master(environment.trainer_image))
    try:
        # To wait for the state of a pod that is not there yet is an error at once.
        environment.kubectl("wait", "--for=create", "pod/bereft-worker-0", "--timeout=60s")
        jsonpath = "jsonpath={.status.initContainerStatuses[0].state.running}"
        environment.kubectl("wait", f"--for={jsonpath}", "pod/bereft-worker-0", "--timeout=90s")
        began = time.monotonic()
        environment.kubectl("delete", "pod", "bereft-worker-0", "--wait=true", "--timeout=150s")
        assert time.monotonic() - began < AT_ONCE
    finally:
        environment.kubectl("delete", "pytorchjob", "bereft", "--wait=false")


def test_a_gang_told_to_end_while_its_ranks_meet_does_so_at_once(store: Environment) -> None:
    """The Service by which they would find each other goes with the PyTorchJob, and may go first."""
    apply(store, example("parted", data__tokens=TOKENS))
    try:

        def both_run() -> bool:
            found = pods(store, "parted", "trenchcoat.dev/stage=collect")
            return [pod["status"]["phase"] for pod in found] == ["Running"] * 2

        until(both_run, 120, "both pods of collect run")
        time.sleep(3)  # most of Python has been read, and they are about to meet
        began = time.monotonic()
        delete(store, "parted")
        until(lambda: not pods(store, "parted"), 150, "its pods are gone")
        assert time.monotonic() - began < AT_ONCE
    finally:
        delete(store, "parted")
