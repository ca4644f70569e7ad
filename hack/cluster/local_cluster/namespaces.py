"""Start, find, enter and kill process 1 of a set of namespaces."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .shell import Failure, wait_for

INIT = Path(__file__).with_name("init.py")
UNSHARE = ["unshare", "--pid", "--mount", "--net", "--fork", "--kill-child"]
HIERARCHIES = Path("/sys/fs/cgroup")


def outside(marker: str) -> list[int]:
    """Pids of the `unshare` processes with that marker, found by command line: no pid file to go stale."""
    return processes(lambda words: words[0] == "unshare" and marker in words)


def clients(kubeconfig: Path) -> list[int]:
    """Pids of programs told by command line to use that kubeconfig: a killed `up` may leave one waiting."""
    return processes(lambda words: f"--kubeconfig={kubeconfig}" in words)


def processes(wanted: Callable[[list[str]], bool]) -> list[int]:
    """Pids, as the host sees them, of the programs whose command line is wanted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if wanted(words):
                found.append(int(entry.name))
    return found


def inside(marker: str) -> int | None:
    """Pid, as the host sees it, of process 1 within; None if there is none."""
    for pid in outside(marker):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children:
                return int(children[0])
    return None


def enter(pid: int, argv: Sequence[str]) -> list[str]:
    """A command line that runs `argv` in the namespaces of `pid`."""
    return ["nsenter", "-t", str(pid), "-m", "-n", "-p", "--", *argv]


def spawn(pid: int | None, argv: Sequence[str], log: Path, path: str | None = None) -> None:
    """Start a program in the background, in the namespaces of `pid` or here, its output appended to `log`.

    A shell starts it and leaves, so that process 1 of the namespaces becomes its parent.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    script = f"setsid {shlex.join(argv)} </dev/null >>{shlex.quote(str(log))} 2>&1 &"
    command = ["sh", "-c", script]
    env = {"PATH": path or os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8"}
    quiet = subprocess.DEVNULL
    subprocess.run(enter(pid, command) if pid else command, env=env, stdin=quiet, stdout=quiet, check=True)


def serve(pid: int, argv: Sequence[str], log: Path, path: str) -> None:
    """Keep a program running in the namespaces of `pid`: it starts again whenever it ends, as under systemd.

    They count on it: kubelet gives up, for one, when containerd answers but has yet to look through what a
    killed node left.
    """
    again = f'while :; do {shlex.join(argv)}; echo "{argv[0]} exited $?; starts again"; sleep 1; done'
    spawn(pid, ["sh", "-c", again], log, path)


def create(marker: str, role: str, ready: Path, log: Path, parent: int | None = None) -> int:
    """Make namespaces, nested in those of `parent` if given, and return the pid of their process 1."""
    ready.unlink(missing_ok=True)
    spawn(parent, [*UNSHARE, sys.executable, str(INIT), role, marker, str(ready)], log)
    wait_for(f"namespaces of {marker}", ready.exists, seconds=120, log=log)
    pid = inside(marker)
    if pid is None:
        raise Failure(f"process 1 of {marker} died; see {log}")
    return pid


def kill(marker: str) -> None:
    """End everything in the namespaces: `unshare` hands its SIGKILL on to process 1, and that to all."""
    pids = outside(marker)
    firsts = [child for pid in pids if (child := inside(marker))]
    _end(pids, [*pids, *firsts], marker)


def kill_clients(kubeconfig: Path) -> None:
    """End the programs that use that kubeconfig from outside."""
    pids = clients(kubeconfig)
    _end(pids, pids, f"clients of {kubeconfig}")


def _end(pids: Sequence[int], everyone: Sequence[int], what: str) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(f"end of {what}", lambda: not any(map(_alive, everyone)), seconds=120)


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def cgroup_folders(name: str) -> list[Path]:
    """The cgroup of that name in every hierarchy that has it."""
    return [folder for hierarchy in HIERARCHIES.iterdir() if (folder := hierarchy / name).is_dir()]


def remove_cgroups(name: str) -> None:
    """Remove a cgroup and those below it, deepest first, as soon as the last process in each is gone."""
    deadline = time.monotonic() + 120
    for folder in cgroup_folders(name):
        for below in [*(Path(at) for at, _, _ in os.walk(folder, topdown=False))]:
            while below.exists():
                try:
                    below.rmdir()
                except OSError as problem:
                    if time.monotonic() > deadline:
                        raise Failure(f"cgroup {below} is still in use: {problem}") from problem
                    time.sleep(0.1)


def make_cgroup(name: str) -> None:
    """Make a cgroup in every v1 hierarchy; a cpuset is of no use until it has its parent's cores."""
    for hierarchy in HIERARCHIES.iterdir():
        if not hierarchy.is_dir() or hierarchy.name == "unified":
            continue
        folder = hierarchy
        for part in name.split("/"):
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (folder / file).exists() and not (folder / file).read_text().strip():
                    (folder / file).write_text((parent / file).read_text())


def link_exists(name: str) -> bool:
    """Whether the host has a network link of that name."""
    return Path("/sys/class/net", name).exists()
