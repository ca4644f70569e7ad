"""Who waits for GPUs: one of them looks for all."""

import threading

from trenchcoat_operator.model.key import Key


class Waiting:
    """Trenchcoats for which something would start if more GPUs were free; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[Key, None] = {}

    def note(self, key: Key, *, waits: bool) -> None:
        """Remember whether a Trenchcoat waits."""
        with self._lock:
            if waits:
                self._keys.setdefault(key, None)
            else:
                self._keys.pop(key, None)

    def scout(self) -> Key | None:
        """One of those that wait, each in turn.

        Its look finds out for whom there are GPUs: one look serves all, however many wait.
        """
        with self._lock:
            key = next(iter(self._keys), None)
            if key is not None:
                self._keys[key] = self._keys.pop(key)
            return key
