"""Low-rank adapters of a layer's projections, by functions: what a Cria's steps over fused weights train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from trenchcoat_trainer.layers.dropout import seeded_dropout
from trenchcoat_trainer.layers.llama import LayerShape

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Those that are fused, in the order in which their columns lie."""


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of one projection: out += scale * (dropout(x) a^T) b^T.

    Attributes:
        a: [rank, in], fp32 master.
        b: [out, rank], fp32 master.
        scale: alpha / rank.
        dropout: probability with which an input is dropped in training.
        seeds: what decides which, one for each sequence, int64 [B]; needed where `dropout` is above 0.
        salt: tells this adapter's draws from those of others with the same seeds.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    dropout: float = 0.0
    seeds: torch.Tensor | None = None
    salt: int = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the adapter adds for inputs `x` [B, T, in].

        Raises:
            ValueError: there is dropout, and no seeds.
        """
        return F.linear(*self.factors(x))

    def factors(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (down [B, T, rank], up [out, rank]), whose product down up^T it adds for inputs `x`.

        Raises:
            ValueError: there is dropout, and no seeds.
        """
        if self.dropout > 0:
            if self.seeds is None:
                raise ValueError("an adapter with dropout needs seeds, one for each sequence")
            x = seeded_dropout(x, self.seeds, self.salt, self.dropout)
        return F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype) * self.scale


Adapters = Mapping[str, Adapter]
"""One layer's adapters by projection: q_proj, k_proj, v_proj, o_proj."""


class _AddProducts(torch.autograd.Function):
    """Add products of two factors to some columns, in place, so that they never stand in memory."""

    @staticmethod
    def forward(ctx: Any, out: torch.Tensor, starts: tuple[int, ...], *factors: torch.Tensor) -> torch.Tensor:
        rows = out.view(-1, out.shape[-1])
        for start, down, up in zip(starts, factors[::2], factors[1::2], strict=True):
            rows[:, start : start + len(up)].addmm_(down.flatten(0, -2), up.T)
        ctx.mark_dirty(out)
        ctx.starts = starts
        ctx.save_for_backward(*factors)
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factors, gradients = ctx.saved_tensors, []
        rows = dout.reshape(-1, dout.shape[-1])
        for start, down, up in zip(ctx.starts, factors[::2], factors[1::2], strict=True):
            part = rows[:, start : start + len(up)]
            gradients += [(part @ up).view_as(down), part.T @ down.flatten(0, -2)]
        return dout, None, *gradients


def add_adapters(
    qkv: torch.Tensor, normed: torch.Tensor, adapters: Adapters, shape: LayerShape
) -> torch.Tensor:
    """Add to the fused projection what the adapters of q_proj, k_proj and v_proj add, in place.

    Args:
        qkv: queries, keys and values side by side, [B, T, (heads + 2 kv_heads) * head_dim], contiguous; not
            to be used any more, nor what is a view of it.
        normed: what was projected, [B, T, hidden].
        adapters: the layer's.
        shape: the layer's.

    Returns:
        `qkv` itself.
    """
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    starts = dict(zip(PROJECTIONS, (0, heads, heads + kv), strict=True))
    chosen = [name for name in PROJECTIONS if name in adapters]
    if not chosen:
        return qkv
    factors = [factor for name in chosen for factor in adapters[name].factors(normed)]
    added: torch.Tensor = _AddProducts.apply(qkv, tuple(starts[name] for name in chosen), *factors)
    return added
