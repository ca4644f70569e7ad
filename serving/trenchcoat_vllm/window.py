"""Exact softmax over the first tokens and the last ones, the state of a sequence in a page of vLLM's.

Shape letters: P pages of the pool, N sequences with one token each, H query heads, K key/value heads,
T tokens, D head dimension, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from trenchcoat_trainer.students.window.attention import WindowAttention, WindowState

from trenchcoat_vllm.metadata import Chunk, StudentStep
from trenchcoat_vllm.pages import Heads, Parameters, Pool


@dataclass(frozen=True)
class WindowPages:
    """The states of one layer, a page of the pool each.

    A page holds keys and values, [K, S, D] each, in the slots of `WindowState`: what it holds does not depend
    on how many tokens came at once.
    """

    attention: WindowAttention

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what a page holds."""
        own = self.attention
        return ((own.kv_heads, own.first_tokens + own.window, own.head_dim),) * 2

    def dtypes(self, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
        """Return the dtypes of what a page holds, where keys have `dtype`."""
        return dtype, dtype

    def one_each(self, pool: Pool, heads: Heads, parameters: Parameters, step: StudentStep) -> torch.Tensor:
        """Attend from one token of each sequence: `Pages.one_each`."""
        q, k, v = heads
        keys_PKSD, values_PKSD = pool
        own = self.attention
        if step.fresh is not None:  # what another sequence left may not even be numbers
            keys_PKSD[step.fresh], values_PKSD[step.fresh] = 0, 0
        seen_N = step.seen_N
        slot_N = torch.where(seen_N < own.first_tokens, seen_N, own.slot(seen_N))
        keys_PKSD[step.pages_N, :, slot_N] = k
        values_PKSD[step.pages_N, :, slot_N] = v
        taken_NS = torch.arange(keys_PKSD.shape[2], device=q.device) <= seen_N[:, None]
        y_NKGD = F.scaled_dot_product_attention(
            q.unflatten(1, (own.kv_heads, -1)),
            keys_PKSD[step.pages_N],
            values_PKSD[step.pages_N],
            taken_NS[:, None, None],
        )
        return y_NKGD.flatten(1, 2)

    def several(self, pool: Pool, heads: Heads, parameters: Parameters, chunk: Chunk) -> torch.Tensor:
        """Attend from tokens of one sequence: `Pages.several`."""
        state = WindowState()
        if chunk.seen:
            taken = min(chunk.seen, self.shapes()[0][1])
            state = WindowState(*(x[chunk.page, :, :taken] for x in pool), tokens=chunk.seen)
        q, k, v = (x.transpose(0, 1)[None] for x in heads)
        y_1HTD = self.attention.decode(state, (q, k, v), parameters)
        for pages, kept in zip(pool, (state.keys, state.values), strict=True):
            taken = kept.shape[2]
            pages[:, :, :taken].index_copy_(0, chunk.page, kept)
            if not chunk.seen:
                pages[:, :, taken:].index_fill_(0, chunk.page, 0)
        return y_1HTD[0].transpose(0, 1)
