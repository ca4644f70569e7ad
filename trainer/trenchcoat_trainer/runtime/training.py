"""What all training stages have in common: where they stand, and when they save."""

from dataclasses import dataclass

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_SHARE = 0.05
"""Checkpoints are spaced out so that writing them takes at most this share of the time."""


@dataclass
class Cursor:
    """Where training stands, and the losses so far."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    done: int = 0
    """Steps done in this phase."""
    initial: float | None = None
    """Loss of the first step."""
    final: float | None = None
    """Mean loss of the last steps: a running mean over about 16."""

    def note(self, loss: float | None) -> None:
        """Count one step with its loss, if it has one to tell."""
        self.step += 1
        self.done += 1
        if loss is None:
            return
        self.initial = loss if self.initial is None else self.initial
        share = max(1 / 16, 1 / self.done)
        self.final = loss if self.final is None else self.final + share * (loss - self.final)
