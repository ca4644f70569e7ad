"""Copying batches to a GPU while it computes on the one before."""

import itertools
from collections.abc import Iterator

import torch

from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.layers.prefetch import on_device


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
