"""Pods that end otherwise than by their stage's end: told to, evicted, or kept by a sidecar.

Preemption and suspension come when they like, before the program listens too.
"""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from demo.environment import Environment
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph

from tests.cluster.held import held
from tests.cluster.objects import Body, apply, delete, even_if_stalled, events, example, pods, read, row, wait
from tests.cluster.security import restricted_pod
from tests.waiting import until

AT_ONCE = 20.0
"""Seconds for a pod to be gone: what a kubelet may take on a busy machine, far from the 120 of grace."""


TOKENS = 512 * random.randrange(160, 300)
"""No other test, nor this one on a cluster that was kept, has a tokenize stage of so many in the store."""


JOB_BACK_OFF = 10.0
"""Seconds after which a Job's controller makes another pod for one that was ignored, at the earliest."""


def trenchcoat(**changes: object) -> Body:
    return example("late", data__tokens=TOKENS, **changes)


def wait_for_start(environment: Environment, *others: str, name: str = "late") -> str:
    """The name of its one pod besides others, once its container runs."""

    def started() -> str | None:
        for pod in pods(environment, name, "trenchcoat.dev/stage=tokenize"):
            states = [item["state"] for item in pod["status"].get("containerStatuses", [])]
            if pod["metadata"]["name"] not in others and any("running" in state for state in states):
                return str(pod["metadata"]["name"])
        return None

    found: str = until(started, 120, "a pod starts")
    return found


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

    # It is no failure that counts, and goes on with another Job at once.
    wait_for_start(late, first)
    assert jobs_of(late, "late") == {1: "Failed", 2: ""}

    began = time.monotonic()
    late.kubectl("patch", "trenchcoat", "late", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait(late, "late", lambda body: not pods(late, "late"), timeout=150)
    assert time.monotonic() - began < AT_ONCE

    apply(late, trenchcoat(pods={}, suspend=False))
    body = wait(late, "late", lambda body: row(body, "tokenize").get("state") == "Succeeded", timeout=120)
    assert row(body, "tokenize")["lastFailure"].startswith("Preempted: ")


def jobs_of(environment: Environment, name: str) -> dict[int, str]:
    """How each Job of tokenize ended, by the number of the try; empty while it goes on."""
    result = {}
    selector = f"trenchcoat.dev/name={name},trenchcoat.dev/stage=tokenize"
    for job in environment.get("jobs", "-l", selector)["items"]:
        ends = [item["type"] for item in job["status"].get("conditions", []) if item["type"] in ENDS]
        result[int(job["metadata"]["annotations"]["trenchcoat.dev/attempt"])] = ends[0] if ends else ""
    return result


ENDS = ("Complete", "Failed")


def test_an_evicted_pod_is_followed_by_another_before_its_job_would_make_one(store: Environment) -> None:
    """The Job controller waits 10, 20, 40 s, up to 10 minutes, with the GPU idle."""
    name, selector = "evicted", "trenchcoat.dev/stage=tokenize"
    with held(store) as settings:
        apply(store, example(name, data__tokens=TOKENS - 1024, pods={"tokenize": settings}))
        try:
            first = wait_for_start(store, name=name)
            path = f"/api/v1/namespaces/{store.namespace}/pods/{first}/eviction"
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first}}
            store.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

            def ended() -> bool:
                found = [pod for pod in pods(store, name, selector) if pod["metadata"]["name"] == first]
                return not found or found[0]["status"]["phase"] == "Failed"

            until(ended, AT_ONCE, "the evicted pod has ended")
            began = time.monotonic()

            def another() -> bool:
                return any(pod["metadata"]["name"] != first for pod in pods(store, name, selector))

            until(another, 120, "another pod is made")
            took = time.monotonic() - began
            print(f"from the end of an evicted pod to the next: {took:.1f} s")
            assert took < JOB_BACK_OFF
            assert jobs_of(store, name) == {1: "Failed", 2: ""}
            told = until(lambda: row(read(store, name), "tokenize").get("lastFailure"), 120, "it is told")
            assert told.startswith("Preempted: the cluster ended")
        finally:
            delete(store, name)


@pytest.fixture
def beside(store: Environment, alone: None) -> Iterator[Any]:
    """Makes a Trenchcoat and its first Job with a log shipper in its pod, as admission plugins do."""
    made = []

    def make(name: str, **changes: object) -> None:
        made.append(name)
        apply(store, example(name, **changes))
        owner = Trenchcoat.from_object(store.get("trenchcoat", name))
        work = graph.build(owner.spec, {}).works[0]
        # As the first process of its container, sleep does not hear that it should end.
        defaults = PodDefaults(image=store.trainer_image, pull_policy="Never", grace_seconds=5)
        job = jobs.build(owner, work, 1, defaults)
        spec = job["spec"]["template"]["spec"]
        (shipper,) = restricted_pod(store.trainer_image, "sleep", "600")["containers"]
        spec["containers"].insert(0, shipper | {"name": "a-shipper", "imagePullPolicy": "Never"})
        apply(store, specs.spec_config_map(owner))
        apply(store, job)

    yield make
    for name in made:
        delete(store, name)


def operate(environment: Environment) -> None:
    environment.command(
        "kubectl", "-n", "trenchcoat-system", "scale", "--replicas=1", "deployment", "-l", OPERATOR
    )


OPERATOR = "app.kubernetes.io/name=trenchcoat"


def stage_is_over(environment: Environment, name: str) -> bool:
    """Whether the stage's own container has ended in the one pod, which goes on."""
    (pod,) = pods(environment, name)
    states = {item["name"]: item["state"] for item in pod["status"].get("containerStatuses", [])}
    return pod["status"]["phase"] == "Running" and "terminated" in states.get("stage", {})


def test_a_stage_that_ended_is_told_from_the_sidecar_that_goes_on(store: Environment, beside: Any) -> None:
    """Without an operator, and long before the shipper ends: nobody else would ever end these Jobs."""
    beside("shipped", data__tokens=TOKENS - 512)
    beside("misled", data__tokens=TOKENS - 512, data__textField="nothing")
    for name in ("shipped", "misled"):
        until(lambda name=name: stage_is_over(store, name), 120, f"the stage of {name} has ended")
    operate(store)
    body = wait(store, "shipped", lambda body: row(body, "tokenize").get("state") == "Succeeded", timeout=120)
    selector = "trenchcoat.dev/stage=tokenize"
    until(lambda: not pods(store, "shipped", selector), 120, "its pod and the sidecar are gone")
    body = wait(
        store, "shipped", lambda body: row(body, "tokenize")["attempts"][0].get("outcome"), timeout=120
    )
    (attempt,) = row(body, "tokenize")["attempts"]
    assert attempt["outcome"] == "Succeeded"
    assert "lastFailure" not in row(body, "tokenize")

    failed = even_if_stalled(
        store, "misled", lambda body: row(body, "tokenize").get("state") == "Failed", timeout=120
    )
    assert row(failed, "tokenize")["lastFailure"].startswith("InvalidInput: ")

    def no_pod_runs() -> bool:
        """A pod whose containers have all ended holds nothing, though its object may stay for its log."""
        found = pods(store, "misled", "trenchcoat.dev/stage=tokenize")
        return all(pod["status"]["phase"] == "Failed" for pod in found)

    until(no_pod_runs, 120, "the sidecar has ended, too")
    told = [event["message"] for event in events(store, "misled") if event["reason"] == "Stopped"]
    assert any("a-shipper" in message for message in told)


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
        environment.kubectl("wait", "--for=create", "pod/bereft-worker-0", "--timeout=120s")
        jsonpath = "jsonpath={.status.initContainerStatuses[0].state.running}"
        environment.kubectl("wait", f"--for={jsonpath}", "pod/bereft-worker-0", "--timeout=120s")
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
