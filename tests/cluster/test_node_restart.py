"""A node restarts under a stage, and is back before anybody misses it: no try is counted."""

import random
import subprocess

from demo.environment import CLUSTER, Environment

from tests.cluster.conftest import NAME as CLUSTER_NAME
from tests.cluster.held import held
from tests.cluster.objects import Body, apply, delete, even_if_stalled, example, pods, row
from tests.waiting import until

NAME = "restarted"
NODE = "node-2"
"""The other one has MinIO and the training operator."""
TOKENS = 512 * random.randrange(321, 400)
"""No other test, nor this one on a cluster that was kept, has a tokenize stage of so many in the store."""


def running(environment: Environment, *others: str) -> str | None:
    """The name of a pod besides others whose container runs."""
    for pod in pods(environment, NAME, "trenchcoat.dev/stage=tokenize"):
        states = [item["state"] for item in pod["status"].get("containerStatuses", [])]
        if pod["metadata"]["name"] not in others and any("running" in state for state in states):
            return str(pod["metadata"]["name"])
    return None


def ended(environment: Environment, name: str) -> Body:
    """How a pod's container ended, in the kubelet's words; empty where the pod is gone."""
    for pod in pods(environment, NAME, "trenchcoat.dev/stage=tokenize"):
        if pod["metadata"]["name"] == name:
            [status] = pod["status"]["containerStatuses"]
            found: Body = status["state"].get("terminated", {})
            return found
    return {}


def test_a_node_that_restarts_costs_no_try(store: Environment) -> None:
    def machine(word: str) -> None:
        subprocess.run([str(CLUSTER), "--name", CLUSTER_NAME, word, NODE], check=True)

    with held(store) as settings:
        there = {**settings, "nodeSelector": {"kubernetes.io/hostname": NODE}}
        tries = {"maxAttempts": 1}
        apply(store, example(NAME, data__tokens=TOKENS, scheduling=tries, pods={"tokenize": there}))
        try:
            first = until(lambda: running(store), 120, "a pod runs on the node")
            machine("kill-node")
            machine("start-node")
            even_if_stalled(store, NAME, lambda body: row(body, "tokenize").get("attempt") == 2, timeout=120)
            said = ended(store, first)
            print(f"of the pod of a node that restarted its kubelet says: {said}")
            assert (said["reason"], said["exitCode"]) in (("Unknown", 255), ("ContainerStatusUnknown", 137))
            until(lambda: running(store, first), 120, "its next pod runs")
            body = even_if_stalled(
                store, NAME, lambda body: row(body, "tokenize").get("state") == "Running", timeout=120
            )
            tokenize = row(body, "tokenize")
            assert tokenize["lastFailure"].startswith("Preempted: ")
            assert "was gone when its node came back" in tokenize["lastFailure"]
            assert tokenize["attempts"][0]["outcome"] == "Preempted"
        finally:
            delete(store, NAME)
