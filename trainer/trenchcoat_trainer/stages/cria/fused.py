"""The steps of a Cria over fused weights, for GPUs: the same sums as over modules, with less between them.

A Cria's weights are moved into fused matrices once, and its modules become views of them, so that both ways
of running it share one copy.
"""

import logging

import torch
from torch import nn

from trenchcoat_trainer import layers
from trenchcoat_trainer.data import Starts
from trenchcoat_trainer.models.adapters import ADAPTER, adapted_modules
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.seeds import derived_seed
from trenchcoat_trainer.stages.cria.running import WholeSteps
from trenchcoat_trainer.students import LossWeights, Student

logger = logging.getLogger(__name__)

GRAPH_BYTES = 36
"""What a layer's graph holds per token and column of the hidden state, measured at 405B's shape in bf16."""
GRAPH_LIMIT = 12e9
"""A larger graph is computed twice in place of being held: this much fits beside a 405B Cria into 80 GB."""

PACKED_TOKENS = 8192
"""Sequences run together up to so many tokens, which fill the GPU at any width."""
PACKED_SHARE = 0.3
"""Of the memory that a Cria's weights leave, for the graphs of sequences that run together."""


class FusedCria:
    """A Cria's layers in the form that `trenchcoat_trainer.layers` runs."""

    def __init__(self, cria: CriaModel, positions: int = 0) -> None:
        """Fuse the weights of `cria` in place, layer by layer.

        Args:
            cria: the layers.
            positions: that sequences may stand on, whose angles are computed once.

        Raises:
            ValueError: the model has biases or another activation than Llama's.
        """
        self._cria = cria
        self._shape = layers.LayerShape.from_config(cria.config)
        self._weights = [self._fuse(layer) for layer in cria.layers.values()]
        self._positions = positions
        self._rope: layers.Rope | None = None

    def _fuse(self, layer: nn.Module) -> layers.LayerWeights:
        weight = layer.self_attn.q_proj.weight
        fused = layers.LayerWeights.empty(self._shape, weight.dtype, weight.device)
        for name, part in fused.parts(self._shape).items():
            parameter = layer.get_parameter(name)
            part.copy_(parameter.data)
            parameter.data = part  # frees the tensor that it was
        return fused

    def _rope_of(self, hidden_BTE: torch.Tensor, start: int | torch.Tensor) -> layers.Rope:
        tokens = hidden_BTE.shape[1]
        if isinstance(start, torch.Tensor):
            if self._rope is None:
                self._rope = layers.Rope.from_config(self._cria.config, self._positions, hidden_BTE.device)
            return self._rope.parts(start, tokens)
        if self._rope is None or len(self._rope.cos) < start + tokens:
            self._positions = max(self._positions, start + tokens)
            self._rope = layers.Rope.from_config(self._cria.config, self._positions, hidden_BTE.device)
        return self._rope.part(start, tokens)

    def _layers(self, seeds: torch.Tensor | None = None) -> layers.CriaLayers:
        """Return the layers as they stand, with adapters whose dropout `seeds` decide, or without."""
        adapters = [{}] * len(self._weights) if seeds is None else self._adapters(seeds)
        attentions = [layer.self_attn for layer in self._cria.layers.values()]
        students = [None if a.softmax else Student(a.student, a.student_parameters()) for a in attentions]
        rows = zip(self._weights, students, adapters, strict=True)
        return layers.CriaLayers(self._shape, [layers.Layer(*row) for row in rows])

    def runner(self, starts: Starts, tokens: int, *, whole: bool) -> WholeSteps:
        """Return what runs this Cria's steps: as CUDA graphs on a GPU.

        Args:
            starts: where micro-batches start.
            tokens: of a sequence.
            whole: whether a step holds the graph of all layers, not of one at a time.
        """
        device = self._weights[0].qkv.device
        moved = bool(starts.share and starts.below)
        if device.type != "cuda":
            return WholeSteps(device, 1, moved=moved, graphs=False)
        # Not what is free just now: a Cria that goes on must pack as it did.
        total = torch.cuda.get_device_properties(device).total_memory
        room = PACKED_SHARE * (total - sum(x.nbytes for w in self._weights for x in vars(w).values()))
        held = len(self._weights) if whole else 2
        a_sequence = GRAPH_BYTES * self._shape.hidden * tokens * held
        packed = max(1, min(PACKED_TOKENS // tokens, int(min(room, GRAPH_LIMIT) // a_sequence)))
        return WholeSteps(device, packed, moved=moved)

    def transfer_step(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        *,
        scale: float,
        weights: LossWeights,
        drop_window: bool = False,
        start: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Do what `transfer.transfer_step` does; `cria` is the one that was fused."""
        fused, rope = self._layers(), self._rope_of(hidden_BTE, start)
        losses = layers.transfer_step(
            fused, hidden_BTE, rope, weights, gradient_scale=scale, drop_window=drop_window
        )
        return _of_student_layers(losses.loss, fused)

    def transfer_through(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        *,
        scale: float,
        weights: LossWeights,
        drop_window: bool = False,
        start: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what `transfer.transfer_through` does, the stream up to rounding; `cria` was fused."""
        fused, rope = self._layers(), self._rope_of(hidden_BTE, start)
        losses, output_BTE = layers.transfer_through(
            fused, hidden_BTE, rope, weights, gradient_scale=scale, drop_window=drop_window
        )
        return _of_student_layers(losses.loss, fused), output_BTE

    def layerwise_step(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        *,
        scale: float,
        seed: int | torch.Tensor,
        weights: LossWeights,
        start: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Do what `lora.layerwise_step` does; `cria` is the one that was fused."""
        fused, rope = self._layers(_each(seed, hidden_BTE)), self._rope_of(hidden_BTE, start)
        losses = layers.layerwise_step(fused, hidden_BTE, rope, weights, gradient_scale=scale)
        return _of_student_layers(losses.loss, fused)

    def block_step(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        target_BTE: torch.Tensor | None,
        *,
        scale: float,
        seed: int | torch.Tensor,
        start: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Do what `lora.block_step` does; `cria` is the one that was fused."""
        rope = self._rope_of(hidden_BTE, start)
        if target_BTE is None:
            with torch.no_grad():
                target_BTE = layers.teacher_forward(self._weights, hidden_BTE, rope, self._shape)
        return layers.block_step(
            self._layers(_each(seed, hidden_BTE)),
            hidden_BTE,
            target_BTE,
            rope,
            gradient_scale=scale,
            recompute=GRAPH_BYTES * hidden_BTE.numel() * len(self._weights) > GRAPH_LIMIT,
        )

    def _adapters(self, seeds: torch.Tensor) -> list[dict[str, layers.Adapter]]:
        by_layer: dict[str, dict[str, layers.Adapter]] = {name: {} for name in self._cria.layers}
        for name, module in adapted_modules(self._cria).items():
            _, layer, _, projection = name.split(".")
            dropout = module.lora_dropout[ADAPTER]
            adapter = layers.Adapter(
                a=module.lora_A[ADAPTER].weight,
                b=module.lora_B[ADAPTER].weight,
                scale=module.scaling[ADAPTER],
                dropout=dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
                seeds=seeds,
                salt=derived_seed("dropout", name),
            )
            by_layer[layer][projection] = adapter
        return list(by_layer.values())


def _each(seed: int | torch.Tensor, hidden_BTE: torch.Tensor) -> torch.Tensor:
    """Return a seed for each sequence."""
    if isinstance(seed, torch.Tensor):
        return seed
    return torch.tensor([(seed + row) % 2**63 for row in range(len(hidden_BTE))], device=hidden_BTE.device)


def _of_student_layers(loss_L: torch.Tensor, cria: layers.CriaLayers) -> torch.Tensor:
    # Not by a mask: that would make the host wait for the GPU.
    losses = zip(loss_L.unbind(), cria.layers, strict=True)
    return torch.stack([loss for loss, layer in losses if layer.student is not None])


def fuse_for_gpu(cria: CriaModel, positions: int) -> FusedCria | None:
    """Fuse a Cria that stands on a GPU; None where modules must do: on the CPU, or a Llama with biases.

    `positions` is how many positions sequences may stand on.
    """
    if not next(cria.parameters()).is_cuda:
        return None
    try:
        return FusedCria(cria, positions)
    except ValueError as error:
        logger.warning("the fused steps cannot run this model (%s): running it module by module", error)
        return None
