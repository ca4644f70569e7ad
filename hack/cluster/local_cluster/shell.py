"""Run other programs, and say what is going on."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Failure(Exception):
    """Something a person must look at; its text says where."""


@contextmanager
def step(text: str, usual: float | None = None) -> Iterator[None]:
    """Tell of a step in one line, with the seconds it took; on stderr, as stdout may be for a program.

    Args:
        text: What is done.
        usual: Seconds that it took on two idle cores, where they were measured.
    """
    started = time.monotonic()
    expected = "" if usual is None else f" (about {about(usual)})"
    print(f"{text}{expected} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException:
        print(" failed", file=sys.stderr, flush=True)
        raise
    print(f" {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def about(seconds: float) -> str:
    """A time in words for people who wait."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> str:
    """Run a program to its end and return what it printed; with `log`, append everything there instead."""
    command = [os.fspath(word) for word in argv]
    data = stdin.encode() if isinstance(stdin, str) else stdin
    environment = {**os.environ, **(env or {})}
    feed: dict[str, Any] = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL}
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            done = subprocess.run(
                command, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=cwd, check=False, **feed
            )
        detail, output = f"see {log}", ""
    else:
        done = subprocess.run(command, capture_output=True, env=environment, cwd=cwd, check=False, **feed)
        detail, output = _tail(done.stderr.decode(errors="replace")), done.stdout.decode(errors="replace")
    if check and done.returncode:
        raise Failure(f"`{' '.join(command)}` exited {done.returncode}: {detail}")
    return output


def _tail(text: str) -> str:
    """The last lines of an error, where its cause mostly stands."""
    return "\n".join(text.strip().splitlines()[-5:])


def succeeds(argv: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether a program, run silently, exits 0."""
    quiet = subprocess.DEVNULL
    return subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, check=False).returncode == 0


def wait_for(what: str, ready: Callable[[], bool], *, seconds: float, log: Path | None = None) -> None:
    """Poll `ready` until it is true, or fail naming what did not come and the log that may tell why."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not there after {seconds:.0f} s" + (f"; see {log}" if log else ""))
        time.sleep(0.2)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep others out who lock the same file; a lock ends with its process."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def warn(text: str) -> None:
    """Tell a person on stderr."""
    print(text, file=sys.stderr, flush=True)
