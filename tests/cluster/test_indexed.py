"""A whole run without a training operator: its gangs are Indexed Jobs, whose ranks meet by the cluster's DNS.

A rank of the stitch is killed, and later a pod evicted: all of them go on from the checkpoint. The evaluation
is a gang as well.
"""

import json
import re
import time
from collections.abc import Iterator

import pytest
from demo.environment import Environment

from tests.cluster.held import SLOWLY, Gate, prepared
from tests.cluster.objects import (
    SMALL_EVALUATION,
    Body,
    apply,
    delete,
    example,
    jobs_of,
    log_of,
    pods,
    ranks_that_completed,
    row,
    succeeded,
    wait,
)
from tests.waiting import until

NAME = "indexed"
MINUTES = 60.0
RANKS = 2
STEP = re.compile("stitch [1-9][0-9]* of ")
"""What the first rank logs of its steps."""
SMALL = {
    "data__tokens": 16384,
    "data__heldOutTokens": 4096,
    "layersPerCria": 6,
    "transfer__epochs": 1,
    "criaLora__epochs": 0,
    **SMALL_EVALUATION,
    "evaluate__nodes": RANKS,
    "export__enabled": False,
    "seed": 14,
    "stitch__epochs": 5,
    "scheduling__distributed": "IndexedJob",
}


@pytest.fixture
def without_training_operator(store: Environment) -> Iterator[Environment]:
    """The cluster, with nobody to see to PyTorchJobs."""
    where = ("-n", "kubeflow", "deployment/training-operator")
    store.command("kubectl", "scale", "--replicas=0", *where)
    yield store
    store.command("kubectl", "scale", "--replicas=1", *where)
    store.command("kubectl", "rollout", "status", "--timeout=300s", *where)


@pytest.fixture
def slowly(store: Environment) -> Iterator[Body]:
    """Pods that are at work for a minute, unless they are let go: what is done to them comes in time."""
    with prepared(store, "slow-stitch", SLOWLY) as settings:
        yield settings


def ranks(environment: Environment) -> list[Body]:
    """The pods of the stitch that run."""
    found = pods(environment, NAME, "trenchcoat.dev/stage=stitch")
    running = [pod for pod in found if pod["status"]["phase"] == "Running"]
    return [pod for pod in running if "deletionTimestamp" not in pod["metadata"]]


def at_work(environment: Environment) -> bool:
    """Whether the stitch's ranks have met and train: a row may still tell of the attempt before."""
    return any(STEP.search(log_of(environment, pod)) for pod in ranks(environment))


def came_anew(environment: Environment, former: list[Body]) -> list[Body]:
    """All ranks, once none of them is one of before."""
    known = {pod["metadata"]["uid"] for pod in former}

    def other() -> list[Body]:
        found = ranks(environment)
        return found if len(found) == RANKS and not known & {pod["metadata"]["uid"] for pod in found} else []

    found: list[Body] = until(other, 240, "both ranks are there anew")
    return found


def test_a_whole_run_goes_on_after_the_end_of_any_rank(
    without_training_operator: Environment, slowly: Body
) -> None:
    cluster = without_training_operator
    apply(cluster, example(NAME, **SMALL, pods={"stitch": slowly}))
    try:
        wait(cluster, NAME, lambda _: at_work(cluster), timeout=10 * MINUTES)
        first = ranks(cluster)
        assert len(first) == RANKS
        assert {pod["spec"]["nodeName"] for pod in first} == {"node-1", "node-2"}

        victim = max(first, key=lambda pod: pod["metadata"]["name"])["metadata"]["name"]
        cluster.kubectl("exec", victim, "--", "sh", "-c", "kill -9 -1", check=False)
        began = time.monotonic()
        second = came_anew(cluster, first)
        print(f"from a rank that was killed to the next try: {time.monotonic() - began:.1f} s")

        wait(cluster, NAME, lambda _: at_work(cluster), timeout=4 * MINUTES)
        evicted = second[0]["metadata"]["name"]
        path = f"/api/v1/namespaces/{cluster.namespace}/pods/{evicted}/eviction"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted}}
        cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        began = time.monotonic()
        came_anew(cluster, second)
        print(f"from an eviction to the next try: {time.monotonic() - began:.1f} s")

        let_go = Gate(cluster, NAME, "trenchcoat.dev/stage=stitch")
        body = wait(cluster, NAME, succeeded, timeout=8 * MINUTES, watch=let_go)
        assert row(body, "collect")["attempt"] == 1
        stitch = row(body, "stitch")
        assert stitch["attempt"] == 3
        outcomes = [item.get("outcome", "") for item in stitch["attempts"]]
        assert outcomes[0] == "Failed" and outcomes.count("Failed") == 1, outcomes
        last = jobs_of(cluster, NAME, "stitch")[-1]
        assert last["spec"]["completionMode"] == "Indexed"
        assert row(body, "evaluate")["attempt"] == 1
        (evaluation,) = jobs_of(cluster, NAME, "evaluate")
        assert evaluation["spec"]["completionMode"] == "Indexed"
        assert ranks_that_completed(cluster, evaluation) == RANKS
        log = cluster.kubectl("logs", f"job/{last['metadata']['name']}", "--all-pods=true", "--tail=-1")
        assert "going on from step" in log

        def no_service() -> bool:
            return not cluster.get("services", "-l", f"trenchcoat.dev/name={NAME}")["items"]

        until(no_service, 120, "no gang is to come, and the Service is gone")
    finally:
        delete(cluster, NAME)
