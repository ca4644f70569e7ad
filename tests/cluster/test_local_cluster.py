"""The cluster that all of these tests run on is what it should be."""

import os
import signal

from demo.environment import Environment
from local_cluster.namespaces import processes

from tests.cluster.conftest import NAME
from tests.waiting import until


def running(program: str, node: str) -> set[int]:
    """Processes of a program on a node of this cluster."""
    folder = f"/{NAME}/nodes/{node}/"
    return set(processes(lambda words: words[0] == program and any(folder in word for word in words)))


def test_what_ends_on_a_node_starts_again(environment: Environment) -> None:
    # Kubelet, which does end by itself, would come back without its claim to have a GPU.
    (before,) = running("kube-proxy", "node-2")
    os.kill(before, signal.SIGKILL)
    assert len(until(lambda: running("kube-proxy", "node-2") - {before}, 120, "it starts again")) == 1
