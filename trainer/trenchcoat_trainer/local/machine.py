"""What the machine of a local run has."""

import importlib.util
import json
import os
import tempfile
from types import TracebackType
from typing import IO, Self

from trenchcoat_trainer.errors import StageError
from trenchcoat_trainer.local.schedule import Machine
from trenchcoat_trainer.runtime.cores import usable_cores
from trenchcoat_trainer.runtime.forking import ForkedProcess, ForkServer
from trenchcoat_trainer.runtime.gpus import is_cpu_meant

_DEVICES = "trenchcoat_trainer.runtime.devices"


class MachineSearch:
    """Looks for GPUs while stages run that need none.

    They are counted by a process that ends, for who has seen them keeps some of their memory; a driver that
    nobody uses takes seconds to answer.
    """

    def __init__(self, server: ForkServer) -> None:
        """Begin.

        Raises:
            BadInputError: TRENCHCOAT_DEVICE is neither empty nor cpu.
            ModuleNotFoundError: torch is not installed.
        """
        if importlib.util.find_spec("torch") is None:  # nothing here loads it, and every stage would fail
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        self.cores = usable_cores()
        self._server_log = server.log
        self._machine = Machine(gpus=0, cores=self.cores) if is_cpu_meant() else None
        self._told: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed at the end)
        self._asked: ForkedProcess | None = None
        if self._machine is None:
            self._asked = server.start(
                f"{_DEVICES}:tell_gpus",
                [],
                modules=[_DEVICES],
                environment=dict(os.environ),
                output=self._told,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what has not answered."""
        if self._asked is not None:
            self._asked.kill()
        self._told.close()

    @property
    def is_done(self) -> bool:
        """Whether `machine` need not wait."""
        return self._machine is not None or self._asked is None or self._asked.poll() is not None

    @property
    def machine(self) -> Machine:
        """What was found; waits for it.

        Raises:
            StageError: GPUs cannot be asked for; with what was told.
        """
        if self._machine is None and self._asked is not None:
            self._machine = self._read(self._asked.wait())
        if self._machine is None:
            raise RuntimeError("nobody was asked for GPUs")
        return self._machine

    def _read(self, code: int) -> Machine:
        self._told.seek(0)
        lines = self._told.read().decode(errors="replace").strip().splitlines() or [""]
        if code < 0:
            raise StageError(
                f"the process that counts this machine's GPUs was ended by signal {-code}, or what made it "
                f"was: see {self._server_log}"
            )
        if code != 0:
            raise StageError(f"this machine's GPUs cannot be used ({lines[-1] or f'exit code {code}'})")
        memory = json.loads(lines[-1])
        return Machine(gpus=len(memory), cores=self.cores, gpu_memory=min(memory, default=0))
