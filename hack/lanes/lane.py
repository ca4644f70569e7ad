"""A lane: commands that follow one another, and the lanes that must have ended before."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

KILL_SECONDS = 10.0
"""How long a kernel may take to end what was sent SIGKILL."""


@dataclass(frozen=True)
class Lane:
    """What runs, after what, and how it gives way to others."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()
    nice: int = 0
    """As of nice(1); above 0, it has what processor time the others leave."""
    env: Mapping[str, str] = field(default_factory=dict)


def check(lanes: Sequence[Lane]) -> None:
    """Refuse lanes that could never start.

    Raises:
        ValueError: two have one name, or one waits for a lane that is not before it in the list.
    """
    seen: set[str] = set()
    for lane in lanes:
        if lane.name in seen:
            raise ValueError(f"two lanes are called {lane.name}")
        if unknown := set(lane.after) - seen:
            raise ValueError(f"lane {lane.name} waits for {', '.join(sorted(unknown))}: not listed before it")
        seen.add(lane.name)


class Running:
    """A lane on its way; its output goes to a file, so that nothing depends on who reads it."""

    def __init__(self, lane: Lane, log: Path, cwd: Path) -> None:
        self.lane, self.log = lane, log
        self._cwd = cwd
        self._left = list(lane.commands)
        self._read = 0
        self.began = time.monotonic()
        self.ended: float | None = None
        log.write_bytes(b"")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as sink:
            # A session of its own: the terminal's Ctrl-C comes to it through us alone, and what it leaves
            # behind can be told from everything else.
            process = subprocess.Popen(
                self._left.pop(0),
                cwd=self._cwd,
                env={**os.environ, **self.lane.env},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self.lane.nice:
            give_way(process.pid, self.lane.nice)
        return process

    def poll(self) -> int | None:
        """None while it runs; else the exit code of its last command, or of the first that failed."""
        code = self._process.poll()
        if code is None:
            return None
        end_session(self._process.pid)
        if code == 0 and self._left:
            self._process = self._start()
            return None
        if self.ended is None:
            self.ended = time.monotonic()
        return code

    def interrupt(self) -> None:
        """What Ctrl-C would do, to all of it."""
        self._left.clear()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it at once, with all that belongs to it."""
        self._left.clear()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def new_lines(self) -> list[str]:
        """What it has printed since the last call: whole lines, and when it has ended also the rest."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = len(data) if self.ended is not None else data.rfind(b"\n") + 1
        self._read += whole
        # A bar of progress draws its line again and again: what counts is how it looked last.
        text = data[:whole].decode(errors="replace").removesuffix("\n")
        return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")] if text else []


def give_way(pid: int, nice: int) -> None:
    """Lower a new session's claim to processor time.

    Where the kernel groups processes by session, niceness counts within a session only, and the session has
    one of its own. A kernel or container that refuses leaves it its whole share, and so does its early end.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(str(nice))


def members(session: int) -> list[int]:
    """Pids of the processes of a session that are no zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                # pid (command) state parent group session ...; a command may hold blanks and brackets.
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state != "Z":
                    found.append(int(entry.name))
    return found


def end_session(session: int) -> None:
    """Kill what a command that has ended left in its session."""
    deadline = time.monotonic() + KILL_SECONDS
    while (left := members(session)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
