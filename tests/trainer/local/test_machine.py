"""What a local run finds out of its machine, by a process that ends."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from trenchcoat_trainer.errors import BadInputError, StageError
from trenchcoat_trainer.local import machine
from trenchcoat_trainer.local.machine import MachineSearch
from trenchcoat_trainer.runtime.cores import usable_cores
from trenchcoat_trainer.runtime.forking import ForkServer
from trenchcoat_trainer.runtime.gpus import ENV_DEVICE


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    with ForkServer([], tmp_path / "server.log") as server:
        yield server


def test_it_has_the_gpus_that_torch_sees(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_DEVICE, raising=False)
    with MachineSearch(server) as search:
        found = search.machine
    assert found.gpus == torch.cuda.device_count()
    assert (found.gpu_memory > 0) == (found.gpus > 0)
    assert found.cores == usable_cores()


def test_it_has_the_cores_that_it_may_use(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_DEVICE, "cpu")
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        with MachineSearch(server) as search:
            assert search.machine.cores == 1
    finally:
        os.sched_setaffinity(0, usable)


def test_where_the_cpu_is_meant_nobody_is_asked(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_DEVICE, "cpu")
    monkeypatch.setattr(server, "start", lambda *_, **__: pytest.fail("nobody needs to look"))
    with MachineSearch(server) as search:
        assert search.is_done and search.machine.gpus == 0
    monkeypatch.setenv(ENV_DEVICE, "tpu")
    with pytest.raises(BadInputError, match="'tpu': set it to cpu"):
        MachineSearch(server)


NEVER_DONE = """
import time

def tell_gpus(arguments):
    while True:
        time.sleep(1)
"""


def test_a_search_that_dies_is_told_apart_from_gpus_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENV_DEVICE, raising=False)
    (tmp_path / "never_done.py").write_text(NEVER_DONE)  # by the time that its server is killed
    monkeypatch.setattr(machine, "_DEVICES", "never_done")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    with (
        ForkServer([], tmp_path / "server.log") as server,
        MachineSearch(server) as search,
        pytest.raises(StageError, match=rf"counts this machine's GPUs was ended by signal 9.*{server.log}"),
    ):
        os.kill(server.pid, signal.SIGKILL)
        search.machine  # noqa: B018


def test_what_keeps_gpus_from_being_asked_is_told(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENV_DEVICE, raising=False)
    monkeypatch.setattr(machine, "_DEVICES", "no_such_module")
    with (
        MachineSearch(server) as search,
        pytest.raises(StageError, match=r"GPUs cannot be used \(ModuleNotFoundError: No module named"),
    ):
        search.machine  # noqa: B018
