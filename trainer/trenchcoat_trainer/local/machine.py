"""What the machine of a local run has."""

import importlib.util
import json
import os
import tempfile

from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.local.schedule import Machine
from trenchcoat_trainer.runtime.forking import ForkServer
from trenchcoat_trainer.runtime.gpus import is_cpu_meant

_DEVICES = "trenchcoat_trainer.runtime.devices"


def find_machine(server: ForkServer) -> Machine:
    """Look; GPUs are counted by a process that ends, for who has seen them keeps some of their memory.

    Raises:
        BadInputError: TRENCHCOAT_DEVICE is neither empty nor cpu.
        ModuleNotFoundError: torch is not installed.
        StageError: GPUs cannot be asked for; with what was told.
    """
    if importlib.util.find_spec("torch") is None:  # nothing here loads it, and every stage would fail
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    cores = os.cpu_count() or 1
    if is_cpu_meant():
        return Machine(gpus=0, cores=cores)
    with tempfile.TemporaryFile() as told:
        code = server.start(
            f"{_DEVICES}:tell_gpus", [], modules=[_DEVICES], environment=dict(os.environ), output=told
        ).wait()
        told.seek(0)
        lines = told.read().decode(errors="replace").strip().splitlines() or [""]
    if code != 0:
        raise StageError(f"this machine's GPUs cannot be used ({lines[-1] or f'exit code {code}'})")
    memory = json.loads(lines[-1])
    return Machine(gpus=len(memory), cores=cores, gpu_memory=min(memory, default=0))
