"""The steps of a Cria over fused weights, for GPUs: the same sums as over modules, with less between them.

A Cria's weights are moved into fused matrices once, and its modules become views of them, so that both ways
of running it share one copy.
"""

import logging
from typing import Any

import torch
from torch import nn
from trenchcoat_api.packing import packed

from trenchcoat_trainer import layers
from trenchcoat_trainer.data import Starts
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.layers.float8 import MULTIPLE
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

FLOAT8_CAPABILITY = (8, 9)
"""Of GPUs, from which on there are FP8 products."""
REMEDY = "remove spec.transfer.teacherProducts"

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
        self._teacher = self._weights
        self._positions = positions
        self._rope: layers.Rope | None = None

    def quantise_teacher(self) -> None:
        """Have attention transfer compute the teacher's products in FP8, from copies of the weights.

        The weights stay beside them: errors are measured and adapters trained by these.
        """
        self._teacher = [weights.in_float8() for weights in self._weights]

    def drop_quantised(self) -> None:
        """Give back the memory of the copies in FP8, if there are any."""
        self._teacher = self._weights

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
        """Return the layers as they stand, with adapters whose dropout `seeds` decide, or for transfer."""
        weights = self._teacher if seeds is None else self._weights
        adapters = [{}] * len(self._weights) if seeds is None else self._adapters(seeds)
        attentions = [layer.self_attn for layer in self._cria.layers.values()]
        students = [None if a.softmax else Student(a.student, a.student_parameters()) for a in attentions]
        rows = zip(weights, students, adapters, strict=True)
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
        room = PACKED_SHARE * (total - self._bytes())
        held = len(self._weights) if whole else 2
        a_sequence = GRAPH_BYTES * self._shape.hidden * tokens * held
        at_once = packed(tokens, int(min(room, GRAPH_LIMIT) // a_sequence))
        return WholeSteps(device, at_once, moved=moved)

    def _bytes(self) -> int:
        """Bytes of all weights, and of their copies in FP8."""
        held = [*self._weights, *(() if self._teacher is self._weights else self._teacher)]
        return sum(x.nbytes for weights in held for x in vars(weights).values())

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


def require_float8(config: Any, device: torch.device) -> None:
    """See to it that a teacher's products can be computed in FP8.

    Args:
        config: the model's configuration.
        device: where it will run.

    Raises:
        BadInputError: the model has biases or sizes that such products do not take, or the GPU has none.
    """
    try:
        shape = layers.LayerShape.from_config(config)
    except ValueError as error:
        raise BadInputError(
            f"the teacher's products cannot be computed in FP8 ({error}): {REMEDY}"
        ) from error
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    odd = [size for size in (shape.hidden, heads, heads + 2 * kv, shape.mlp) if size % MULTIPLE]
    if odd:
        raise BadInputError(
            f"the teacher's products cannot be computed in FP8, for a width of {odd[0]} is no multiple of "
            f"{MULTIPLE}: {REMEDY}"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        raise BadInputError(
            f"the GPU ({torch.cuda.get_device_name(device)}) has no FP8 products, which begin with compute "
            f"capability 8.9: {REMEDY}, or have spec.pods.cria name nodes with newer GPUs"
        )


def with_float8_teacher(cria: CriaModel, fused: FusedCria | None, positions: int) -> FusedCria:
    """Return `fused` with the teacher's products in FP8; on a CPU, where there is none, fuse the Cria."""
    fused = fused or FusedCria(cria, positions)
    fused.quantise_teacher()
    logger.info("attention transfer computes the teacher's products in FP8")
    return fused


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
