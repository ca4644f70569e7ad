"""The ranks of one stage as processes of this machine: started together, ended together.

torchrun does this too, but ends with 1 however a rank ended (findings/torchrun-hides-exit-codes.sh), and its
exit code is how a stage tells the operator what kind of failure it met.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import WITHOUT_ADAPTED_TEACHER, Stage

from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.runtime.stop import StopRequest

AFTER_FAILURE_SECONDS = 10.0
"""How long ranks may take to end once another has failed; they may wait for it in a collective operation."""
POLL_SECONDS = 0.2

# Which of several exit codes tells most: kinds of failures, then signals such as SIGKILL, then anything else.
_TOLD = (ExitCode.BAD_INPUT, ExitCode.DIVERGED, ExitCode.OUT_OF_MEMORY, ExitCode.STORE_UNAVAILABLE)
_ASKED = (ExitCode.PREEMPTED, -signal.SIGTERM)

_PROGRAMS = {Stage.ADAPT: Stage.STITCH}
"""Stages that another stage's program makes: by its artifact it knows which one it is."""


def stage_arguments(
    stage: Stage,
    spec_file: Path,
    *,
    store: Path | None,
    cria: int | None = None,
    without_adapted_teacher: bool = False,
) -> list[str]:
    """The arguments of the command `trenchcoat` for one process of a stage."""
    arguments = [stage.value, "--spec", str(spec_file)]
    if store is not None:
        arguments += ["--store", str(store)]
    if cria is not None:
        arguments += ["--cria", str(cria)]
    if without_adapted_teacher:
        arguments.append(WITHOUT_ADAPTED_TEACHER)
    return arguments


def program_module(stage: Stage) -> str:
    """The module whose `run` is a stage's program."""
    return f"trenchcoat_trainer.stages.{_PROGRAMS.get(stage, stage).value}"


class Process(Protocol):
    """What ranks need of a process, as `subprocess.Popen` and `forking.ForkedProcess` have it."""

    def poll(self) -> int | None:
        """Its exit code once it has ended, else None; negative for a signal."""

    def wait(self) -> int:
        """Wait for its end, and return the exit code."""

    def send_signal(self, number: int, /) -> None:
        """Send it a signal, unless it has ended."""

    def kill(self) -> None:
        """End it at once."""


class RankProcesses:
    """Processes that work together: when one fails, the others are ended."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = list(processes)
        self._asked = False
        self._deadline: float | None = None
        self._killed: set[int] = set()

    def poll(self) -> int | None:
        """The exit code that tells most once every process has ended, else None; negative for a signal."""
        codes = [process.poll() for process in self._processes]
        ended = {rank: code for rank, code in enumerate(codes) if code is not None}
        if len(ended) == len(codes):
            own = [code for rank, code in ended.items() if rank not in self._killed]
            return min(own, key=_weight, default=int(ExitCode.FAILED))
        failed = [code for code in ended.values() if code != ExitCode.OK]
        if failed:
            self.stop()
        if any(code not in _ASKED for code in failed):
            self._end_by_deadline()
        return None

    def stop(self) -> None:
        """Ask every process, once, to save a checkpoint and end.

        A second signal would find Python on its way out, without its handler, and hide the exit code.
        """
        if self._asked:
            return
        self._asked = True
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every process at once."""
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                process.kill()
                process.wait()
                self._killed.add(rank)

    def _end_by_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + AFTER_FAILURE_SECONDS
        elif time.monotonic() > self._deadline:
            self.kill()


def _weight(code: int) -> tuple[int, int]:
    if code in _TOLD:
        return 0, _TOLD.index(ExitCode(code))
    if code == ExitCode.OK:
        return 4, 0
    if code in _ASKED:
        return 3, -code
    return (1, code) if code < 0 else (2, code)


def start_ranks(
    command: Sequence[str],
    count: int,
    *,
    environment: Mapping[str, str],
    node: int = 0,
    nodes: int = 1,
    outputs: Sequence[IO[bytes]] | None = None,
) -> RankProcesses:
    """Start the ranks of this machine; they find each other through the variables that torchrun sets, too.

    Args:
        command: What each of them runs.
        count: Ranks of this machine; every machine has as many.
        environment: Variables of all of them. With several machines MASTER_ADDR and MASTER_PORT must be among
            them; for one alone a port of the loopback interface is taken.
        node: Number of this machine.
        nodes: Number of machines.
        outputs: A file for each rank's output; this process's own by default.
    """
    processes = [
        subprocess.Popen(  # noqa: S603  (our own program)
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=outputs[local] if outputs else None,
            stderr=subprocess.STDOUT if outputs else None,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them
        )
        for local, variables in enumerate(rank_environments(count, environment, node=node, nodes=nodes))
    ]
    return RankProcesses(processes)


def rank_environments(
    count: int, environment: Mapping[str, str], *, node: int = 0, nodes: int = 1
) -> list[dict[str, str]]:
    """The variables of each rank of this machine: `environment`, and what `start_ranks` adds."""
    world_size = count * nodes
    if world_size == 1:
        return [dict(environment)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if nodes == 1 else {}
    return [
        {
            **environment,
            **meeting,
            "RANK": str(node * count + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(count),
        }
        for local in range(count)
    ]


def run_ranks(command: Sequence[str], count: int, *, stop: StopRequest) -> int:
    """Run the ranks of this pod to their end and return the exit code; a wish to stop is passed on to them.

    PET_NODE_RANK and PET_NNODES, which the cluster's operators set, say which of how many pods this is.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    ranks = start_ranks(
        command,
        count,
        environment={"OMP_NUM_THREADS": str(threads), **os.environ},  # a rank would take every core otherwise
        node=int(os.environ.get("PET_NODE_RANK", "0")),
        nodes=int(os.environ.get("PET_NNODES", "1")),
    )
    try:
        while (code := ranks.poll()) is None:
            if stop.requested:
                ranks.stop()
            time.sleep(POLL_SECONDS)
    finally:
        ranks.kill()
    # As a shell does: a program that a signal ended has 128 more.
    return code if code >= 0 else 128 - code
