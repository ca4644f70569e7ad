"""One stage as processes of this machine, with logs and a GPU of their own."""

import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.stages import Stage

from trenchcoat_trainer.errors import BadInputError, StoreError
from trenchcoat_trainer.local.schedule import visible_devices
from trenchcoat_trainer.reporting.writing import ENV_REPORT, NEVER
from trenchcoat_trainer.runtime.forking import ForkedProcess, ForkServer
from trenchcoat_trainer.runtime.processes import (
    RankProcesses,
    program_module,
    rank_environments,
    stage_arguments,
)
from trenchcoat_trainer.runtime.termination import ENV_TERMINATION_LOG

logger = logging.getLogger(__name__)

SERVER_LOG = "fork-server.log"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers, such as Lustre mounted so."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(slots=True)
class StageProcesses:
    """The processes of one stage, one for each rank, and where their output goes."""

    artifact: Artifact
    logs: Path
    forked: Sequence[ForkedProcess]
    ranks: RankProcesses
    """The same, as those that work together."""
    outputs: list[IO[bytes]]
    gpu: int | None = None
    """The one GPU that it has to itself; None where it uses them all, or none."""
    started: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """Exit code of the stage once every process has ended, else None."""
        code = self.ranks.poll()
        if code is not None:
            for output in self.outputs:
                output.close()
        return code

    def stop(self) -> None:
        """Ask every process to save a checkpoint and end."""
        self.ranks.stop()

    def kill(self) -> None:
        """End every process at once."""
        self.ranks.kill()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def failure(self, code: int) -> str:
        """Why the stage failed, in its own words if it left any."""
        file = termination_log(self.logs, self.artifact)
        if file.exists() and (message := file.read_text().strip()):
            return message
        see = f"left no message; see {self.logs / self.artifact.name}*.log"
        if code >= 0:
            return f"it ended with exit code {code} and {see}"
        killed = ", as the kernel does where memory has run out," if code == -signal.SIGKILL else ""
        return f"signal {-code} ended it{killed} and {see}, and {self.logs / SERVER_LOG} of what made it"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where the stages of one run find their spec and leave what they make."""

    spec: Path
    """The Trenchcoat in YAML."""
    store: Path
    """The folder that stands for the store."""
    logs: Path
    """An existing folder for what stages print."""


@contextmanager
def open_logs(store: Path) -> Iterator[Path]:
    """The folder below a store for what stages print: made, tried, and one run's at a time.

    Two runs would write into each other's logs, and into artifacts that both make.

    Raises:
        BadInputError: another run has it.
        StoreError: it cannot be written to.
    """
    logs = store / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / SERVER_LOG).touch()
        folder = os.open(logs, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(store, error) from error
    try:
        _lock(folder, store)
        yield logs
    finally:
        os.close(folder)


def _lock(folder: int, store: Path) -> None:
    """Lock an open folder of a store until it is closed, however this process ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadInputError(
            f"another `trenchcoat run` is at work in {store}: wait until it has ended, or name another "
            "folder with --store"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _unwritable(store, error) from error
        logger.warning("%s is on a file system without locks: let no other run use it meanwhile", store)


def _unwritable(store: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{error.filename or store} cannot be written to ({error.strerror}): "
        "name with --store a folder of yours that has free space"
    )


def termination_log(logs: Path, artifact: Artifact) -> Path:
    """Where the rank that fails first writes why."""
    return logs / f"{artifact.name}.failure"


@dataclass(frozen=True, slots=True)
class StageStarter:
    """Starts the stages of one run."""

    files: RunFiles
    server: ForkServer
    """Makes the processes."""

    def start(
        self,
        artifact: Artifact,
        *,
        workers: int,
        threads: int,
        gpu: int | None = None,
        arguments: Sequence[str] = (),
    ) -> StageProcesses:
        """Start the processes of a stage; output goes to the run's logs.

        Args:
            artifact: What the stage makes.
            workers: Number of ranks.
            threads: CPU threads of each rank.
            gpu: The only GPU that the stage may use; None for all.
            arguments: Further arguments of the stage's program.

        Raises:
            StoreError: its logs cannot be written.
        """
        files = self.files
        failure = termination_log(files.logs, artifact)
        environment = dict(os.environ) | {
            "OMP_NUM_THREADS": str(threads),
            ENV_TERMINATION_LOG: str(failure),
            ENV_REPORT: NEVER,  # the run writes it, for all its stages
        }
        if gpu is not None:
            environment[_VISIBLE] = visible_devices(gpu, os.environ.get(_VISIBLE))
        cria = None if artifact.cria is None else artifact.cria.index
        if artifact.boundary is not None:  # what leaves the Cria before it
            cria = artifact.boundary - 1
        suffixes = [f".{rank}" for rank in range(workers)] if workers > 1 else [""]
        try:
            failure.unlink(missing_ok=True)
            outputs: list[IO[bytes]] = [
                (files.logs / f"{artifact.name}{suffix}.log").open("wb") for suffix in suffixes
            ]
        except OSError as error:
            raise _unwritable(files.store, error) from error
        command = [*stage_arguments(artifact.stage, files.spec, store=files.store, cria=cria), *arguments]
        ranks = [
            self.server.start(
                "trenchcoat_trainer.cli:main",
                command,
                modules=modules_of(artifact.stage),
                environment=variables,
                output=output,
            )
            for variables, output in zip(rank_environments(workers, environment), outputs, strict=True)
        ]
        return StageProcesses(artifact, files.logs, ranks, RankProcesses(ranks), outputs, gpu)


def modules_of(stage: Stage) -> list[str]:
    """What a stage's process is to find loaded."""
    return ["trenchcoat_trainer.cli", "trenchcoat_trainer.program", program_module(stage)]


def all_modules() -> list[str]:
    """What stages load, those that run first before the others."""
    return list(dict.fromkeys(module for stage in Stage for module in modules_of(stage)))
