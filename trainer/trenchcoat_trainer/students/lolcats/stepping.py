"""One more token through the hybrid attention with all shapes fixed: a step that a CUDA graph takes whole.

An exported checkpoint carries this file beside ``student_attention.py``, so it must import torch and
``hybrid.py`` alone.

Shape letters as in ``hybrid.py``.  The terrace has room for 2W keys; when a sequence's is full, `settle`
folds its first block: between steps, once in W of them, so that the step itself computes nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .hybrid import Folded, accumulation_dtype, fold, one_query

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class FixedHybridState:
    """What decoding remembers of one layer, in tensors that are written in place.

    Attributes:
        keys: of the terrace, [B, K, 2W, D]; what is not there yet is zero.
        values: likewise.
        memory: the folded sum of phi_k v^T, [B, H or K, 2F, D]; zero while nothing is folded.
        normalizer: the folded sum of phi_k, [B, H or K, 2F].
        live: keys in each sequence's terrace, [B].
    """

    keys: torch.Tensor
    values: torch.Tensor
    memory: torch.Tensor
    normalizer: torch.Tensor
    live: torch.Tensor


class FixedHybrid:
    """Steps of fixed shapes for the hybrid attention."""

    key_maps: int
    head_dim: int
    feature_dim: int
    window_size: int

    def fixed(self, state: Any) -> FixedHybridState:
        """Return what `state` remembers after a prompt, with room for all that it will."""
        batch, _, held, _ = state.keys.shape
        room = (0, 0, 0, 2 * self.window_size - held)
        live_B = torch.full_like(state.keys[:, 0, 0, 0], held, dtype=torch.long)
        if state.live is not None:
            live_B = state.live.to(live_B)
        memory, normalizer = state.memory, state.normalizer
        if memory is None:
            dtype = accumulation_dtype(state.keys.dtype)
            shape = (batch, self.key_maps, 2 * self.feature_dim)
            memory = state.keys.new_zeros(*shape, self.head_dim, dtype=dtype)
            normalizer = state.keys.new_zeros(shape, dtype=dtype)
        keys, values = F.pad(state.keys, room), F.pad(state.values, room)
        return FixedHybridState(keys, values, memory.clone(), normalizer.clone(), live_B)

    def step(
        self, state: FixedHybridState, heads: Heads, parameters: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Attend from the next token of every sequence, [B, H, 1, D], and write it into `state`."""
        x = self.inputs(heads, parameters)  # type: ignore[attr-defined]
        index = state.live.view(-1, 1, 1, 1).expand_as(x.k)
        state.keys.scatter_(2, index, x.k)
        state.values.scatter_(2, index, x.v)
        seen_BX = torch.arange(state.keys.shape[2], device=x.k.device) <= state.live[:, None]
        folded = Folded(state.memory, state.normalizer)
        y = one_query(x._replace(k=state.keys, v=state.values), folded, seen_BX)
        state.live.add_(1)
        return y

    def settle(self, state: FixedHybridState, parameters: Mapping[str, torch.Tensor]) -> None:
        """Fold the first block of every sequence whose terrace is full; of the others nothing changes."""
        window = self.window_size
        full_B = state.live == 2 * window
        folded = fold(state.keys[:, :, :window], state.values[:, :, :window], parameters["w_k"])
        state.memory.add_(folded.memory * full_B[:, None, None, None])
        state.normalizer.add_(folded.normalizer * full_B[:, None, None])
        for tensor in (state.keys, state.values):
            tensor.copy_(torch.where(full_B[:, None, None, None], tensor.roll(-window, 2), tensor))
        state.live.sub_(window * full_B)

    def steps_until_settled(self, state: FixedHybridState) -> torch.Tensor | None:
        """Return after how many steps each sequence's terrace is full for the first time, [B], on the CPU."""
        return (2 * self.window_size - state.live).cpu()
