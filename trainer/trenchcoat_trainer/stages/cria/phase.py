"""What attention transfer and LoRA by Cria have in common: how they are run, and when they have diverged."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.errors import DivergedError


class Phase(Protocol):
    """One kind of training of a Cria."""

    name: str
    epochs: int
    batch_size: int

    def begin(self, batch: Batch, *, epoch: int, step: int) -> None:
        """Begin one optimiser step on `batch`; a GPU may be at it, or at those before it, on return."""

    def end(self) -> float | None:
        """Wait for the first step begun and not ended, and judge it.

        Returns:
            The layers' mean loss, None where it tells nothing.

        Raises:
            DivergedError: it was not good; what was begun after it is then worth nothing.
        """

    @property
    def decides(self) -> bool:
        """Whether the step last begun must end before another begins: the schedule waits for its loss."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors that going on needs."""

    def state(self) -> dict[str, Any]:
        """Return all else that going on needs, as JSON."""

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Go on from what `tensors` and `state` returned."""


class Told:
    """What a step tells, on its way to the host while the device goes on."""

    def __init__(self, values: torch.Tensor) -> None:
        """Take what stands in `values` at this point of the device's work; it may be written over then."""
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._values = values.clone()

    def read(self) -> list[Any]:
        """Wait for the values; returns them as nested lists."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


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
