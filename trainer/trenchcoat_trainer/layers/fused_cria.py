"""The fast transfer step for a Cria that is a module: the same weights, read as fused matrices."""

from __future__ import annotations

from typing import Any

import torch

from trenchcoat_trainer.layers.cria_step import FeatureMaps, LossWeights, transfer_step
from trenchcoat_trainer.layers.llama import LayerShape, LayerWeights, Rope


class FusedCria:
    """A Cria's decoder layers with q, k, v and gate, up fused; the module goes on, on the same weights.

    Fuse before adapters are put in place: they then wrap projections that are views of the fused matrices.
    """

    def __init__(self, cria: Any) -> None:
        """Take over the weights of `cria`, one layer at a time.

        Args:
            cria: has `config` (a LlamaConfig with `window`) and `layers`, a mapping of Hugging Face decoder
                layers whose `self_attn` has `softmax` and, where that is false, `w_q`, `w_k` and
                `window_factor`.
        """
        self.shape = LayerShape.from_config(cria.config)
        self.layers = [LayerWeights.fuse(layer, self.shape) for layer in cria.layers.values()]
        self._rope: Rope | None = None

    def rope(self, cria: Any, hidden: torch.Tensor) -> Rope:
        """Return the angles for sequences like `hidden` [B, T, hidden], computed once per length."""
        tokens = hidden.shape[1]
        if self._rope is None or self._rope.cos.shape[0] != tokens or self._rope.cos.device != hidden.device:
            self._rope = Rope.from_config(cria.config, tokens, hidden.device)
        return self._rope

    def transfer_step(
        self, cria: Any, hidden: torch.Tensor, *, scale: float, mse_weight: float, xent_weight: float
    ) -> torch.Tensor:
        """Add one micro-batch's gradient to every layer's maps.

        Args:
            cria: the module that was fused.
            hidden: raw residual stream at the Cria's first boundary, [B, T, hidden], in the weights' dtype.
            scale: factor on the gradient.
            mse_weight: weight of the squared error of attention outputs.
            xent_weight: weight of the cross-entropy of attention maps.

        Returns:
            The loss of each layer with maps, fp32, not scaled.
        """
        attentions = [layer.self_attn for layer in cria.layers.values()]
        maps = [None if a.softmax else FeatureMaps(a.w_q, a.w_k, a.window_factor) for a in attentions]
        losses = transfer_step(
            self.layers, maps, hidden, self.rope(cria, hidden), self.shape,
            LossWeights(window_size=cria.config.window, mse=mse_weight, xent=xent_weight),
            gradient_scale=scale,
        )  # fmt: skip
        return losses.loss[[i for i, m in enumerate(maps) if m is not None]]
