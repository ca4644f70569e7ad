"""What the stitch trains on: the text in micro-batches, each with its start position and its labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from trenchcoat_api.spec import TrenchcoatSpec

from trenchcoat_trainer.checkpoints.stored_tokenizer import stored_tokenizer
from trenchcoat_trainer.data import LengtheningData, Schedule, Starts, TokenData, positions
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.runtime.inputs import Inputs
from trenchcoat_trainer.stages.stitch.recall import IGNORED, Recall, RecallCounts

PHASE = "stitch"


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences of one forward pass, on the CPU."""

    tokens: torch.Tensor
    """Ids, int64 [batch, tokens]."""
    labels: torch.Tensor
    """The same, but `IGNORED` where a token is not to be predicted."""
    start: int
    """Position of every sequence's first token."""
    share: float
    """Of the tokens that the step is to predict; those of a step add up to 1."""

    def positions(self, device: torch.device) -> torch.Tensor | None:
        """Return positions of the tokens, int64 [1, tokens]; None from 0 on, which the model sees to."""
        if self.start == 0:
            return None
        return torch.arange(self.start, self.start + self.tokens.shape[1], device=device)[None]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one optimiser step takes."""

    micro_batches: Sequence[MicroBatch]
    recall: RecallCounts
    """What was put into its text to be recalled."""

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(micro.tokens.numel() for micro in self.micro_batches)


class StitchData:
    """The training text as the stitch takes it; the same whatever the number of ranks."""

    def __init__(self, inputs: Inputs, student: TrenchcoatLlamaConfig, *, epochs: int) -> None:
        """Set up `epochs` passes over the text.

        Raises:
            BadInputError: spec.data.startPositions is not possible with this model.
        """
        self._spec: TrenchcoatSpec = inputs.spec
        settings, text = inputs.spec.stitch, TokenData(inputs)
        self.multiple = settings.long_multiple(text.sequence_length, positions(student))
        """Stored sequences in a long one; 1 where none is."""
        self._schedule = Schedule(
            sequences=text.sequences,
            batch_size=settings.batch_size,
            epochs=epochs,
            share=float(settings.long_sequences.share) if self.multiple > 1 else 0.0,
            multiple=self.multiple,
        )
        self._text = LengtheningData(text, self._schedule, inputs.spec.seed)
        self._starts = Starts.of(inputs.spec, student)
        self._long_starts = self._starts.of_longer((self.multiple - 1) * text.sequence_length)
        self._recall = make_recall(inputs, student.vocab_size) if settings.has_recall else None

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return self._schedule.steps

    @property
    def long_steps(self) -> int:
        """Optimiser steps of all epochs that read long sequences; the last ones."""
        return sum(map(self._schedule.long_steps, range(self._schedule.epochs)))

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[StepBatch]:
        """Yield what every optimiser step takes, from `start_step` on."""
        for step, tokens in enumerate(self._text.batches(epoch, start_step=start_step), start_step):
            labels, counts = tokens, RecallCounts()
            if self._recall is not None:
                labels, counts = self._recall.put_into(tokens, epoch, step, share=self._recall_share(tokens))
            yield StepBatch(self._cut(tokens, labels, epoch, step), counts)

    def _recall_share(self, tokens_BT: torch.Tensor) -> float:
        return float(
            self._spec.stitch.long_recall_share
            if self._is_long(tokens_BT)
            else self._spec.stitch.recall_share
        )

    def _is_long(self, tokens_BT: torch.Tensor) -> bool:
        return tokens_BT.shape[1] > self._spec.data.sequence_length

    def _cut(
        self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, epoch: int, step: int
    ) -> list[MicroBatch]:
        settings, counted = self._spec.stitch, count_predicted(labels_BT)
        size, starts = settings.micro_batch_size, self._starts
        if self._is_long(tokens_BT):
            size, starts = max(1, size // self.multiple), self._long_starts
        return [
            MicroBatch(
                tokens=tokens,
                labels=labels,
                start=starts.start(PHASE, epoch, step, index),
                share=count_predicted(labels) / counted,
            )
            for index, (tokens, labels) in enumerate(
                zip(tokens_BT.split(size), labels_BT.split(size), strict=True)
            )
        ]


def count_predicted(labels_BT: torch.Tensor) -> int:
    """Count the tokens that are to be predicted: the first of a sequence never is."""
    return int((labels_BT[:, 1:] != IGNORED).sum())


def make_recall(inputs: Inputs, vocabulary: int) -> Recall:
    """Set up synthetic recall with the teacher's tokenizer; `vocabulary` counts the embedding's rows."""
    tokenizer = stored_tokenizer(inputs)
    special = set(tokenizer.all_special_ids)
    ids = [number for number in range(min(vocabulary, len(tokenizer))) if number not in special]
    return Recall(inputs.spec.seed, partial(tokenizer.encode, add_special_tokens=False), ids)
