"""What a form must say and compute to be served: how a sequence's state lies in a page of vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from trenchcoat_vllm.metadata import Chunk, StudentStep

Pool = tuple[torch.Tensor, ...]
"""All pages of a layer: of what `Pages.shapes` says a tensor each, the page in front."""
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""q [tokens, H, D], k and v [tokens, K, D] of one layer, q and k after RoPE."""
Parameters = Mapping[str, torch.Tensor]
"""The layer's trained tensors by name, fp32."""


class Pages(Protocol):
    """The states of one layer, a page of the pool each.

    What a page holds must not depend on how many tokens came at once, and nothing of what it held before a
    sequence's first token may matter. Two tensors, so that prefix caching can copy the states of any form.
    """

    attention: Any
    """The form's own `LayerAttention`, of this rank's heads."""

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what a page holds."""

    def dtypes(self, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
        """Return the dtypes of what a page holds, where keys have `dtype`."""

    def one_each(self, pool: Pool, heads: Heads, parameters: Parameters, step: StudentStep) -> torch.Tensor:
        """Attend from one token of each of the step's N sequences; the result is [N, H, D]."""

    def several(self, pool: Pool, heads: Heads, parameters: Parameters, chunk: Chunk) -> torch.Tensor:
        """Attend from T tokens of one sequence; the result is [T, H, D]."""
