"""The process that has imported what stages import, and forks one process for each that is asked for.

Importing torch and transformers takes most of a small stage's time; a fork has them at once, and shares their
memory. Each is a process as any other: a session, an environment, an output and an exit code of its own. The
server computes nothing and must never touch a GPU, for CUDA does not survive a fork. `forking` is what asks.
Once that is gone, however it ended, the server ends, and the kernel asks its processes to end as well.

A request comes as a channel, with the file for the output, through the control socket; on the channel follows
one line of JSON. The server answers there with the process's id and, once it has ended, its exit code.
"""

import atexit
import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

REQUEST = b"+"
"""What is sent with the two descriptors of a request: channel and output."""
_PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""


def main(arguments: Sequence[str]) -> int:
    """Serve until the control socket is closed.

    Args:
        arguments: Descriptor of the control socket, then the modules to import while nothing is asked for.

    Returns:
        In the server 0; in a process that it forked what the program returned, that exits with it.
    """
    leaving = _Leaving()
    atexit.register(leaving)  # before what is imported registers anything, and so called after all of that
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    gc.disable()  # it does nothing but import what stays: `importing` says what that saves
    server = _Server(socket.socket(fileno=int(arguments[0])), list(arguments[1:]))
    request = server.serve()
    if request is None:
        return 0
    leaving.code = _run(request)
    return leaving.code


@dataclass(slots=True)
class _Leaving:
    """Ends a process whose program has returned, once its threads have ended and the rest at exit is done.

    Python would take all modules apart, which serves nothing here and takes half a second of every stage.
    """

    code: int | None = None
    """Its exit code; None while it leaves as Python does."""

    def __call__(self) -> None:
        if self.code is None:
            return
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)  # what libraries print
        os._exit(self.code)


class _Server:
    def __init__(self, control: socket.socket, modules: list[str]) -> None:
        self._control = control
        self._modules = modules
        self._children: dict[int, _Child] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def serve(self) -> dict[str, Any] | None:
        """Fork what is asked for; returns the request in each process that is forked, None at the end."""
        while True:
            # What is asked for comes first; importing fills the time between.
            wait = 0 if self._modules else None
            ready, _, _ = select.select([self._control, self._woken], [], [], wait)
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            elif self._control in ready:
                message, descriptors, _, _ = socket.recv_fds(self._control, len(REQUEST), 2)
                if not message:
                    return None
                request = self._fork(*descriptors)
                if request is not None:
                    return request
            elif self._modules:
                _import(self._modules.pop(0))

    def _fork(self, channel_number: int, output: int) -> dict[str, Any] | None:
        channel = socket.socket(fileno=channel_number)
        with channel.makefile("rb") as lines:
            line = lines.readline()
        if not line.endswith(b"\n"):  # who asked is gone
            channel.close()
            os.close(output)
            return None
        request: dict[str, Any] = json.loads(line)
        for module in request["modules"]:
            _import(module)
        gc.freeze()  # else the first collection of every child copies what it shares with this process
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _end_with(server)
            self._leave()
            channel.close()
            gc.enable()
            _become(request["environment"], output)
            return request
        os.close(output)
        self._children[pid] = _Child(channel, " ".join(request["arguments"]))
        _tell(channel, pid)
        return None

    def _leave(self) -> None:
        """Let go, in a child, of what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for child in self._children.values():
            child.channel.close()
        os.close(self._woken)
        os.close(self._wake)

    def _reap(self) -> None:
        for pid in list(self._children):
            found, status, used = os.wait4(pid, os.WNOHANG)
            if found:
                child, code = self._children.pop(pid), os.waitstatus_to_exitcode(status)
                logger.info(
                    "%d ended with %d: %.1f s, %.1f s of CPU, %.2f GB: %s",
                    pid,
                    code,
                    time.monotonic() - child.began,
                    used.ru_utime + used.ru_stime,
                    used.ru_maxrss * 1024 / 1e9,
                    child.what,
                )
                with child.channel as channel:
                    _tell(channel, code)


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that was forked and has not ended."""

    channel: socket.socket
    what: str
    began: float = field(default_factory=time.monotonic)


def _tell(channel: socket.socket, number: int) -> None:
    try:
        channel.sendall(b"%d\n" % number)
    except BrokenPipeError:
        logger.info("nobody asks for %d any more", number)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception:  # the program that needs it fails for it again, with its own message
        logger.exception("%s cannot be imported", module)


def _end_with(server: int) -> None:
    """Have this process asked to end once its server has: nobody would wait for it, or stop it, any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != server:  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


def _become(environment: dict[str, str], output: int) -> None:
    """Make this process one of its own."""
    os.setsid()  # Ctrl-C at a terminal reaches who asked alone
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    torch = sys.modules.get("torch")
    threads = environment.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdigit():  # which torch has read long ago
        torch.set_num_threads(int(threads))


def _run(request: dict[str, Any]) -> int:
    """Call the program, MODULE:FUNCTION, with its arguments."""
    module, function = request["program"].split(":")
    code: int = getattr(importlib.import_module(module), function)(request["arguments"])
    return code
