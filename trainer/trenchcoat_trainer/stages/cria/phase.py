"""What attention transfer and LoRA by Cria have in common, and the loop that runs either."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.data import Batch, CriaData
from trenchcoat_trainer.errors import DivergedError
from trenchcoat_trainer.layers.prefetch import on_device
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.training import CHECKPOINT_SECONDS, CHECKPOINT_SHARE, Cursor


class Phase(Protocol):
    """One kind of training of a Cria."""

    name: str
    epochs: int
    batch_size: int

    def step(self, batch: Batch, *, epoch: int, step: int) -> float | None:
        """Make one optimiser step on `batch`; returns the layers' mean loss, None where it tells nothing."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors that going on needs."""

    def state(self) -> dict[str, Any]:
        """Return all else that going on needs, as JSON."""

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on from what `tensors` and `state` returned."""


class Loop:
    """Runs the phases of one Cria after another, with progress, checkpoints and stopping on request."""

    def __init__(
        self,
        context: StageContext,
        data: CriaData,
        phases: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        """`phases` gives epochs and batch size of each phase, to tell which share of the whole is done."""
        self._context = context
        self._device = device
        self._data = data
        self._total = sum(epochs * data.steps(batch_size) for epochs, batch_size in phases)
        self._saved_at = time.monotonic()
        self._interval = CHECKPOINT_SECONDS
        self._before = 0

    def run(
        self, phase: Phase, cursor: Cursor, carried: dict[str, torch.Tensor], facts: dict[str, Any]
    ) -> None:
        """Run `phase` from `cursor` to its end.

        Args:
            phase: what to train.
            cursor: where to begin; moved on.
            carried: tensors of earlier phases, kept in every checkpoint.
            facts: JSON of earlier phases, likewise.

        Raises:
            PreemptedError: a stop was requested; a checkpoint is written.
            DivergedError: a loss is not a number, or grew beyond its bound.
        """
        context, data = self._context, self._data
        per_epoch = data.steps(phase.batch_size)
        tokens_per_sequence = context.spec.data.sequence_length
        done = facts.get("losses", {})
        while cursor.epoch < phase.epochs:
            batches = data.batches(epoch=cursor.epoch, batch_size=phase.batch_size, start_step=cursor.step)
            for batch in copied_ahead(batches, self._device):
                cursor.note(phase.step(batch, epoch=cursor.epoch, step=cursor.step))
                context.progress.update(
                    phase.name,
                    cursor.done,
                    phase.epochs * per_epoch,
                    fraction=(self._before + cursor.done) / self._total,
                    losses={**({} if cursor.final is None else {phase.name: cursor.final}), **done},
                    tokens=len(batch.inputs) * tokens_per_sequence,
                )
                if context.stop.requested or self._due():
                    self._save(phase, cursor, carried, facts)
                    context.stop.check()
            cursor.epoch, cursor.step = cursor.epoch + 1, 0
        self._before += cursor.done

    def skip(self, phase: Phase) -> None:
        """Count `phase` as done: an earlier attempt finished it."""
        self._before += phase.epochs * self._data.steps(phase.batch_size)

    def _due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._interval

    def _save(
        self, phase: Phase, cursor: Cursor, carried: dict[str, torch.Tensor], facts: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        state = {
            "phase": phase.name,
            "cursor": vars(cursor),
            "state": phase.state(),
            "facts": facts,
            "curve": self._context.progress.curve.state(),
        }
        self._context.checkpoint.save({**carried, **phase.tensors()}, state)
        self._saved_at = time.monotonic()
        self._interval = max(CHECKPOINT_SECONDS, (self._saved_at - began) / CHECKPOINT_SHARE)


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield `batches` on `device`; to a GPU the next one is copied while the current one computes."""
    if device.type != "cuda":
        yield from batches
        return
    first = next(batches, None)
    if first is None:
        return
    every = itertools.chain([first], batches)
    if first.targets is None:
        for inputs in on_device((batch.inputs.pin_memory() for batch in every), device):
            yield Batch(inputs, None)
        return
    # Both run in step, so that the tee holds a batch or two.
    left, right = itertools.tee(every)
    inputs_ahead = on_device((batch.inputs.pin_memory() for batch in left), device)
    targets_ahead = on_device((batch.targets.pin_memory() for batch in right), device)
    for inputs, targets in zip(inputs_ahead, targets_ahead, strict=True):
        yield Batch(inputs, targets)


class GrowthBound:
    """Takes a layer as diverged when its loss is so many times what it was at the first step."""

    def __init__(self, phase: str, cria: CriaRange, layers: Sequence[int], largest: float) -> None:
        """`largest` is the bound, spec.gates.maxLossGrowth; `layers` are the numbers of the layers."""
        self._phase, self._cria, self._layers, self._largest = phase, cria, layers, largest
        self.first: list[float] | None = None
        """Losses of the first step, by layer; a checkpoint keeps them."""

    def check(self, losses: Sequence[float], step: int) -> None:
        """Take note of a step's losses, one for each layer.

        Raises:
            DivergedError: one passed the bound.
        """
        if self.first is None:
            self.first = list(losses)
        for layer, loss, first in zip(self._layers, losses, self.first, strict=True):
            if loss > self._largest * first:
                raise DivergedError(
                    f"Cria {self._cria.index}: the {self._phase} loss of layer {layer} grew from {first:.4g} "
                    f"to {loss:.4g} at step {step + 1}, more than spec.gates.maxLossGrowth "
                    f"{self._largest:g} times: {_remedy(self._phase)}"
                )


def _remedy(phase: str) -> str:
    setting = "transfer" if phase == "transfer" else "criaLora"
    return f"lower spec.{setting}.learningRate or spec.{setting}.clip"


def require_finite(
    phase: str, cria: CriaRange, layers: Sequence[int], values: Sequence[float], step: int, what: str = "loss"
) -> None:
    """Raise DivergedError if one of the layers' `values` is not a finite number.

    Args:
        phase: name of the phase, "transfer" or "lora".
        cria: the Cria at hand.
        layers: numbers of the layers that `values` belong to.
        values: a number for each layer.
        step: optimiser steps done before.
        what: what the values are.
    """
    for layer, value in zip(layers, values, strict=True):
        if not math.isfinite(value):
            raise DivergedError(
                f"Cria {cria.index}: the {phase} {what} of layer {layer} became {value} at step {step + 1}: "
                f"{_remedy(phase)}"
            )
