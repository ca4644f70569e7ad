"""Filling a partitioned model: the ranks read its objects in turn, and each hands out what it has read.

A rank reads whole objects, one at a time, so that each is checked against its manifest; of the model's bytes
every rank reads its share alone, and each byte goes to the one rank that keeps it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from trenchcoat_trainer.models.artifacts import Tensors
from trenchcoat_trainer.runtime.ranks import as_bytes


@dataclass(frozen=True, slots=True)
class Portion:
    """What one rank reads at once."""

    modules: Sequence[nn.Module]
    """Whose parameters it has; the same on all ranks."""
    read: Callable[[], Tensors]
    """Reads the weights by their names in a checkpoint, on the CPU."""


def fill_partitions(portions: Sequence[Portion], names: dict[nn.Parameter, str]) -> None:
    """Fill the partitions of all ranks; collective.

    Args:
        portions: in the same order on all ranks; the first is read by rank 0, the next by rank 1, and so on.
        names: of the parameters in a checkpoint.

    Raises:
        KeyError: a portion lacks a parameter of its modules.
        RuntimeError: a weight has another shape than its parameter.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for first in range(0, len(portions), ranks):
        turn = portions[first : first + ranks]
        weights = turn[rank].read() if rank < len(turn) else {}
        for source, portion in enumerate(turn):
            for parameter in (parameter for module in portion.modules for parameter in module.parameters()):
                _scatter(parameter, weights[names[parameter]] if source == rank else None, source)
        weights = {}  # before the next are read


def _scatter(parameter: nn.Parameter, weight: torch.Tensor | None, source: int) -> None:
    """Put each rank's partition of `weight`, which `source` alone has, into a partitioned parameter."""
    own = parameter.ds_tensor
    parts = None
    if weight is not None:
        if weight.shape != parameter.ds_shape:
            raise RuntimeError(
                f"a weight is {tuple(weight.shape)}, its parameter {tuple(parameter.ds_shape)}: the shards "
                "are of another model"
            )
        whole = weight.to(own.device, own.dtype).flatten()
        if padding := own.numel() * dist.get_world_size() - weight.numel():
            whole = F.pad(whole, (0, padding))
        parts = [as_bytes(part) for part in whole.split(own.numel())]
    dist.scatter(as_bytes(own), parts, src=source)
