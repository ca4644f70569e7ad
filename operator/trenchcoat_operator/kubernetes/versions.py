"""Which version of each Trenchcoat is the newest that anybody told of."""

import threading
from collections.abc import Iterable

from trenchcoat_operator.model.key import Key


class Versions:
    """Says whether what is followed has come as far as what was written or heard of; safe between threads.

    Resource versions are whole numbers that grow. Should a server write them otherwise, nothing is current,
    and whoever asks reads anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[Key, int] = {}

    def note(self, key: Key, version: str) -> None:
        """A Trenchcoat was written, or is said to be, at this version."""
        number = _number(version)
        if number is not None:
            with self._lock:
                self._newest[key] = max(number, self._newest.get(key, 0))

    def is_current(self, key: Key, version: str) -> bool:
        """Whether nobody told of a version after this one."""
        number = _number(version)
        with self._lock:
            return number is not None and number >= self._newest.get(key, 0)

    def retain(self, keys: Iterable[Key]) -> None:
        """Forget all others."""
        kept = set(keys)
        with self._lock:
            self._newest = {key: number for key, number in self._newest.items() if key in kept}


def _number(version: str) -> int | None:
    return int(version) if version.isascii() and version.isdecimal() else None
