"""The window in a few lines that anyone can check: every weight materialised, in the dtype given."""

from __future__ import annotations

import torch

from trenchcoat_trainer.students.form import Heads


def attend(heads: Heads, window: int, first_tokens: int, visible: torch.Tensor | None = None) -> torch.Tensor:
    """Return softmax attention over the first tokens and the window, [B, H, T, D].

    Args:
        heads: what to attend with.
        window: last tokens that a query sees, its own included.
        first_tokens: tokens at the start that every query sees.
        visible: which tokens are the sequence's own, bool [B, T]; None for all. Rows of others are zeros.
    """
    q, k, v = heads
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if visible is None:
        visible = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
    position = visible.cumsum(1) - 1
    i, j = position[:, :, None], position[:, None, :]
    seen = (j <= i) & ((j < first_tokens) | (i - j < window)) & visible[:, :, None] & visible[:, None, :]
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    return weights.masked_fill(~visible[:, None, :, None], 0) @ v
