"""A queue of keys: each key once at a time, however often it is added; failures back off."""

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 120.0


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A Trenchcoat."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(order=True, slots=True)
class _Due:
    at: float
    key: Key
    cancelled: bool = field(default=False, compare=False)


class WorkQueue:
    """Keys that are due, now or later; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._due: list[_Due] = []
        self._next: dict[Key, _Due] = {}
        self._working: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._stopped = False

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Make a key due after a delay; the earliest time that anybody asked for counts."""
        with self._changed:
            at = self._clock() + delay
            if key in self._working:
                self._again[key] = min(at, self._again.get(key, at))
                return
            self._schedule(key, at)

    def _schedule(self, key: Key, at: float) -> None:
        planned = self._next.get(key)
        if planned is not None:
            if planned.at <= at:
                return
            planned.cancelled = True
        due = _Due(at, key)
        self._next[key] = due
        heapq.heappush(self._due, due)
        self._changed.notify()

    def get(self) -> Key | None:
        """Wait for a key that is due and take it; None when the queue was stopped."""
        with self._changed:
            while True:
                if self._stopped:
                    return None
                while self._due and self._due[0].cancelled:
                    heapq.heappop(self._due)
                wait = None
                if self._due:
                    wait = self._due[0].at - self._clock()
                    if wait <= 0:
                        due = heapq.heappop(self._due)
                        del self._next[due.key]
                        self._working.add(due.key)
                        return due.key
                self._changed.wait(wait)

    def done(self, key: Key, look_again: float | None) -> None:
        """Give back a key that was dealt with; it may be wanted again later."""
        with self._changed:
            self._failures.pop(key, None)
            self._give_back(key, None if look_again is None else self._clock() + look_again)

    def failed(self, key: Key) -> float:
        """Give back a key that could not be dealt with; returns the seconds until it is tried again."""
        with self._changed:
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            delay = min(_FIRST_BACKOFF * 2.0 ** min(count, 30), _LONGEST_BACKOFF)
            self._again.pop(key, None)  # what happened meanwhile waits for the same thing to be mended
            self._give_back(key, self._clock() + delay)
            return delay

    def _give_back(self, key: Key, at: float | None) -> None:
        self._working.discard(key)
        asked = self._again.pop(key, None)
        times = [moment for moment in (at, asked) if moment is not None]
        if times:
            self._schedule(key, min(times))

    def forget(self, key: Key) -> None:
        """Give back a key that is gone."""
        with self._changed:
            self._failures.pop(key, None)
            self._give_back(key, None)

    def depth(self) -> int:
        """Keys that are due now."""
        with self._changed:
            now = self._clock()
            return sum(not due.cancelled and due.at <= now for due in self._due)

    def stop(self) -> None:
        """Let every waiting get() return None."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
