"""A node is lost in the middle of work: it goes on elsewhere or later, and no failure counts."""

import contextlib
import subprocess
from collections.abc import Iterator

import pytest
from demo.environment import BUCKET, CLUSTER, Environment
from demo.inputs import client
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage

from tests.cluster.conftest import NAME as CLUSTER_NAME
from tests.cluster.held import SLOWLY, Gate, prepared
from tests.cluster.objects import (
    Body,
    apply,
    cria,
    delete,
    even_if_stalled,
    events,
    example,
    pods,
    row,
    wait,
)
from tests.waiting import until

NAME = "bereaved"
NODE = "node-2"
"""The other one has MinIO and the training operator."""
MINUTES = 60.0
LONG = 2016 * 512
"""Tokens whose collection goes on for several times as long as it takes to see that it began and to kill a
node: eight objects of hidden states, and its step is the number of those that are done."""
LASTING = 290 * 512
"""Tokens whose Crias go on for minutes where each step takes a second more."""
OFTEN = """
import trenchcoat_trainer.runtime.training as training
training.CHECKPOINT_SECONDS = 5.0
"""
# A minute less than by default until the cluster ends pods of a node that does not answer.
SHORT = [
    {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 5,
    }
    for taint in ("not-ready", "unreachable")
]


class Machine:
    """The node that will be lost."""

    def __init__(self) -> None:
        self._down = False

    def lose(self) -> None:
        self._down = True
        self._cluster("kill-node")

    def give_back(self) -> None:
        if self._down:
            self._cluster("start-node")
            self._down = False

    def _cluster(self, word: str) -> None:
        subprocess.run([str(CLUSTER), "--name", CLUSTER_NAME, word, NODE], check=True)


def bound(environment: Environment, stage: str) -> list[Body]:
    """Pods of a stage that were given to the node that will be lost."""
    found = pods(environment, NAME, f"trenchcoat.dev/stage={stage}")
    return [pod for pod in found if pod["spec"].get("nodeName") == NODE]


def on_the_node(environment: Environment, stage: str) -> list[Body]:
    """Those that run."""
    return [
        pod
        for pod in bound(environment, stage)
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]


def reasons(environment: Environment) -> list[str]:
    return [event["reason"] for event in events(environment, NAME)]


def has_checkpoint(environment: Environment, body: Body, key: str) -> bool:
    """Whether a Cria has saved what it would go on from."""
    prefix = Artifacts(Trenchcoat.from_object(body).spec).at(Stage.CRIA, key).checkpoint_prefix
    with environment.store_address() as address:
        found = client(environment, address).list_objects(bucket_name=BUCKET, prefix=prefix, recursive=True)
        # Beside it stands how long it has computed, from the first second on.
        return any(str(item.object_name).endswith(".safetensors") for item in found)


def has_saved_there(environment: Environment, body: Body) -> list[int]:
    """Crias that run on the node that will be lost and have saved what they would go on from."""
    rows = body.get("status", {}).get("crias", [])
    there = [item for item in rows if item.get("node") == NODE and item["state"] == "Running"]
    return [item["index"] for item in there if has_checkpoint(environment, body, item["key"])]


@contextlib.contextmanager
def bereaved(environment: Environment, tokens: int, cria: Body | None = None) -> Iterator[None]:
    """A Trenchcoat that may not fail once; `cria` is what pods of Crias have."""
    body = example(
        NAME,
        data__tokens=tokens,
        layersPerCria=6,
        criaLora__epochs=0,
        scheduling={"maxAttempts": 1},
        pods={"collect": {"tolerations": SHORT}, "cria": {"tolerations": SHORT, **(cria or {})}},
    )
    apply(environment, body)
    try:
        yield
    finally:
        delete(environment, NAME)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The node, there again afterwards."""
    machine = Machine()
    try:
        yield machine
    finally:
        machine.give_back()


def test_a_gang_that_loses_a_node_starts_again_when_it_finds_room(
    store: Environment, machine: Machine
) -> None:
    with bereaved(store, LONG):
        wait(store, NAME, lambda body: row(body, "collect").get("step", 0) > 0, timeout=3 * MINUTES)
        assert on_the_node(store, "collect")
        machine.lose()
        # What failed for it may stay, for its log; what is left of the cluster has no room for two.
        even_if_stalled(
            store,
            NAME,
            lambda body: not bound(store, "collect") and row(body, "collect").get("waitingReason") == "Gpu",
            timeout=5 * MINUTES,
        )
        assert "NodeLost" in reasons(store)
        machine.give_back()
        collected = even_if_stalled(
            store, NAME, lambda body: row(body, "collect").get("state") == "Succeeded", timeout=5 * MINUTES
        )
        collect = row(collected, "collect")
        assert collect["attempt"] == 2
        assert {item.get("outcome", "") for item in collect["attempts"]} <= {"", "Preempted", "Succeeded"}
        assert "AttemptsExhausted" not in reasons(store)


def test_a_cria_on_a_lost_node_goes_on_elsewhere_from_its_checkpoint(
    store: Environment, machine: Machine
) -> None:
    with prepared(store, "slow-and-often", OFTEN + SLOWLY) as settings, bereaved(store, LASTING, settings):
        there: list[int] = []

        def has_saved(body: Body) -> bool:
            there[:] = has_saved_there(store, body)
            return bool(there)

        wait(store, NAME, has_saved, timeout=5 * MINUTES)
        (index,) = there
        assert on_the_node(store, "cria")
        machine.lose()
        other, again = (Gate(store, NAME, f"trenchcoat.dev/cria{which}{index}") for which in ("!=", "="))

        def is_over(body: Body) -> bool:
            other(body)  # which has the only GPU that is left
            if cria(body, index).get("attempt", 0) > 1:
                again(body)
            return cria(body, index).get("state") == "Succeeded"

        body = even_if_stalled(store, NAME, is_over, timeout=8 * MINUTES)
        assert cria(body, index)["node"] == "node-1"
        assert cria(body, index)["lastFailure"].startswith("Preempted: ")
        assert "NodeLost" in reasons(store)
        assert went_on(store, index)


def went_on(environment: Environment, index: int) -> bool:
    """Whether the pod of a Cria that came to its end began at a checkpoint."""

    def ended() -> list[Body]:  # the manifest says that it is done; its pod ends a moment later
        found = pods(environment, NAME, "trenchcoat.dev/stage=cria", f"trenchcoat.dev/cria={index}")
        return [pod for pod in found if pod["status"]["phase"] == "Succeeded"]

    (pod,) = until(ended, 2 * MINUTES, "its pod ends")
    return "going on from step" in environment.kubectl("logs", pod["metadata"]["name"], "--tail=-1")
