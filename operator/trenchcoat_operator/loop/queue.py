"""A queue of keys: each key once at a time, however often it is added; failures back off.

Keys that something happened to go before those that are only looked at again after a while, though never for
long: where workers cannot keep up, the status is a little older, and GPUs do not wait for it.
"""

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from trenchcoat_operator.model.key import Key

_FIRST_BACKOFF = 1.0
_LONGEST_BACKOFF = 120.0
_ROUTINE_EVERY = 4
"""Of so many keys taken, one is of those that are only looked at again, if any of them is due."""


@dataclass(order=True, slots=True)
class _Due:
    at: float
    key: Key
    routine: bool = field(default=False, compare=False)
    """Whether nothing happened: it is only time to look again."""
    cancelled: bool = field(default=False, compare=False)


class WorkQueue:
    """Keys that are due, now or later; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._events: list[_Due] = []
        self._routine: list[_Due] = []
        self._taken = 0
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
            self._schedule(key, at, routine=False)

    def _schedule(self, key: Key, at: float, *, routine: bool) -> None:
        planned = self._next.get(key)
        if planned is not None:
            if planned.at <= at and planned.routine <= routine:
                return
            at, routine = min(at, planned.at), routine and planned.routine
            planned.cancelled = True
        due = _Due(at, key, routine)
        self._next[key] = due
        heapq.heappush(self._routine if routine else self._events, due)
        self._changed.notify()

    def get(self) -> Key | None:
        """Wait for a key that is due and take it; None when the queue was stopped."""
        with self._changed:
            while True:
                if self._stopped:
                    return None
                heaps = [heap for heap in (self._events, self._routine) if _first(heap) is not None]
                now = self._clock()
                due = [heap for heap in heaps if heap[0].at <= now]
                if due:
                    self._taken += 1
                    found = heapq.heappop(due[-1 if self._taken % _ROUTINE_EVERY == 0 else 0])
                    del self._next[found.key]
                    self._working.add(found.key)
                    return found.key
                self._changed.wait(min((heap[0].at - now for heap in heaps), default=None))

    def done(self, key: Key, look_again: float | None) -> None:
        """Give back a key that was dealt with; it may be wanted again later."""
        with self._changed:
            self._failures.pop(key, None)
            at = None if look_again is None else self._clock() + look_again
            self._give_back(key, at, routine=bool(look_again))

    def failed(self, key: Key) -> float:
        """Give back a key that could not be dealt with; returns the seconds until it is tried again."""
        with self._changed:
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            delay = min(_FIRST_BACKOFF * 2.0 ** min(count, 30), _LONGEST_BACKOFF)
            self._again.pop(key, None)  # what happened meanwhile waits for the same thing to be mended
            self._give_back(key, self._clock() + delay, routine=True)
            return delay

    def _give_back(self, key: Key, at: float | None, *, routine: bool = False) -> None:
        self._working.discard(key)
        asked = self._again.pop(key, None)
        if asked is not None:
            self._schedule(key, asked, routine=False)
        if at is not None:
            self._schedule(key, at, routine=routine)

    def forget(self, key: Key) -> None:
        """Give back a key that is gone."""
        with self._changed:
            self._failures.pop(key, None)
            self._give_back(key, None)

    def depth(self) -> int:
        """Keys that are due now."""
        with self._changed:
            now = self._clock()
            return sum(due.at <= now for due in self._next.values())

    def stop(self) -> None:
        """Let every waiting get() return None."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def _first(heap: list[_Due]) -> _Due | None:
    """The first of a heap that still counts; those before it are dropped."""
    while heap and heap[0].cancelled:
        heapq.heappop(heap)
    return heap[0] if heap else None
