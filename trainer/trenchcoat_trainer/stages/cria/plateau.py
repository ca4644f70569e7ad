"""A learning rate that is cut when the loss stops falling, one for each layer."""

import math
from dataclasses import asdict, dataclass

from trenchcoat_api import spec

THRESHOLD = 1e-4
"""A loss counts as better when it is lower by this share, as in torch's ReduceLROnPlateau."""


@dataclass
class Plateau:
    """Schedule of one layer; `check` is told the mean loss since the last check.

    Attributes:
        rate: the learning rate now.
        best: the lowest loss so far.
        bad: checks without improvement since the best or the last cut.
    """

    factor: float
    patience: int
    min_rate: float
    rate: float
    best: float = math.inf
    bad: int = 0

    @classmethod
    def start(cls, settings: spec.Plateau, rate: float) -> "Plateau":
        """Make the schedule of `settings`, beginning at `rate`."""
        return cls(float(settings.factor), settings.patience, float(settings.min_learning_rate), rate)

    def check(self, loss: float) -> bool:
        """Take note of `loss`, cut the rate when patience is over; returns whether it is the best so far."""
        improved = loss < self.best * (1 - THRESHOLD)
        if improved:
            self.best, self.bad = loss, 0
            return True
        self.bad += 1
        if self.bad > self.patience:
            # A rate that starts below the minimum is left as it is, never raised.
            self.rate = max(self.rate * self.factor, min(self.min_rate, self.rate))
            self.bad = 0
        return False

    def state(self) -> dict[str, float]:
        """What a checkpoint holds; `best` is None until there is one, because JSON has no infinity."""
        return {**asdict(self), "best": None if math.isinf(self.best) else self.best}

    @classmethod
    def restore(cls, state: dict[str, float]) -> "Plateau":
        """Make the schedule that `state` was taken from."""
        return cls(**{**state, "best": math.inf if state["best"] is None else state["best"]})
