"""One more token through a window with all shapes fixed: a step that a compiler or a CUDA graph takes whole.

An exported checkpoint carries this file beside ``student_attention.py``, so it must import only torch.

Shape letters as in ``attention.py``; S + w slots, all of them there from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""q [B, H, T, D], k and v [B, K, T, D] of one layer, q and k after RoPE."""


@dataclass
class FixedWindowState:
    """What decoding remembers of one layer, in tensors that are written in place.

    Attributes:
        keys: [B, K, S + w, D], in the slots of a `WindowState`; what is not taken yet is zero.
        values: likewise.
        position: the next token's, counted from each sequence's first, [B].
    """

    keys: torch.Tensor
    values: torch.Tensor
    position: torch.Tensor


class FixedWindow:
    """Steps of fixed shapes for a window."""

    window: int
    first_tokens: int

    def fixed(self, state: Any) -> FixedWindowState:
        """Return what `state` remembers after a prompt, with room for all that it will."""
        room = (0, 0, 0, self.first_tokens + self.window - state.keys.shape[2])
        position_B = torch.full_like(state.keys[:, 0, 0, 0], state.tokens, dtype=torch.long)
        if state.hidden is not None:
            position_B = position_B - state.hidden
        return FixedWindowState(F.pad(state.keys, room), F.pad(state.values, room), position_B)

    def step(
        self, state: FixedWindowState, heads: Heads, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Attend from the next token of every sequence, [B, H, 1, D], and write it into `state`."""
        q, k, v = heads
        position_B, first = state.position, self.first_tokens
        slot_B = torch.where(position_B < first, position_B, first + (position_B - first) % self.window)
        index = slot_B.view(-1, 1, 1, 1).expand_as(k)
        state.keys.scatter_(2, index, k)
        state.values.scatter_(2, index, v)
        taken_BX = torch.arange(state.keys.shape[2], device=k.device) <= position_B[:, None]
        q_BKGD = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        y_BKGD = F.scaled_dot_product_attention(q_BKGD, state.keys, state.values, taken_BX[:, None, None])
        state.position.add_(1)
        return y_BKGD.reshape(q.shape)

    def settle(self, state: FixedWindowState, parameters: Mapping[str, torch.Tensor]) -> None:
        """Nothing is to be done between steps."""

    def steps_until_settled(self, state: FixedWindowState) -> torch.Tensor | None:
        """No number of steps ever asks for it."""
        return None
