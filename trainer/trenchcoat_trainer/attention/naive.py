"""Hybrid attention and the losses of attention transfer with every n x n map materialised: the truth.

Computes in the dtype that it is given; give it float64 to judge the others.  Shapes as in `hybrid.py`.
"""

from __future__ import annotations

import torch

from trenchcoat_trainer.attention.hybrid import PHI_MIN, per_head


def causal_mask(tokens: int, device: torch.device) -> torch.Tensor:
    """Return [T, T], true where query i may see key j."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def window_mask(tokens: int, window_size: int, device: torch.device) -> torch.Tensor:
    """Return [T, T], true where key j lies in the terrace of query i."""
    block = torch.arange(tokens, device=device) // window_size
    return causal_mask(tokens, device) & (block[None, :] >= block[:, None] - 1)


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return q . k / sqrt(d), [B, H, T, T]."""
    return q @ per_head(k, q.shape[1], 1).transpose(-1, -2) * q.shape[-1] ** -0.5


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return phi(x) = [softmax(x w), softmax(-x w)], at least 1e-12: [B, H, T, 2F]."""
    z = x @ w
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1).clamp_min(PHI_MIN)


def log_weights(
    q: torch.Tensor,
    k: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    window_size: int,
    drop_window: bool = False,
) -> torch.Tensor:
    """Return the logarithm of the student's unnormalised weights, [B, H, T, T], -inf above the diagonal.

    With `drop_window` the linear part covers every key up to the query's own.
    """
    heads, tokens = q.shape[1:3]
    window = window_mask(tokens, window_size, q.device) & (not drop_window)
    s = scores(q, k)
    m = 0.0 if drop_window else s.masked_fill(~window, float("-inf")).amax(-1, keepdim=True)
    u = features(q, w_q) @ features(per_head(k, heads, 1), per_head(w_k, heads, 0)).transpose(-1, -2)
    log_sigma = torch.nn.functional.logsigmoid(window_factor)[:, None, None]
    return torch.where(window, s - m + log_sigma, u.log()).masked_fill(
        ~causal_mask(tokens, q.device), float("-inf")
    )


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    window_size: int,
    keep_parts: str = "both",
) -> torch.Tensor:
    """Return the student's output, [B, H, T, D]."""
    weights = log_weights(q, k, w_q, w_k, window_factor, window_size).exp()
    window = window_mask(q.shape[2], window_size, q.device)
    if keep_parts != "both":
        weights = weights.masked_fill(window != (keep_parts == "window"), 0.0)
    z = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return weights / z @ per_head(v, q.shape[1], 1)


def distill_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_teacher: torch.Tensor,
    k_teacher: torch.Tensor,
    v_teacher: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    window_size: int,
    drop_window: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mse, xent, teacher's output); gradients flow to the student's arguments only."""
    heads, tokens = q.shape[1:3]
    causal = causal_mask(tokens, q.device)
    with torch.no_grad():
        a_teacher = scores(q_teacher, k_teacher).masked_fill(~causal, float("-inf")).softmax(-1)
        y_teacher = a_teacher @ per_head(v_teacher, heads, 1)
    log_a = log_weights(q, k, w_q, w_k, window_factor, window_size, drop_window).log_softmax(-1)
    mse = (log_a.exp() @ per_head(v, heads, 1) - y_teacher).square().mean()
    xent = -(a_teacher * log_a.masked_fill(~causal, 0.0)).sum(-1).mean()
    return mse, xent, y_teacher
