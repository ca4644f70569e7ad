"""Hybrid attention and the losses of attention transfer with every n x n map materialised: the truth.

Computes in the dtype that it is given; give it float64 to judge the others.  Shapes as in `attention.py`.
"""

from __future__ import annotations

import torch

from trenchcoat_trainer.students.form import Heads
from trenchcoat_trainer.students.lolcats.hybrid import PHI_MIN, HybridInputs, checked_part, per_head


def causal_mask(tokens: int, device: torch.device) -> torch.Tensor:
    """Return [T, T], true where query i may see key j."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def window_mask(position: torch.Tensor, window_size: int) -> torch.Tensor:
    """Return [..., T, T], true where key j lies in the terrace of query i, of positions [..., T]."""
    block = position // window_size
    causal = causal_mask(position.shape[-1], position.device)
    return causal & (block[..., None, :] >= block[..., :, None] - 1)


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return q . k / sqrt(d), [B, H, T, T]."""
    return q @ per_head(k, q.shape[1], 1).transpose(-1, -2) * q.shape[-1] ** -0.5


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return phi(x) = [softmax(x w), softmax(-x w)], at least 1e-12: [B, H, T, 2F]."""
    z = x @ w
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1).clamp_min(PHI_MIN)


def log_weights(
    x: HybridInputs, drop_window: bool = False, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the logarithm of the student's unnormalised weights, [B, H, T, T], -inf above the diagonal.

    With `drop_window` the linear part covers every key up to the query's own.  `visible`, bool [B, T], says
    which tokens are a sequence's own; the others are no keys.
    """
    q, k, _, w_q, w_k, window_factor, window_size = x
    heads, tokens = q.shape[1:3]
    seen = causal_mask(tokens, q.device)
    position = torch.arange(tokens, device=q.device)
    if visible is not None:
        seen, position = seen & visible[:, None, None], (visible.cumsum(1) - 1)[:, None]
    window = window_mask(position, window_size) & seen & (not drop_window)
    s = scores(q, k)
    m = 0.0 if drop_window else s.masked_fill(~window, float("-inf")).amax(-1, keepdim=True)
    u = features(q, w_q) @ features(per_head(k, heads, 1), per_head(w_k, heads, 0)).transpose(-1, -2)
    log_sigma = torch.nn.functional.logsigmoid(window_factor)[:, None, None]
    return torch.where(window, s - m + log_sigma, u.log()).masked_fill(~seen, float("-inf"))


def attend(x: HybridInputs, keep_parts: str = "both", visible: torch.Tensor | None = None) -> torch.Tensor:
    """Return the student's output, [B, H, T, D]; rows of hidden tokens mean nothing."""
    weights = log_weights(x, visible=visible).exp()
    position = torch.arange(x.q.shape[2], device=x.q.device)
    if visible is not None:
        position = (visible.cumsum(1) - 1)[:, None]
    window = window_mask(position, x.window_size)
    if checked_part(keep_parts) != "both":
        weights = weights.masked_fill(window != (keep_parts == "window"), 0.0)
    z = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return weights / z @ per_head(x.v, x.q.shape[1], 1)


def distill_loss(
    x: HybridInputs, teacher: Heads, drop_window: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mse, xent, teacher's output); gradients flow to the student's arguments only."""
    heads, tokens = x.q.shape[1:3]
    causal = causal_mask(tokens, x.q.device)
    with torch.no_grad():
        a_teacher = scores(teacher.q, teacher.k).masked_fill(~causal, float("-inf")).softmax(-1)
        y_teacher = a_teacher @ per_head(teacher.v, heads, 1)
    log_a = log_weights(x, drop_window).log_softmax(-1)
    mse = (log_a.exp() @ per_head(x.v, heads, 1) - y_teacher).square().mean()
    xent = -(a_teacher * log_a.masked_fill(~causal, 0.0)).sum(-1).mean()
    return mse, xent, y_teacher
