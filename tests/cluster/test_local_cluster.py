"""The cluster that all of these tests run on is what it should be."""

import contextlib
import os
import signal
import time
from pathlib import Path

from demo.environment import Environment

from tests.cluster.conftest import NAME


def running(program: str, node: str) -> set[int]:
    """Processes of a program on a node of this cluster, by their ids here."""
    found = set()
    for entry in Path("/proc").iterdir():
        # Others end meanwhile.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ProcessLookupError):
            words = (entry / "cmdline").read_text().split("\0")
            if words[0] == program and any(f"/{NAME}/nodes/{node}/" in word for word in words):
                found.add(int(entry.name))
    return found


def test_what_ends_on_a_node_starts_again(environment: Environment) -> None:
    # Kubelet, which does end by itself, would come back without its claim to have a GPU.
    (before,) = running("kube-proxy", "node-2")
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (after := running("kube-proxy", "node-2") - {before}) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(after) == 1
