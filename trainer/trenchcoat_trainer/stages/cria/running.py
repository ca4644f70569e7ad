"""How an optimiser's step runs over its batch: micro-batch by micro-batch, or packed and as a CUDA graph.

What a step computes is the same: sequences keep the start position and the dropout of their micro-batch, and
gradients are added up over the whole batch.  Shape letters: B sequences, T tokens, E hidden size.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.runtime.graphs import Replayed


class Part(NamedTuple):
    """What runs at once of a batch.

    Attributes:
        inputs: raw residual stream at the Cria's first boundary, [B, T, E].
        targets: the same at the next boundary, or None.
        share: its share of the batch.
        start: position of the first token, or one for each sequence, int64 [B] on the device.
        seed: decides dropout; one number, or one for each sequence, int64 [B] on the device.
    """

    inputs: torch.Tensor
    targets: torch.Tensor | None
    share: float
    start: int | torch.Tensor
    seed: int | torch.Tensor


class Draw(NamedTuple):
    """What is drawn for a micro-batch of the spec: where it starts, and the seed of its dropout."""

    start: int
    seed: int = 0


Compute = Callable[[Iterable[Part]], torch.Tensor]
"""Makes an optimiser's step of a batch's parts; returns what it tells, on the device."""


class Runner(Protocol):
    """Runs optimiser's steps."""

    def __call__(
        self,
        batch: Batch,
        draws: Sequence[Draw],
        micro_batch: int,
        compute: Compute,
        variant: Hashable = None,
    ) -> torch.Tensor:
        """Make one step; returns what `compute` does, valid until the next step.

        Args:
            batch: the optimiser's.
            draws: one for each micro-batch.
            micro_batch: sequences of a micro-batch; the last may be smaller.
            compute: makes the step; the same function, bar what `variant` tells, whenever it is called.
            variant: what `compute` does differently from other calls.
        """

    def close(self) -> None:
        """Give back the memory that steps were given."""


class MicroBatches:
    """One micro-batch after another, as the spec cuts them."""

    def __init__(self, device: torch.device) -> None:
        """`device` is where the Cria stands."""
        self._device = device

    def __call__(
        self,
        batch: Batch,
        draws: Sequence[Draw],
        micro_batch: int,
        compute: Compute,
        variant: Hashable = None,
    ) -> torch.Tensor:
        """Make one step: `Runner`."""
        return compute(self._parts(batch, draws, micro_batch))

    def close(self) -> None:
        """Nothing is held."""

    def _parts(self, batch: Batch, draws: Sequence[Draw], micro_batch: int) -> Iterator[Part]:
        targets = batch.targets
        for index, draw in enumerate(draws):
            rows = slice(index * micro_batch, (index + 1) * micro_batch)
            inputs = batch.inputs[rows].to(self._device, non_blocking=True)
            target = None if targets is None else targets[rows].to(self._device, non_blocking=True)
            yield Part(inputs, target, len(inputs) / len(batch.inputs), *draw)


class WholeSteps:
    """On a GPU: as many sequences at once as fill it, and each kind of step as a CUDA graph."""

    def __init__(
        self, device: torch.device, packed: int, *, moved: bool = False, graphs: bool = True
    ) -> None:
        """Set up.

        Args:
            device: where the Cria stands.
            packed: how many sequences run at once.
            moved: whether micro-batches may start at other positions than 0.
            graphs: whether steps become graphs, which needs a GPU.
        """
        self._device, self._packed, self._moved, self._graphs = device, packed, moved, graphs
        self._pool = torch.cuda.graph_pool_handle() if graphs else None
        self._steps: dict[Hashable, tuple[_Buffers, Replayed]] = {}

    def __call__(
        self,
        batch: Batch,
        draws: Sequence[Draw],
        micro_batch: int,
        compute: Compute,
        variant: Hashable = None,
    ) -> torch.Tensor:
        """Make one step: `Runner`."""
        key = (batch.inputs.shape, batch.targets is None, variant)
        if key not in self._steps:
            self._steps[key] = self._set_up(batch, compute)
        buffers, step = self._steps[key]
        buffers.load(batch, draws, micro_batch)
        step()
        return buffers.told

    def close(self) -> None:
        """Give back the memory that steps were given: `Runner.close`."""
        self._steps.clear()
        if self._graphs:
            torch.cuda.empty_cache()

    def _set_up(self, batch: Batch, compute: Compute) -> tuple["_Buffers", Replayed]:
        buffers = _Buffers(batch, self._device)
        parts = list(buffers.parts(self._packed, self._moved))

        def run() -> None:
            told = compute(parts)
            if buffers.told.shape != told.shape:  # the first call, which no graph holds
                buffers.told = torch.empty_like(told)
            buffers.told.copy_(told)

        return buffers, Replayed(run, self._graphs, name="a training step of this Cria", pool=self._pool)


class _Buffers:
    """Where steps over batches of one size find their inputs, and leave what they tell."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self._inputs = torch.empty_like(batch.inputs, device=device)
        targets = batch.targets
        self._targets = None if targets is None else torch.empty_like(targets, device=device)
        self._numbers = torch.zeros(2, len(batch.inputs), dtype=torch.long, device=device)
        self.told = torch.empty(0, device=device)

    def load(self, batch: Batch, draws: Sequence[Draw], micro_batch: int) -> None:
        """Copy in a batch and what was drawn for it."""
        self._inputs.copy_(batch.inputs, non_blocking=True)
        if self._targets is not None:
            self._targets.copy_(batch.targets, non_blocking=True)
        # Sequences of a micro-batch have its seed and the next ones: each has one of its own, however packed.
        rows = [(draws[row // micro_batch], row % micro_batch) for row in range(len(batch.inputs))]
        numbers = torch.tensor([[d.start for d, _ in rows], [(d.seed + at) % 2**63 for d, at in rows]])
        if self._inputs.is_cuda:
            numbers = numbers.pin_memory()
        self._numbers.copy_(numbers, non_blocking=True)

    def parts(self, packed: int, moved: bool) -> Iterator[Part]:
        """Yield the batch, at most `packed` sequences at a time; all start at 0 unless `moved`."""
        total = len(self._inputs)
        packed = -(-total // -(-total // packed))  # as even as can be
        for first in range(0, total, packed):
            rows = slice(first, min(first + packed, total))
            starts, seeds = self._numbers[:, rows]
            targets = None if self._targets is None else self._targets[rows]
            yield Part(
                self._inputs[rows], targets, (rows.stop - first) / total, starts if moved else 0, seeds
            )
