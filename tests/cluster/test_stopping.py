"""Pods that end otherwise than by their stage's end: told to, evicted, or kept by a sidecar.

Preemption and suspension come when they like, before the program listens too.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from demo.environment import Environment
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.settings import PodDefaults
from trenchcoat_operator.works import graph

from tests.cluster.ends import KILLED, ends
from tests.cluster.held import held, prepared
from tests.cluster.objects import Body, apply, delete, even_if_stalled, events, example, pods, read, row, wait
from tests.cluster.security import restricted_pod
from tests.waiting import until

AT_ONCE = 20.0
"""Seconds for a program to end: a busy kubelet takes some; half the grace that pods have here."""


TOKENS = 512 * random.randrange(183, 290)
"""No other test, nor this one on a cluster that was kept, has a tokenize stage of so many in the store, or of
one or two sequences less. Others have 160, 180, 290 and 320 sequences, or fewer than 145."""


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
    end_at_once(
        late,
        lambda: late.kubectl("delete", "pod", first, "--wait=false"),
        field_selector=f"metadata.name={first}",
    )
    # It is no failure that counts, and goes on with another Job at once.
    wait_for_start(late, first)
    until(
        lambda: jobs_of(late, "late") == {1: "Failed", 2: ""}, 120, "the first Job is over, the next is not"
    )

    change = ("patch", "trenchcoat", "late", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    end_at_once(late, lambda: late.kubectl(*change), label_selector="trenchcoat.dev/name=late")

    apply(late, trenchcoat(pods={}, suspend=False))
    body = wait(late, "late", lambda body: row(body, "tokenize").get("state") == "Succeeded", timeout=120)
    assert row(body, "tokenize")["lastFailure"].startswith("Preempted: ")


def end_at_once(environment: Environment, tell: Callable[[], object], **which: str) -> None:
    """Have pods be told to end: their programs do so by themselves, long before they would be killed."""
    for end in ends(environment, tell, **which):
        assert end.exit_code != KILLED and end.seconds < AT_ONCE, end


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

            until(ended, 120, "the evicted pod has ended")
            began = time.monotonic()

            def others() -> list[Body]:
                return [pod for pod in pods(store, name, selector) if pod["metadata"]["name"] != first]

            other, *_ = until(others, 120, "another pod is made")
            print(f"from the end of an evicted pod to the next: {time.monotonic() - began:.1f} s")
            made_by = other["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            assert made_by.endswith("-2"), "its Job made it after its back-off, and the GPU was idle"
            until(lambda: jobs_of(store, name) == {1: "Failed", 2: ""}, 120, "the first Job is over")
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
    for pod in pods(environment, name):
        states = {item["name"]: item["state"] for item in pod["status"].get("containerStatuses", [])}
        return pod["status"]["phase"] == "Running" and "terminated" in states.get("stage", {})
    return False  # its Job's controller has not made it yet


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
        store,
        "shipped",
        lambda body: any("outcome" in item for item in row(body, "tokenize").get("attempts", [])),
        timeout=120,
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

    def is_told() -> bool:
        told = [event["message"] for event in events(store, "misled") if event["reason"] == "Stopped"]
        return any("a-shipper" in message for message in told)

    until(is_told, 120, "an event names the sidecar")


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
        end_at_once(
            environment,
            lambda: environment.kubectl("delete", "pod", "bereft-worker-0", "--wait=false"),
            field_selector="metadata.name=bereft-worker-0",
        )
    finally:
        environment.kubectl("delete", "pytorchjob", "bereft", "--wait=false")


def test_a_gang_told_to_end_while_its_ranks_meet_does_so_at_once(store: Environment) -> None:
    """The Service by which they would find each other goes with the PyTorchJob, and may go first."""
    with prepared(store, "parted", FIRST_NEVER_COMES) as settings:
        apply(store, example("parted", data__tokens=TOKENS, pods={"collect": settings}))
        try:

            def both_run() -> bool:
                found = pods(store, "parted", selector)
                return [pod["status"]["phase"] for pod in found] == ["Running"] * 2

            selector = "trenchcoat.dev/stage=collect"
            until(both_run, 180, "both pods of collect run")
            time.sleep(3)  # most of Python has been read, and the second is about to look for the first
            words = ("delete", "trenchcoat", "parted", "--wait=false")
            which = f"trenchcoat.dev/name=parted,{selector}"
            end_at_once(store, lambda: store.kubectl(*words), label_selector=which)
        finally:
            delete(store, "parted")


FIRST_NEVER_COMES = """
import os, time
if os.environ.get("RANK") == "0":
    time.sleep(600)
"""
