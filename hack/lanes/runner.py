"""Running lanes: each as soon as those that it waits for have ended; the first failure ends them all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .lane import Lane, Running, check

LOOK_SECONDS = 0.3
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 120.0
"""How long a lane that is told to stop may take to clear away what it made."""


class Stopped(Exception):
    """A signal came, or the time was over; the text says which."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Run:
    """Lanes on their way, their output told line by line.

    Args:
        lanes: What to run; each waits only for lanes before it.
        folder: Where the logs go, a file a lane.
        cwd: Where the commands run.
        tell: Takes each line of output, its lane's name in front.
        limit: Seconds after which everything is stopped; None for no limit.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        folder: Path,
        *,
        cwd: Path,
        tell: Callable[[str], None],
        limit: float | None = None,
    ) -> None:
        check(lanes)
        self.began = time.monotonic()
        self.ran: list[Running] = []
        self.failed: Running | None = None
        self._folder, self._cwd, self._tell, self._limit = folder, cwd, tell, limit
        self._waiting = list(lanes)
        self._now: list[Running] = []
        self._complete: set[str] = set()
        self._width = max((len(lane.name) for lane in lanes), default=0)

    def go(self) -> int:
        """Run all to their end; returns 0, or the exit code to leave with.

        Raises:
            Stopped: by a signal or the limit; nothing runs any more then.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with signals_noted() as noted:
            try:
                while self._waiting or self._now:
                    self._start_what_can()
                    if self._look() is not None:
                        return 1
                    # Not in the midst of a start, or nobody would know of the lane that has just begun.
                    if noted:
                        raise Stopped(f"stopped by {noted[0].name}", 128 + noted[0])
                    if self._limit is not None and time.monotonic() - self.began > self._limit:
                        raise Stopped(f"not done after {self._limit / 60:.0f} minutes", 1)
                    time.sleep(LOOK_SECONDS)
                return 0
            finally:
                with signals_wait():
                    self._stop()

    def _start_what_can(self) -> None:
        for lane in [lane for lane in self._waiting if self._complete.issuperset(lane.after)]:
            self._waiting.remove(lane)
            running = Running(lane, self._folder / f"{lane.name.replace(' ', '-')}.log", self._cwd)
            self._now.append(running)
            self.ran.append(running)

    def _look(self) -> Running | None:
        """Tell what is new; the lane that has failed, if one has."""
        for running in list(self._now):
            code = running.poll()
            self._pass_on(running)
            if code is None:
                continue
            self._now.remove(running)
            if code:
                self._tell(f"{running.lane.name} failed: exit code {code}")
                self.failed = running
                return running
            self._complete.add(running.lane.name)
        return None

    def _pass_on(self, running: Running) -> None:
        for line in running.new_lines():
            self._tell(f"{running.lane.name:<{self._width}} | {line}")

    def _stop(self) -> None:
        """End what still runs, and give it time to clear away what it made."""
        for running in self._now:
            running.interrupt()
        deadline = time.monotonic() + STOP_SECONDS
        while any([running.poll() is None for running in self._now]) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        for running in self._now:
            if running.poll() is None:
                running.kill()
                running.poll()
        self._now.clear()


@contextmanager
def signals_noted() -> Iterator[list[signal.Signals]]:
    """Note each SIGINT, SIGTERM and SIGHUP in place of ending at once."""
    noted: list[signal.Signals] = []
    with _handlers(lambda number, frame: noted.append(signal.Signals(number))):
        yield noted


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let these signals do nothing: what is being cleared away is cleared away to the end."""
    # No SIG_IGN, which programs that are started would inherit.
    with _handlers(lambda number, frame: None):
        yield


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def ci() -> bool:
    """Whether this is a run of CI, which has a limit of its own."""
    return bool(os.environ.get("CI"))
