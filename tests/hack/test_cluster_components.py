"""Components of hack/cluster that another process builds."""

import threading
from pathlib import Path

import pytest
from local_cluster import components

from tests.waiting import until


def test_waiting_ends_when_the_last_component_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("local_cluster.golang.program", lambda: "go")
    monkeypatch.setattr("local_cluster.golang.version", lambda go: "go1.25.0")

    def build(name: str) -> None:
        components.folder_of(name).mkdir(parents=True)
        (components.folder_of(name) / ".complete").touch()

    waiting = threading.Thread(target=components.wait, args=(["etcd", "helm"],), daemon=True)
    waiting.start()
    build("etcd")
    waiting.join(1.5)
    assert waiting.is_alive()
    build("helm")
    until(lambda: not waiting.is_alive(), 120, "it sees the second one")
