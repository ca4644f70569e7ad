"""One stage as processes of this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.local.schedule import visible_devices
from trenchcoat_trainer.stages.program import ENV_TERMINATION_LOG

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(slots=True)
class StageProcesses:
    """The processes of one stage, one for each rank, and where their output goes."""

    artifact: Artifact
    logs: Path
    processes: list[subprocess.Popen[bytes]]
    outputs: list[IO[bytes]]
    gpu: int | None = None
    """The one GPU that it has to itself; None where it uses them all, or none."""
    started: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """Exit code of the stage once every process has ended, else None.

        When one process fails the others are stopped: they would wait for it.
        """
        codes = [process.poll() for process in self.processes]
        if any(code not in (None, ExitCode.OK) for code in codes):
            self.stop()
        if any(code is None for code in codes):
            return None
        for output in self.outputs:
            output.close()
        # A process that was stopped because of another's failure is not the one to report.
        failures = [code for code in codes if code != ExitCode.OK]
        told = [code for code in failures if code is not None and code > 0 and code != ExitCode.PREEMPTED]
        return next(iter(told or failures), int(ExitCode.OK))

    def stop(self) -> None:
        """Ask every process to save a checkpoint and end."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every process at once."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def failure(self) -> str:
        """Why the stage failed, in its own words."""
        for rank in range(len(self.processes)):
            file = self._termination_log(rank)
            if file.exists() and (message := file.read_text().strip()):
                return message
        return f"it left no message; see {self.logs / self.artifact.name}*.log"

    def _termination_log(self, rank: int) -> Path:
        return termination_log(self.logs, self.artifact, rank)


def termination_log(logs: Path, artifact: Artifact, rank: int) -> Path:
    """Where a rank writes why it failed."""
    return logs / f"{artifact.name}.{rank}.failure"


def start(
    artifact: Artifact,
    *,
    spec_file: Path,
    store: Path,
    logs: Path,
    workers: int,
    threads: int,
    gpu: int | None = None,
) -> StageProcesses:
    """Start the processes of a stage; their output goes to `logs`.

    Args:
        artifact: What the stage makes.
        spec_file: The Trenchcoat in YAML.
        store: The folder that stands for the store.
        logs: An existing folder.
        workers: Number of ranks.
        threads: CPU threads of each rank.
        gpu: The only GPU that the stage may use; None for all.
    """
    command = [sys.executable, "-m", "trenchcoat_trainer", artifact.stage.value]
    command += ["--spec", str(spec_file), "--store", str(store)]
    if artifact.stage is Stage.CRIA and artifact.cria is not None:
        command += ["--cria", str(artifact.cria.index)]
    port = free_port() if workers > 1 else 0
    processes, outputs = [], []
    for rank in range(workers):
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = str(threads)
        if gpu is not None:
            environment[_VISIBLE] = visible_devices(gpu, os.environ.get(_VISIBLE))
        failure = termination_log(logs, artifact, rank)
        failure.unlink(missing_ok=True)
        environment[ENV_TERMINATION_LOG] = str(failure)
        if workers > 1:
            environment.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(workers),
                LOCAL_WORLD_SIZE=str(workers),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        suffix = f".{rank}" if workers > 1 else ""
        output = (logs / f"{artifact.name}{suffix}.log").open("wb")
        outputs.append(output)
        processes.append(
            subprocess.Popen(  # noqa: S603  (our own program)
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which then stops the stages
            )
        )
    return StageProcesses(artifact, logs, processes, outputs, gpu)


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
