"""The teacher's softmax attention by the kernel that torch would choose, with the logarithms of its sums."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

from trenchcoat_trainer.students.lolcats.hybrid import per_head
from trenchcoat_trainer.students.lolcats.kernels.launch import LOG2_E

ROWS = 1024
"""Rows of scores that are held at once where no kernel of torch's gives the sums."""


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return causal attention's output [B, H, T, D], and log2 of each row's sum of exponentials, [B, H, T].

    Args:
        q: queries, [B, H, T, D].
        k: keys, [B, K, T, D]; K divides H.
        v: values, likewise.
    """
    operators, chosen = torch.ops.aten, SDPBackend.MATH
    if q.is_cuda and q.dtype != torch.float32:
        chosen = SDPBackend(torch._fused_sdp_choice(q, k, v, None, 0.0, True, scale=None, enable_gqa=True))
    if chosen == SDPBackend.CUDNN_ATTENTION:
        output, lse, *_ = operators._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)
    elif chosen == SDPBackend.FLASH_ATTENTION:
        output, lse, *_ = operators._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
    else:
        output, lse = _by_rows(q, per_head(k, q.shape[1], 1), per_head(v, q.shape[1], 1))
    return output, lse.reshape(q.shape[:-1]) * LOG2_E


def _by_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both in plain torch, in fp32, memory linear in the tokens; sums by natural logarithm."""
    output, lse = q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)
    at = torch.arange(q.shape[2], device=q.device)
    for rows in at.split(ROWS):
        first, stop = int(rows[0]), int(rows[-1]) + 1
        s = q[:, :, first:stop].float() @ k[:, :, :stop].float().transpose(-1, -2) * q.shape[-1] ** -0.5
        s = s.masked_fill(at[:stop] > rows[:, None], float("-inf"))
        lse[:, :, first:stop] = s.logsumexp(-1)
        output[:, :, first:stop] = (s.softmax(-1) @ v[:, :, :stop].float()).to(q.dtype)
    return output, lse
