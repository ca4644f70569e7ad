"""LoLCATs' hybrid attention, the state of a sequence in a page of vLLM's.

Shape letters: P pages of the pool, N sequences with one token each, H query heads, K key/value heads, M key
feature maps (H or K), T tokens, W window size, D head dimension, F feature dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from trenchcoat_trainer.students.lolcats.attention import HybridAttention, HybridState
from trenchcoat_trainer.students.lolcats.hybrid import Folded, accumulation_dtype, fold, one_query

from trenchcoat_vllm.metadata import Chunk, StudentStep
from trenchcoat_vllm.pages import Heads, Parameters, Pool


@dataclass(frozen=True)
class HybridPages:
    """The states of one layer, a page of the pool each.

    A page holds what has left the terrace, [M, 2F, D + 1] with the features' sum in the last column, and the
    live keys and values, [2, K, 2W, D], from the first token of their block on.
    """

    attention: HybridAttention

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what a page holds."""
        own = self.attention
        folded = (own.key_maps, 2 * own.feature_dim, own.head_dim + 1)
        return folded, (2, own.kv_heads, 2 * own.window_size, own.head_dim)

    def dtypes(self, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
        """Return the dtypes of what a page holds, where keys have `dtype`."""
        return accumulation_dtype(dtype), dtype

    def one_each(self, pool: Pool, heads: Heads, parameters: Parameters, step: StudentStep) -> torch.Tensor:
        """Attend from one token of each sequence: `Pages.one_each`."""
        folded_PMFD, live_P = pool
        if step.fresh is not None:  # what another sequence left may not even be numbers
            folded_PMFD[step.fresh], live_P[step.fresh] = 0, 0
        window, pages_N = self.attention.window_size, step.pages_N
        place_N = step.seen_N - (step.seen_N // window - 1).clamp_min(0) * window
        q, k, v = (x.unsqueeze(2) for x in heads)
        live_P[pages_N, :, :, place_N] = torch.cat([k, v], 2).transpose(1, 2)
        keys, values = live_P[pages_N].unbind(1)
        x = self.attention.inputs((q, k, v), parameters)._replace(k=keys, v=values)
        seen = torch.arange(2 * window, device=q.device) <= place_N[:, None]
        y = one_query(x, _folded(folded_PMFD[pages_N]), seen)
        full = step.whose(window, lambda seen: seen >= window and (seen + 1) % window == 0)
        if full is not None:  # a block of theirs leaves the terrace
            keys, values = live_P[full, :, :, :window].unbind(1)
            folded_PMFD[full] += torch.cat(_columns(fold(keys, values, x.w_k)), -1)
            live_P[full, :, :, :window] = live_P[full, :, :, window:]
        return y.squeeze(2)

    def several(self, pool: Pool, heads: Heads, parameters: Parameters, chunk: Chunk) -> torch.Tensor:
        """Attend from tokens of one sequence: `Pages.several`."""
        folded_PMFD, live_P = pool
        window, state = self.attention.window_size, HybridState()
        if chunk.seen:
            live = chunk.seen - max(chunk.seen // window - 1, 0) * window
            keys, values = live_P[chunk.page, :, :, :live].unbind(1)
            state = HybridState(keys, values, *_folded(folded_PMFD[chunk.page]), tokens=chunk.seen)
        else:
            folded_PMFD.index_fill_(0, chunk.page, 0)
            live_P.index_fill_(0, chunk.page, 0)
        q, k, v = (x.transpose(0, 1)[None] for x in heads)
        y_1HTD = self.attention.decode(state, (q, k, v), parameters)
        if state.folded is not None:
            folded_PMFD.index_copy_(0, chunk.page, torch.cat(_columns(state.folded), -1))
        live = torch.stack([state.keys, state.values], 1)
        live_P[:, :, :, : live.shape[3]].index_copy_(0, chunk.page, live)
        return y_1HTD[0].transpose(0, 1)


def _folded(page: torch.Tensor) -> Folded:
    return Folded(page[..., :-1], page[..., -1])


def _columns(folded: Folded) -> tuple[torch.Tensor, torch.Tensor]:
    return folded.memory, folded.normalizer[..., None]
