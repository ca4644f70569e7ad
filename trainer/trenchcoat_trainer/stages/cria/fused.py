"""The steps of a Cria over fused weights, for GPUs: the same sums as over modules, with less between them.

A Cria's weights are moved into fused matrices once, and its modules become views of them, so that both ways
of running it share one copy.
"""

import logging
from dataclasses import dataclass

import torch
from torch import nn

from trenchcoat_trainer import layers
from trenchcoat_trainer.models.adapters import ADAPTER, adapted_modules
from trenchcoat_trainer.models.cria import CriaModel
from trenchcoat_trainer.models.maps import derived_seed
from trenchcoat_trainer.stages.cria.lora import teacher

logger = logging.getLogger(__name__)

GRAPH_BYTES = 36
"""What a layer's graph holds per token and column of the hidden state, measured at 405B's shape in bf16."""
GRAPH_LIMIT = 12e9
"""A larger graph is computed twice in place of being held: this much fits beside a 405B Cria into 80 GB."""


@dataclass(frozen=True)
class SeededAdapter(layers.Adapter):
    """An adapter whose dropout is decided by a seed of its own, not by what ran before."""

    seed: int = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the adapter adds for inputs `x` [..., in]."""
        torch.manual_seed(self.seed)
        return super().__call__(x)


class FusedCria:
    """A Cria's layers in the form that `trenchcoat_trainer.layers` runs."""

    def __init__(self, cria: CriaModel) -> None:
        """Fuse the weights of `cria` in place, layer by layer.

        Raises:
            ValueError: the model has biases or another activation than Llama's.
        """
        self._cria = cria
        self._shape = layers.LayerShape.from_config(cria.config)
        self._layers = [self._fuse(layer) for layer in cria.layers.values()]
        self._rope: layers.Rope | None = None

    def _fuse(self, layer: nn.Module) -> layers.LayerWeights:
        weight = layer.self_attn.q_proj.weight
        fused = layers.LayerWeights.empty(self._shape, weight.dtype, weight.device)
        for name, part in fused.parts(self._shape).items():
            parameter = layer.get_parameter(name)
            part.copy_(parameter.data)
            parameter.data = part  # frees the tensor that it was
        return fused

    def _rope_of(self, hidden_BTE: torch.Tensor) -> layers.Rope:
        tokens = hidden_BTE.shape[1]
        if self._rope is None or len(self._rope.cos) < tokens:
            self._rope = layers.Rope.from_config(self._cria.config, tokens, hidden_BTE.device)
        return self._rope.first(tokens)

    def _maps(self) -> list[layers.FeatureMaps | None]:
        attentions = [layer.self_attn for layer in self._cria.layers.values()]
        return [None if a.softmax else layers.FeatureMaps(a.w_q, a.w_k, a.window_factor) for a in attentions]

    def _weights(self, mse_weight: float, xent_weight: float) -> layers.LossWeights:
        return layers.LossWeights(window_size=self._cria.config.window, mse=mse_weight, xent=xent_weight)

    def transfer_step(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        *,
        scale: float,
        mse_weight: float,
        xent_weight: float,
        drop_window: bool = False,
    ) -> torch.Tensor:
        """Do what `transfer.transfer_step` does; `cria` is the one that was fused."""
        maps = self._maps()
        losses = layers.transfer_step(
            self._layers,
            maps,
            hidden_BTE,
            self._rope_of(hidden_BTE),
            self._shape,
            self._weights(mse_weight, xent_weight),
            gradient_scale=scale,
            drop_window=drop_window,
        )
        return _of_hybrid_layers(losses.loss, maps)

    def layerwise_step(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        *,
        scale: float,
        seed: int,
        mse_weight: float,
        xent_weight: float,
    ) -> torch.Tensor:
        """Do what `lora.layerwise_step` does; `cria` is the one that was fused."""
        maps = self._maps()
        losses = layers.layerwise_step(
            self._layers,
            maps,
            self._adapters(seed),
            hidden_BTE,
            self._rope_of(hidden_BTE),
            self._shape,
            self._weights(mse_weight, xent_weight),
            gradient_scale=scale,
        )
        return _of_hybrid_layers(losses.loss, maps)

    def block_step(
        self,
        cria: CriaModel,
        hidden_BTE: torch.Tensor,
        target_BTE: torch.Tensor | None,
        *,
        scale: float,
        seed: int,
    ) -> torch.Tensor:
        """Do what `lora.block_step` does; `cria` is the one that was fused."""
        if target_BTE is None:
            with torch.no_grad(), teacher(cria):
                target_BTE = cria(hidden_BTE)
        return layers.block_step(
            self._layers,
            self._maps(),
            self._adapters(seed),
            hidden_BTE,
            target_BTE,
            self._rope_of(hidden_BTE),
            self._shape,
            window_size=cria.config.window,
            gradient_scale=scale,
            recompute=GRAPH_BYTES * hidden_BTE.numel() * len(self._layers) > GRAPH_LIMIT,
        )

    def _adapters(self, seed: int) -> list[dict[str, layers.Adapter]]:
        by_layer: dict[str, dict[str, layers.Adapter]] = {name: {} for name in self._cria.layers}
        for name, module in adapted_modules(self._cria).items():
            _, layer, _, projection = name.split(".")
            dropout = module.lora_dropout[ADAPTER]
            adapter = SeededAdapter(
                a=module.lora_A[ADAPTER].weight,
                b=module.lora_B[ADAPTER].weight,
                scale=module.scaling[ADAPTER],
                dropout=dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
                seed=derived_seed(seed, name),
            )
            by_layer[layer][projection] = adapter
        return list(by_layer.values())


def _of_hybrid_layers(loss_L: torch.Tensor, maps: list[layers.FeatureMaps | None]) -> torch.Tensor:
    # Not by a mask: that would make the host wait for the GPU.
    return torch.stack([loss for loss, m in zip(loss_L.unbind(), maps, strict=True) if m is not None])


def fuse_for_gpu(cria: CriaModel) -> FusedCria | None:
    """Fuse a Cria that stands on a GPU; None where modules must do: on the CPU, or a Llama with biases."""
    if not next(cria.parameters()).is_cuda:
        return None
    try:
        return FusedCria(cria)
    except ValueError as error:
        logger.warning("the fused steps cannot run this model (%s): running it module by module", error)
        return None
