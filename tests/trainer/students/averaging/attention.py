"""Softmax over the last keys of a window, mixed by a gate with the mean of all values; torch alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Recent:
    """The last keys and values, [B, K, W - 1, D], and the sum of all values, [B, K, 1, D]."""

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    total: torch.Tensor | None = None
    tokens: int = 0

    @property
    def batch_size(self) -> int:
        return 0 if self.keys is None else len(self.keys)

    def reorder(self, rows: torch.Tensor) -> None:
        self.keys, self.values, self.total = (x[rows] for x in (self.keys, self.values, self.total))


@dataclass(frozen=True)
class Averaging:
    """One layer; a layer without a gate trains nothing and mixes half and half."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int
    has_gate: bool

    takes_padding = False

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"gate": (self.heads,)} if self.has_gate else {}

    def initialize(self, name: str, tensor: torch.Tensor, generator: Any = None) -> torch.Tensor:
        return torch.nn.init.uniform_(tensor, -1.0, 1.0, generator=generator)

    def new_state(self) -> Recent:
        return Recent()

    def attend(self, heads: Any, parameters: Any, keep_parts: str = "both") -> torch.Tensor:
        return self.mixed(Recent(), heads, parameters, keep_parts)

    def decode(self, state: Recent, heads: Any, parameters: Any) -> torch.Tensor:
        return self.mixed(state, heads, parameters)

    def mixed(self, state: Recent, heads: Any, parameters: Any, keep_parts: str = "both") -> torch.Tensor:
        q, k, v = heads
        totals = v.cumsum(2) + (0 if state.total is None else state.total)
        counts = state.tokens + 1 + torch.arange(q.shape[2])[:, None]
        means = (totals / counts).repeat_interleave(self.heads // self.kv_heads, 1)
        if state.keys is not None:
            k, v = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        ahead = torch.arange(k.shape[2]) - (k.shape[2] - q.shape[2] + torch.arange(q.shape[2]))[:, None]
        seen = (ahead <= 0) & (ahead > -self.window)
        recent = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
        gate = parameters["gate"].sigmoid()[:, None, None] if self.has_gate else 0.5
        state.total, state.tokens = totals[:, :, -1:].clone(), state.tokens + q.shape[2]
        first = max(k.shape[2] - self.window + 1, 0)
        state.keys, state.values = k[:, :, first:].clone(), v[:, :, first:].clone()
        if keep_parts != "both":
            return recent if keep_parts == "window" else means
        return ((1 - gate) * recent + gate * means).to(q.dtype)

    def state_bytes(self, dtype: torch.dtype) -> int:
        return (2 * self.window - 1) * self.kv_heads * self.head_dim * dtype.itemsize


def layer_attention(config: Any, index: int) -> Averaging:
    return Averaging(
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.windows[index],
        has_gate=index > 0,
    )  # fmt: skip
