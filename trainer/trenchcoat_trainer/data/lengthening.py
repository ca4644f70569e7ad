"""Training text of which the last part is read as longer sequences: neighbours in the text, joined again."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from trenchcoat_trainer.data.packing import stored_places
from trenchcoat_trainer.data.prefetch import prefetch
from trenchcoat_trainer.data.tokens import TokenData
from trenchcoat_trainer.seeds import derived_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When training reads long sequences: in its last steps, which have as many tokens as the others."""

    sequences: int
    """Stored ones, each read once in an epoch."""
    batch_size: int
    """Stored sequences of an optimiser step."""
    epochs: int
    share: float = 0.0
    """Of all steps of all epochs, how many read long sequences, rounded."""
    multiple: int = 1
    """Stored sequences in a long one; divides `batch_size`."""

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch; what fills no batch is a smaller one."""
        return -(-self.sequences // self.batch_size)

    def long_steps(self, epoch: int) -> int:
        """Count the last steps of an epoch that read long sequences.

        They are full: where an epoch has nothing else, what fills no batch comes before them as it is stored.
        """
        of_all = round(self.share * self.epochs * self.steps)
        of_this_and_before = of_all - (self.epochs - 1 - epoch) * self.steps
        return max(0, min(of_this_and_before, self.sequences // self.batch_size))


class LengtheningData:
    """Batches of training text: of stored sequences first, then of long ones; every token once in an epoch.

    Sequences were shuffled before they were stored. Long ones are what stood together in the text, as if it
    had been cut so from the start; which of them an epoch has is drawn anew from seed and epoch.
    """

    def __init__(self, text: TokenData, schedule: Schedule, seed: int) -> None:
        self._text = text
        self._schedule = schedule
        self._seed = seed

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[torch.Tensor]:
        """Yield token ids of every step from `start_step` on.

        Int64 [batch, tokens], or [batch / multiple, multiple * tokens] in the last `long_steps(epoch)`.

        Raises:
            CorruptObjectError: an object is not what the manifest says.
        """
        schedule = self._schedule
        long = self._long(epoch)
        first_long = schedule.steps - len(long)
        if start_step < first_long:
            is_long = np.zeros(schedule.sequences, bool)
            is_long[long] = True
            skip = start_step * schedule.batch_size
            rows = self._text.shuffled(epoch, skip=skip, without=is_long)
            for _ in range(start_step, first_long):
                yield torch.stack(list(islice(rows, schedule.batch_size))).long()
        yield from prefetch(self._join, long[max(0, start_step - first_long) :])

    def _long(self, epoch: int) -> np.ndarray:
        """Where what an epoch's long steps read is stored: int64 [steps, batch / multiple, multiple]."""
        schedule = self._schedule
        steps, multiple = schedule.long_steps(epoch), schedule.multiple
        shape = (steps, schedule.batch_size // multiple, multiple)
        if not steps:
            return np.empty(shape, np.int64)
        source = np.random.default_rng(derived_seed(self._seed, "long sequences", epoch))
        drawn = source.permutation(schedule.sequences // multiple)[: steps * shape[1]]
        return self._places[drawn[:, None] * multiple + np.arange(multiple)].reshape(shape)

    @cached_property
    def _places(self) -> np.ndarray:
        return stored_places(self._schedule.sequences, self._text.sequence_length)

    def _join(self, places: np.ndarray) -> torch.Tensor:
        return self._text.at(places.ravel()).view(len(places), -1).long()
