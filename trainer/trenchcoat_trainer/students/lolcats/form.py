"""The published form behind the interface: hybrid attention with the losses of attention transfer.

Sources: LoLCATs (arXiv 2410.10254) for the hybrid attention and the two losses, Hedgehog (arXiv 2402.04347)
for the feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trenchcoat_api import spec
from trenchcoat_api.layer_kinds import LayerKind

from trenchcoat_trainer.students.form import PUBLISHED, Card, Heads, LossWeights, Parameters, TransferLoss
from trenchcoat_trainer.students.lolcats import attention, hybrid
from trenchcoat_trainer.students.lolcats.attention import HybridAttention
from trenchcoat_trainer.students.lolcats.backends import choose_backend
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs


@dataclass(frozen=True)
class LolcatsLayer(HybridAttention):
    """One layer's hybrid attention, computed in the fastest way that the device has.

    Attributes:
        backend: "naive" (every map materialised, in the dtype given), "tiled" (torch, linear memory, any
            device), "triton" (GPU), or None to choose by device.
    """

    backend: str | None = None

    def compute(self, x: HybridInputs, keep_parts: str) -> torch.Tensor:
        """Compute `attend`, whose parts are "window" and "linear"."""
        return choose_backend(self.backend, x.q).attend(x, keep_parts)

    def transfer_loss(
        self,
        heads: Heads,
        parameters: Parameters,
        weights: LossWeights = PUBLISHED,
        *,
        drop_window: bool = False,
    ) -> TransferLoss:
        """Compare with softmax attention on the teacher's heads: `StudentLayer.transfer_loss`.

        Without its window, `window_factor` has no part in the losses and gets no gradient.
        """
        frozen = Heads(*(x.detach() for x in heads))
        return self._loss(self.inputs(frozen, parameters), frozen, weights, drop_window)

    def distill_loss(
        self, student: Heads, teacher: Heads, parameters: Parameters, weights: LossWeights = PUBLISHED
    ) -> TransferLoss:
        """Compare with the teacher's softmax attention: `StudentLayer.distill_loss`."""
        x = self.inputs(student, parameters)
        if any(mine.shape != theirs.shape for mine, theirs in zip(student, teacher, strict=True)):
            raise ValueError("the teacher's q, k and v must have the shapes of the student's")
        return self._loss(x, Heads(*teacher), weights, drop_window=False)

    def _loss(self, x: HybridInputs, teacher: Heads, weights: LossWeights, drop_window: bool) -> TransferLoss:
        mse, xent, output = choose_backend(self.backend, x.q).distill_loss(x, teacher, drop_window)
        return TransferLoss(weights.mse * mse + weights.xent * xent, mse, xent, output)

    def share_outside(self, heads: Heads, parameters: Parameters) -> float:
        """Return the share of attention below the window: `StudentLayer.share_outside`."""
        share_BHT = hybrid.linear_share(self.inputs(heads, parameters))
        below = share_BHT[:, :, 2 * self.window_size :]
        return below.mean().item() if below.numel() else 0.0


class Lolcats:
    """LoLCATs' hybrid attention; every layer has the same settings."""

    name = "lolcats"
    code = attention
    companions = ("hybrid.py", "stepping.py", "prompt_kernel.py")
    has_window_dropout = True

    def config_fields(self, attention: spec.Attention, kinds: Sequence[LayerKind]) -> dict[str, Any]:
        """Return the fields that `attention.layer_attention` reads; all layers of this form are of a kind."""
        return {
            "window": attention.window,
            "feature_dim": attention.feature_dim,
            "key_maps": attention.key_maps.value,
        }

    def parts(self, config: Any) -> dict[str, str]:
        """Return either part of the hybrid."""
        return {"withoutLinear": "window", "withoutWindow": "linear"}

    def narrowed(self, config: Any) -> dict[str, Any]:
        """Return nothing: a layer that keeps softmax attention has no feature maps."""
        return {}

    def layer(self, config: Any, index: int) -> LolcatsLayer:
        """Return the attention of a layer."""
        return LolcatsLayer(**vars(attention.layer_attention(config, index)))

    def card(self, config: Any) -> Card:
        """Describe the student."""
        live = f"{config.window + 1} to {2 * config.window}"
        return Card(
            tags=("linear-attention", "lolcats"),
            attention=(
                f"hybrid attention: exact softmax over a terraced window of {live}\n"
                "keys, linear attention with learned feature maps over everything before"
            ),
            source="LoLCATs (arXiv 2410.10254)",
            padding=(
                "Prompts of one batch may differ in length: pad at either side, and pass the tokenizer's\n"
                "`attention_mask` on."
            ),
            rows=(
                ("window", f"{config.window}"),
                ("feature dimension", f"{config.feature_dim} (twice as many features)"),
                (
                    "key feature maps",
                    "one a query head" if config.key_maps == "perQueryHead" else "one a key/value head",
                ),
            ),
        )
