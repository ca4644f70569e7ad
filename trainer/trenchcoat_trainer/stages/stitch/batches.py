"""What the stitch trains on: the text in micro-batches, each with its start position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.data import Starts, TokenData
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.inputs import Inputs

PHASE = "stitch"


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences of one forward pass, on the CPU."""

    tokens: torch.Tensor
    """Ids, int64 [batch, tokens]."""
    start: int
    """Position of every sequence's first token."""
    share: float
    """Of the step's loss; those of a step add up to 1."""

    @property
    def positions(self) -> torch.Tensor:
        """Positions of the tokens, int64 [1, tokens]."""
        return torch.arange(self.start, self.start + self.tokens.shape[1])[None]


class StitchData:
    """The training text as the stitch takes it; the same whatever the number of ranks."""

    def __init__(self, inputs: Inputs, student: TrenchcoatLlamaConfig) -> None:
        """Raises BadInputError where spec.data.startPositions is not possible with this model."""
        self._spec: TrenchcoatSpec = inputs.spec
        self._text = TokenData(inputs)
        self._starts = Starts.of(inputs.spec, student)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return self._text.steps(self._spec.stitch.batch_size)

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[Sequence[MicroBatch]]:
        """Yield the micro-batches of every optimiser step from `start_step` on."""
        settings = self._spec.stitch
        batches = self._text.batches(epoch=epoch, batch_size=settings.batch_size, start_step=start_step)
        for step, tokens in enumerate(batches, start_step):
            yield [
                MicroBatch(
                    tokens=part,
                    start=self._starts.start(PHASE, epoch, step, index),
                    share=len(part) / len(tokens),
                )
                for index, part in enumerate(tokens.split(settings.micro_batch_size))
            ]
