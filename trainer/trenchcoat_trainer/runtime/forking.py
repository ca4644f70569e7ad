"""Asking a fork server for processes: they start at once, for what they import is loaded already."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from trenchcoat_trainer.runtime.fork_server import REQUEST

_PROGRAM = "import sys; from trenchcoat_trainer.runtime.fork_server import main; sys.exit(main(sys.argv[1:]))"
"""Not a module of its own: processes that multiprocessing spawns import the main module of the one before."""
_ENVIRONMENT = {
    # Read when torch is loaded, which the server does: idle threads would spin, where processes share cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Read by glibc when a process starts. Tensors of some megabytes come and go all the time: their pages
    # would be given back, asked for again and zeroed each time. Those of larger ones still are.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    # Threads do not survive a fork: there should be none.
    "OPENBLAS_NUM_THREADS": "1",
    # Asked for GPUs, torch would else initialise CUDA, which does not survive a fork either.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_GONE = (BrokenPipeError, ConnectionResetError)


class ForkedProcess:
    """A process that a fork server made; what `subprocess.Popen` is to others."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._told = b""
        self._pid: int | None = None
        self._code: int | None = None

    @property
    def pid(self) -> int | None:
        """Its id; None where the server died before it was made."""
        while self._pid is None and self._code is None:
            self._hear()
        return self._pid

    def fileno(self) -> int:
        """Readable once the server tells more of it."""
        return self._channel.fileno()

    def poll(self) -> int | None:
        """Its exit code once it has ended, else None; negative for a signal."""
        while self._code is None and self._hear(socket.MSG_DONTWAIT):
            pass
        return self._code

    def wait(self) -> int:
        """Wait for its end, and return the exit code."""
        while self._code is None:
            self._hear()
        return self._code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        pid = self.pid
        if pid is not None and self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _hear(self, flags: int = 0) -> bool:
        """Take what the server tells next; returns whether it told anything."""
        try:
            heard = self._channel.recv(64, flags)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            heard = b""
        self._told += heard
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            if self._pid is None:
                self._pid = int(line)
            else:
                self._code = int(line)
        if not heard and self._code is None:
            self._end_orphan()
        if self._code is not None:
            self._channel.close()
        return bool(heard)

    def _end_orphan(self) -> None:
        """End it as its server has: nobody would learn how it ends, and it could meet its successor."""
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._code = -int(signal.SIGKILL)


def wait_for_any(processes: Iterable[ForkedProcess], seconds: float) -> None:
    """Wait until one of these processes ends, at most so long; `poll` then knows of it."""
    running = [process for process in processes if process.poll() is None]
    select.select(running, [], [], seconds)


class ForkServer:
    """A fork server of this process; it starts when entered, and is started anew should it have died."""

    def __init__(self, modules: Iterable[str], log: Path) -> None:
        """Take what is to be known.

        Args:
            modules: What the server imports while nothing is asked for; what matters most comes first.
            log: The file for what it prints itself.
        """
        self._modules = list(modules)
        self.log = log
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._ensure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server, with which those of its processes that are left are asked to end (SIGTERM)."""
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        modules: Sequence[str] = (),
        environment: Mapping[str, str],
        output: IO[bytes],
    ) -> ForkedProcess:
        """Start a process.

        Args:
            program: MODULE:FUNCTION, a function of the arguments that returns the exit code.
            arguments: For it.
            modules: What the server imports before, so that later processes find it loaded too.
            environment: All variables of the process. Of OMP_NUM_THREADS torch is told.
            output: A file for what it prints.
        """
        control = self._ensure()
        request: dict[str, Any] = {
            "program": program,
            "arguments": list(arguments),
            "modules": list(modules),
            "environment": dict(environment),
        }
        ours, theirs = socket.socketpair()
        with theirs, suppress(*_GONE):  # then the process tells how it ended: as its server did
            socket.send_fds(control, [REQUEST], [theirs.fileno(), output.fileno()])
            ours.sendall(json.dumps(request).encode() + b"\n")
        return ForkedProcess(ours)

    @property
    def pid(self) -> int | None:
        """The server's own id; None while there is none."""
        return self._server.pid if self._server is not None else None

    def _ensure(self) -> socket.socket:
        if self._control is not None and self._server is not None and self._server.poll() is None:
            return self._control
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        with theirs, self.log.open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603  (our own program)
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), *self._modules],
                env=_ENVIRONMENT | dict(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return self._control
