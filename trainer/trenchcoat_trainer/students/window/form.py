"""The window behind the interface: nothing to train but adapters, and one loss, on attention outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from trenchcoat_api import spec
from trenchcoat_api.layer_kinds import LayerKind

from trenchcoat_trainer.students.form import PUBLISHED, Card, Heads, LossWeights, Parameters, TransferLoss
from trenchcoat_trainer.students.window import attention
from trenchcoat_trainer.students.window.attention import WindowAttention


@dataclass(frozen=True)
class WindowLayer(WindowAttention):
    """One layer's window with what training and evaluation need."""

    def transfer_loss(
        self,
        heads: Heads,
        parameters: Parameters,
        weights: LossWeights = PUBLISHED,
        *,
        drop_window: bool = False,
    ) -> TransferLoss:
        """Compare with softmax attention on the teacher's heads: `StudentLayer.transfer_loss`."""
        if drop_window:
            raise ValueError("a window cannot be dropped: it is all that there is")
        frozen = Heads(*(x.detach() for x in heads))
        return self.distill_loss(frozen, frozen, parameters, weights)

    def distill_loss(
        self, student: Heads, teacher: Heads, parameters: Parameters, weights: LossWeights = PUBLISHED
    ) -> TransferLoss:
        """Compare with the teacher's softmax attention: `StudentLayer.distill_loss`, by outputs alone."""
        if any(mine.shape != theirs.shape for mine, theirs in zip(student, teacher, strict=True)):
            raise ValueError("the teacher's q, k and v must have the shapes of the student's")
        y = self.attend(student, parameters)
        with torch.no_grad():
            q, k, v = teacher
            output = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
            )
        dtype = torch.promote_types(y.dtype, torch.float32)
        mse = (y.to(dtype) - output.to(dtype)).square().mean()
        return TransferLoss(weights.mse * mse, mse, torch.zeros_like(mse), output)

    def attend(
        self,
        heads: Heads,
        parameters: Parameters,
        keep_parts: str = "both",
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend as a checkpoint does, or with "window" or "first", one of the parts, alone."""
        if keep_parts == "window":
            return replace(self, first_tokens=0).attend(heads, parameters, visible=visible)
        if keep_parts != "first":
            return super().attend(heads, parameters, keep_parts, visible)
        if visible is not None:
            raise ValueError("the first tokens alone are measured without padding: give no `visible`")
        q, k, v = heads
        first = slice(0, self.first_tokens)
        place = torch.arange(q.shape[2], device=q.device)
        return F.scaled_dot_product_attention(
            q,
            k[:, :, first],
            v[:, :, first],
            place[:, None] >= place[None, first],
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def share_outside(self, heads: Heads, parameters: Parameters) -> float | None:
        """Return the first tokens' share where the window has left all of them: `StudentLayer.share_outside`.

        None of a layer that has no first tokens.
        """
        if not self.first_tokens:
            return None
        is_first = torch.zeros_like(heads[2])
        is_first[:, :, : self.first_tokens] = 1
        share_BHT = self.attend(Heads(heads[0], heads[1], is_first), parameters)[..., 0]
        outside = share_BHT[:, :, self.window + self.first_tokens - 1 :]
        return outside.float().mean().item() if outside.numel() else 0.0


class Window:
    """Softmax over the first tokens and the last ones, each layer with a window of its own."""

    name = "window"
    code = attention
    companions = ("blocks.py", "flash.py", "stepping.py", "prompt_kernel.py")
    has_window_dropout = False

    def config_fields(self, attention: spec.Attention, kinds: Sequence[LayerKind]) -> dict[str, Any]:
        """Return the fields that `attention.layer_attention` reads."""
        return {
            "windows": [None if kind.form is None else kind.window for kind in kinds],
            "first_tokens": attention.first_tokens,
        }

    def parts(self, config: Any) -> dict[str, str]:
        """Return window and first tokens, where there are any."""
        return {"withoutFirstTokens": "window", "withoutWindow": "first"} if config.first_tokens else {}

    def narrowed(self, config: Any) -> dict[str, Any]:
        """Return the shortest window for all layers, those that keep softmax attention among them."""
        shortest = min((window for window in config.windows if window is not None), default=None)
        if all(window == shortest for window in config.windows):
            return {}
        return {"windows": [shortest] * len(config.windows), "keep_softmax_layers": []}

    def layer(self, config: Any, index: int) -> WindowLayer:
        """Return the attention of a layer."""
        return WindowLayer(**vars(attention.layer_attention(config, index)))

    def card(self, config: Any) -> Card:
        """Describe the student."""
        layers = Counter(window for window in config.windows if window is not None)
        sizes = ", ".join(f"{size} ({layers[size]} layers)" for size in sorted(layers))
        return Card(
            tags=("sliding-window-attention", "attention-sinks"),
            attention=(
                "exact softmax over a sliding window of the last tokens and over the\n"
                f"first {config.first_tokens} of the sequence"
            ),
            source="StreamingLLM (arXiv 2309.17453)",
            padding=(
                "Prompts of one batch may differ in length: pad at either side, and pass the tokenizer's\n"
                "`attention_mask` on."
            ),
            rows=(("window", sizes or "none"), ("first tokens", f"{config.first_tokens}")),
        )
