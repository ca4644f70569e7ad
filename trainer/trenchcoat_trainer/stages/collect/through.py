"""A batch through a rank's layers: on a GPU as one CUDA graph for each shape of batch.

A small model's kernels end before the host has launched the next ones; a graph launches a batch's together.
Shape letters: B sequences, T tokens, E hidden size.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch

from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.runtime.graphs import Replayed


@dataclass
class _Batches:
    """Where batches of one shape stand, each in the place of the one before."""

    entering_BTE: torch.Tensor
    leaving: dict[int, torch.Tensor] = field(default_factory=dict)
    """[B, T, E] by the layer that they leave."""


class Through:
    """Runs a rank's layers on one batch after another, and takes note of states that are not finite."""

    def __init__(
        self, layers: TeacherLayers, watch: FiniteWatch, wanted: Collection[int], *, whole: bool
    ) -> None:
        """Set up.

        Args:
            layers: the rank's.
            watch: is told of every state.
            wanted: layers, by their number in the whole model, whose states are asked for.
            whole: whether batches of one shape stand in one place, and run as a graph where there is a GPU.
        """
        self._layers, self._watch, self._wanted = layers, watch, frozenset(wanted)
        self._whole, self._graphs = whole and bool(layers.indices), layers.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._whole and self._graphs else None
        self._runs: dict[torch.Size, tuple[_Batches, Replayed]] = {}

    def __call__(self, hidden_BTE: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the wanted layers and the raw residual stream after each, [B, T, E], which stays as it is."""
        if not self._whole:
            yield from self._compute(hidden_BTE)
            return
        if hidden_BTE.shape not in self._runs:
            self._runs[hidden_BTE.shape] = self._set_up(hidden_BTE)
        batches, run = self._runs[hidden_BTE.shape]
        batches.entering_BTE.copy_(hidden_BTE)
        if not run.captured:  # what the last batch left would else be held while a graph is captured
            batches.leaving.clear()
        run()
        for layer, state_BTE in batches.leaving.items():
            # A copy: this one may still be read, on its way to the host, when the next batch writes over it.
            yield layer, state_BTE.clone()

    def _set_up(self, like_BTE: torch.Tensor) -> tuple[_Batches, Replayed]:
        batches = _Batches(torch.empty_like(like_BTE))

        def run() -> None:
            batches.leaving.update(self._compute(batches.entering_BTE))

        return batches, Replayed(run, self._graphs, name="a batch of the collection", pool=self._pool)

    def _compute(self, hidden_BTE: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        self._watch.note(0, hidden_BTE)
        states = zip(self._layers.indices, self._layers.states(hidden_BTE), strict=True)
        for index, (layer, state_BTE) in enumerate(states, 1):
            self._watch.note(index, state_BTE)
            if layer in self._wanted:
                yield layer, state_BTE
