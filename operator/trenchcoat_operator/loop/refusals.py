"""What stores have refused to delete, for a while: a store is not asked at every look."""

import threading
import time
from collections.abc import Callable, Collection

from trenchcoat_operator.model.key import Key
from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.again import DELETE_RETRY_SECONDS


class Refusals:
    """Why nothing of a Trenchcoat's could be deleted; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._problems: dict[Key, tuple[float, Problem]] = {}

    def note(self, key: Key, problem: Problem) -> None:
        """Remember a refusal."""
        with self._lock:
            self._problems[key] = self._clock(), problem

    def fresh(self, key: Key) -> Problem | None:
        """The last refusal, until it is time to ask again."""
        with self._lock:
            noted_at, problem = self._problems.get(key, (0.0, None))
            if problem is not None and self._clock() - noted_at >= DELETE_RETRY_SECONDS:
                del self._problems[key]
                return None
            return problem

    def retain(self, keys: Collection[Key]) -> None:
        """Forget what is not among all keys any more."""
        with self._lock:
            for key in [key for key in self._problems if key not in keys]:
                del self._problems[key]
