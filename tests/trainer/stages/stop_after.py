"""A stop request that arrives at a given step."""

from trenchcoat_trainer.errors import PreemptedError


class StopAfter:
    """Stands in for StopRequest; asked once per step, it says yes from the given step on."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0

    @requested.setter
    def requested(self, value: bool) -> None:
        self._left = 0

    def check(self) -> None:
        if self._left <= 0:
            raise PreemptedError("stopped")
