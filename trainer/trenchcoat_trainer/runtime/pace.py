"""How long a stage has left, from how fast it went lately."""

from bisect import bisect_right

_KEPT = 64


class Pace:
    """Judges by the later half of what it was told: a start, which is slower, soon no longer counts."""

    def __init__(self) -> None:
        self._told: list[tuple[float, float]] = []
        self._latest: tuple[float, float] | None = None
        self._apart = 0.0
        """Least seconds between two that are kept."""

    def note(self, seconds: float, fraction: float) -> None:
        """Note what is done.

        Args:
            seconds: A clock that only goes on.
            fraction: Share of the stage that is done then, 0 to 1. One that is less than before begins anew.
        """
        if self._latest is not None and fraction < self._latest[1]:
            self._told.clear()
            self._apart = 0.0
        self._latest = (seconds, fraction)
        if self._told and seconds - self._told[-1][0] < self._apart:
            return
        if len(self._told) == _KEPT:
            self._told = self._told[::2]
            self._apart = (seconds - self._told[0][0]) / _KEPT
        self._told.append(self._latest)

    def left(self) -> float | None:
        """Seconds until all is done; None while nothing was done between two notes."""
        if self._latest is None or not self._told:
            return None
        now, done = self._latest
        first = self._told[0][0]
        middle = bisect_right(self._told, first + (now - first) / 2, key=lambda told: told[0])
        since, before = self._told[middle - 1]
        return (now - since) * (1 - done) / (done - before) if done > before else None
