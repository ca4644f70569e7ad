"""Attention transfer with maps of n x n, in plain torch: what one would write first."""

from __future__ import annotations

import math

import torch
from shapes import WINDOW


def materialised_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    factor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both losses with bf16 products and fp32 maps of n x n, as one would write them first."""
    heads, tokens = q.shape[1:3]
    k, v = k.repeat_interleave(heads // k.shape[1], 1), v.repeat_interleave(heads // v.shape[1], 1)
    row = torch.arange(tokens, device=q.device)
    causal = row[None, :] <= row[:, None]
    window = causal & (row[None, :] // WINDOW >= row[:, None] // WINDOW - 1)
    s = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    teacher = s.masked_fill(~causal, -math.inf).softmax(-1)
    y_teacher = teacher.to(v.dtype) @ v

    def phi(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        z = (x @ w.to(x.dtype)).float()
        return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1).clamp_min(1e-12)

    u = (phi(q, w_q).to(q.dtype) @ phi(k, w_k).to(q.dtype).transpose(-1, -2)).float()
    m = s.masked_fill(~window, -math.inf).amax(-1, keepdim=True)
    exact = factor.sigmoid()[:, None, None] * (s - m).masked_fill(~window, -math.inf).exp()
    weights = exact + u.masked_fill(window | ~causal, 0.0)
    student = weights / weights.sum(-1, keepdim=True)
    y = student.to(v.dtype) @ v
    mse = (y.float() - y_teacher.float()).square().mean()
    xent = -(teacher * student.clamp_min(1e-20).log()).sum(-1).mean()
    return 1000.0 * mse + xent, y_teacher
