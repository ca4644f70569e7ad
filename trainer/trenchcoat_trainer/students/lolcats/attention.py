"""LoLCATs' hybrid attention by itself: parameters, full forward and decode, in plain torch.

An exported checkpoint carries this file as ``student_attention.py``, so it must import only torch.

Hybrid attention (LoLCATs, arXiv 2410.10254, with the feature maps of Hedgehog, arXiv 2402.04347) gives query
i an exact softmax over its *terrace*, the block of ``window_size`` positions that holds i and the block
before it, and linear attention over every earlier position.  Blocks are counted from position 0, so a decoder
can follow: when a block leaves the terrace it is folded, whole, into a state of constant size.

Shape letters: B batch, H query heads, K key/value heads (K divides H), G = H / K, T tokens, N blocks,
W window size, D head dimension, F feature dimension (2F features: one half for +x, one for -x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

PHI_MIN = 1e-12
"""Smallest value of a feature: keeps phi_q . phi_k, and so its logarithm, away from zero."""

INITIAL_WINDOW_FACTOR = -2.1972245773362196
"""Before the sigmoid: the window starts with a weight of 0.1."""

PARTS = ("both", "window", "linear")
"""What of the attention may be kept, for measuring what each part does."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that attention computes in: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_head(x: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
    """Repeat the entries of `dim` so that each query head finds its own: grouped queries made plain."""
    if x.shape[dim] == heads:
        return x
    return x.repeat_interleave(heads // x.shape[dim], dim=dim)


def feature_map(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Map head vectors to positive features: ``[softmax(x w), softmax(-x w)]``, at least 1e-12.

    Args:
        x: queries or keys after RoPE, [B, H, T, D].
        w: the map of each head, [H, D, F].

    Returns:
        Features [B, H, T, 2F] in the accumulation dtype; each half sums to 1.
    """
    dtype = accumulation_dtype(x.dtype)
    z = x.to(dtype) @ w.to(dtype)
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1).clamp_min(PHI_MIN)


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""q [B, H, T, D], k and v [B, K, T, D] of one layer, q and k after RoPE."""
Parameters = Mapping[str, torch.Tensor]
"""The trainable tensors of one layer by name."""


class HybridInputs(NamedTuple):
    """What hybrid attention is a function of; every way of computing it takes these.

    Attributes:
        q: queries after RoPE, [B, H, T, D].
        k: keys after RoPE, [B, K, T, D], or [B, H, T, D]: grouped queries need no repeating.
        v: values, shaped like `k`.
        w_q: query feature maps, [H, D, F].
        w_k: key feature maps, [H, D, F], or [K, D, F] where the query heads of a group share theirs.
        window_factor: weight of the window before the sigmoid, [H].
        window_size: W, tokens per block of the terraced window.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    w_q: torch.Tensor
    w_k: torch.Tensor
    window_factor: torch.Tensor
    window_size: int

    def check(self) -> HybridInputs:
        """Return the inputs; ValueError, naming the argument, where shapes do not belong together."""
        q, k, v, w_q, w_k, window_factor, window_size = self
        if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
            raise ValueError("q, k and v must be [batch, heads, tokens, head_dim]")
        batch, heads, tokens, head_dim = q.shape
        if k.shape != v.shape:
            raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} differ in shape")
        if k.shape[0] != batch or k.shape[2] != tokens or k.shape[3] != head_dim:
            raise ValueError(f"k {tuple(k.shape)} does not match q {tuple(q.shape)}")
        if k.shape[1] == 0 or heads % k.shape[1]:
            raise ValueError(f"{heads} query heads cannot be grouped over {k.shape[1]} key/value heads")
        if tokens < 1:
            raise ValueError("attention needs at least one token")
        if w_q.ndim != 3 or w_q.shape[:2] != (heads, head_dim):
            raise ValueError(f"w_q must be [{heads}, {head_dim}, feature_dim], not {tuple(w_q.shape)}")
        if w_k.ndim != 3 or w_k.shape[0] not in (heads, k.shape[1]) or w_k.shape[1:] != w_q.shape[1:]:
            raise ValueError(f"w_k {tuple(w_k.shape)} must be like w_q, per query head or per key/value head")
        if window_factor.shape != (heads,):
            raise ValueError(f"window_factor must be [{heads}], not {tuple(window_factor.shape)}")
        if window_size < 1:
            raise ValueError(f"window_size must be positive, not {window_size}")
        return self


@dataclass
class HybridState:
    """What decoding remembers of one layer: constant in size however many tokens have passed.

    Attributes:
        keys: live keys after RoPE, [B, K, L, D]: W to 2W - 1 of them once W tokens have passed, so that
            the next query sees W + 1 to 2W keys including its own.
        values: their values, [B, K, L, D].
        memory: the folded sum of phi_k v^T, [B, H, 2F, D], or [B, K, 2F, D] where query heads share their
            group's key map; None while nothing has left the terrace.
        normalizer: the folded sum of phi_k, [B, H or K, 2F], or None likewise.
        tokens: how many tokens have been seen.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    normalizer: torch.Tensor | None = None
    tokens: int = 0

    @property
    def batch_size(self) -> int:
        """How many sequences are remembered: 0 before the first token."""
        return 0 if self.keys is None else self.keys.shape[0]

    def reorder(self, rows: torch.Tensor) -> None:
        """Keep the batch rows named by `rows`, in that order (beam search)."""
        for name in ("keys", "values", "memory", "normalizer"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


@dataclass(frozen=True)
class HybridAttention:
    """One layer's hybrid attention: its sizes, its trainable parameters, what it computes.

    Methods take `heads`, whose tokens are counted from the first one given, wherever its RoPE began, and
    `parameters`, which `shapes` names.

    Attributes:
        heads: H.
        kv_heads: K.
        key_maps: heads that have a key feature map of their own, H or K.
        head_dim: D.
        feature_dim: F.
        window_size: W.
    """

    heads: int
    kv_heads: int
    key_maps: int
    head_dim: int
    feature_dim: int
    window_size: int

    takes_padding = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trainable parameters by name; they are kept in fp32."""
        return {
            "w_q": (self.heads, self.head_dim, self.feature_dim),
            "w_k": (self.key_maps, self.head_dim, self.feature_dim),
            "window_factor": (self.heads,),
        }

    def initialize(
        self, name: str, tensor: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Fill `tensor`, the parameter called `name`, with its value before training; return it.

        Feature maps are uniform within sqrt(6 / (D F)), as in LoLCATs' implementation.
        """
        # By torch.nn.init, which transformers makes leave alone what it has loaded.
        if name == "window_factor":
            torch.nn.init.constant_(tensor, INITIAL_WINDOW_FACTOR)
        else:
            bound = (6 / (self.head_dim * self.feature_dim)) ** 0.5
            torch.nn.init.uniform_(tensor, -bound, bound, generator=generator)
        return tensor

    def inputs(self, heads: Heads, parameters: Parameters) -> HybridInputs:
        """Return what the attention is a function of; ValueError where shapes do not belong together."""
        maps = (parameters[name] for name in ("w_q", "w_k", "window_factor"))
        return HybridInputs(*heads, *maps, self.window_size).check()

    def attend(self, heads: Heads, parameters: Parameters, keep_parts: str = "both") -> torch.Tensor:
        """Return the attention's output before o_proj, [B, H, T, D], in the dtype of q.

        Memory is linear in the number of tokens, and every input gets its gradient.  With `keep_parts`
        "window" or "linear" the other part's weights are dropped before normalising; a row with no weight
        left gives zeros.

        Raises:
            ValueError: shapes do not belong together, or `keep_parts` is unknown.
        """
        return attend(self.inputs(heads, parameters), keep_parts)

    def new_state(self) -> HybridState:
        """Return what decoding remembers before the first token."""
        return HybridState()

    def decode(self, state: HybridState, heads: Heads, parameters: Parameters) -> torch.Tensor:
        """Attend from the next token(s) and update `state`: the same as the full forward's last rows.

        Arguments and result are those of `attend`, with T the number of new tokens: 1 when generating, any
        number for a prompt.
        """
        return decode(self.inputs(heads, parameters), state)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return the most bytes that decoding remembers of one sequence whose keys have `dtype`."""
        live = 2 * self.kv_heads * (2 * self.window_size - 1) * self.head_dim
        folded = self.key_maps * 2 * self.feature_dim * (self.head_dim + 1)
        return live * dtype.itemsize + folded * accumulation_dtype(dtype).itemsize


def layer_attention(config: Any, index: int) -> HybridAttention:
    """Return the attention of a layer of the model that `config` describes; all its layers are alike.

    Read from `config`, besides Llama's own sizes:
        window: tokens per block of the terraced window; a query sees its own block and the one before.
        feature_dim: columns of each feature map's matrix; there are twice as many features.
        key_maps: which heads have a key feature map of their own, "perQueryHead" or "perKeyValueHead".

    Raises:
        ValueError: key_maps is unknown.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    key_maps = {"perQueryHead": heads, "perKeyValueHead": kv_heads}
    if config.key_maps not in key_maps:
        raise ValueError(f"key_maps must be one of {', '.join(key_maps)}, not {config.key_maps!r}")
    return HybridAttention(
        heads, kv_heads, key_maps[config.key_maps], config.head_dim, config.feature_dim, config.window
    )


def attend(x: HybridInputs, keep_parts: str = "both") -> torch.Tensor:
    """Compute `HybridAttention.attend` of inputs that were checked."""
    return _forward(x, checked_part(keep_parts), HybridState())[0]


def checked_part(keep_parts: str) -> str:
    """Return `keep_parts`; ValueError where there is no such part."""
    if keep_parts not in PARTS:
        raise ValueError(f"keep_parts must be both, window or linear, not {keep_parts!r}")
    return keep_parts


def decode(x: HybridInputs, state: HybridState) -> torch.Tensor:
    """Compute `HybridAttention.decode` of inputs that were checked."""
    new_tokens = x.q.shape[2]
    if state.keys is not None and state.values is not None:
        x = x._replace(k=torch.cat([state.keys, x.k], dim=2), v=torch.cat([state.values, x.v], dim=2))
    if new_tokens == 1:
        y = _one_query(x, state)
    else:
        padded = x._replace(q=F.pad(x.q, (0, 0, x.k.shape[2] - new_tokens, 0)))
        y = _forward(padded, "both", state)[0][:, :, -new_tokens:]
    _remember(x, state)
    state.tokens += new_tokens
    return y


def linear_share(x: HybridInputs) -> torch.Tensor:
    """Return the share of each row's weight that lies below the window, [B, H, T], from 0 to 1.

    Rows of the first two blocks have nothing below their window and give 0.
    """
    return _forward(x._replace(v=x.k), "both", HybridState())[1]


def _forward(x: HybridInputs, keep_parts: str, state: HybridState) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend block by block; `k` and `v` start at a block boundary, behind which lies `state`.

    Returns:
        The output [B, H, T, D], and the share of each row's weight below the window, [B, H, T].
    """
    q, k, v, w_q, w_k, window_factor, window_size = x
    dtype = accumulation_dtype(q.dtype)
    batch, heads, tokens, head_dim = q.shape
    kv_heads, groups = k.shape[1], heads // k.shape[1]
    blocks = -(-tokens // window_size)
    padding = (0, 0, 0, blocks * window_size - tokens)
    q_BKGNWD = F.pad(q, padding).to(dtype).view(batch, kv_heads, groups, blocks, window_size, head_dim)
    k_BKNWD = F.pad(k, padding).to(dtype).view(batch, kv_heads, blocks, window_size, head_dim)
    v_BKNWD = F.pad(v, padding).to(dtype).view(batch, kv_heads, blocks, window_size, head_dim)

    value = torch.zeros_like(q_BKGNWD)
    weight = linear_weight = value[..., 0]
    if keep_parts != "linear":
        weight, value = _window_part(q_BKGNWD, k_BKNWD, v_BKNWD, window_factor.to(dtype))
    if keep_parts != "window" and (blocks > 2 or state.memory is not None):
        linear_weight, linear_value = _linear_part(q_BKGNWD, k_BKNWD, v_BKNWD, w_q, w_k, state)
        weight, value = weight + linear_weight, value + linear_value
    floor = torch.finfo(dtype).tiny
    y = (value / weight.clamp_min(floor).unsqueeze(-1)).reshape(batch, heads, -1, head_dim)
    share = (linear_weight / weight.clamp_min(floor)).reshape(batch, heads, -1)
    return y[:, :, :tokens].to(q.dtype), share[:, :, :tokens]


def _window_part(
    q_BKGNWD: torch.Tensor, k_BKNWD: torch.Tensor, v_BKNWD: torch.Tensor, window_factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight [B, K, G, N, W] and the weighted values [B, K, G, N, W, D] of the terrace."""
    kv_heads, groups = q_BKGNWD.shape[1:3]
    window_size, head_dim = q_BKGNWD.shape[-2:]
    own = torch.arange(window_size, device=q_BKGNWD.device)
    before = torch.ones(window_size, window_size, dtype=torch.bool, device=own.device)
    seen = torch.cat([before, own[None, :] <= own[:, None]], dim=1).repeat(q_BKGNWD.shape[3], 1, 1)
    seen[0, :, :window_size] = False  # nothing lies before the first block

    k_BKNVD = torch.cat([F.pad(k_BKNWD, (0, 0, 0, 0, 1, 0))[:, :, :-1], k_BKNWD], dim=3)
    v_BKNVD = torch.cat([F.pad(v_BKNWD, (0, 0, 0, 0, 1, 0))[:, :, :-1], v_BKNWD], dim=3)
    scores = torch.einsum("bkgnwd,bknvd->bkgnwv", q_BKGNWD, k_BKNVD) * head_dim**-0.5
    scores = scores.masked_fill(~seen, float("-inf"))
    sigma = window_factor.sigmoid().view(kv_heads, groups, 1, 1, 1)
    weights = sigma * (scores - scores.amax(-1, keepdim=True)).exp()
    return weights.sum(-1), torch.einsum("bkgnwv,bknvd->bkgnwd", weights, v_BKNVD)


def _linear_part(
    q_BKGNWD: torch.Tensor,
    k_BKNWD: torch.Tensor,
    v_BKNWD: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    state: HybridState,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight [B, K, G, N, W] and the weighted values [B, K, G, N, W, D] below the terrace."""
    batch, kv_heads, groups, blocks, window_size, head_dim = q_BKGNWD.shape
    phi_q = feature_map(q_BKGNWD.reshape(batch, kv_heads * groups, -1, head_dim), w_q)
    phi_q = phi_q.view(batch, kv_heads, groups, blocks, window_size, -1)
    folded = max(blocks - 2, 0)  # the last two blocks are below nobody's terrace
    k_BKND = k_BKNWD[:, :, :folded].reshape(batch, kv_heads, -1, head_dim)
    phi_k = _key_features(k_BKND, w_k)
    phi_k = phi_k.view(batch, kv_heads, w_k.shape[0] // kv_heads, folded, window_size, phi_q.shape[-1])
    memory = torch.einsum("bkgnwf,bknwd->bkgnfd", phi_k, v_BKNWD[:, :, :folded]).cumsum(3)
    normalizer = phi_k.sum(4).cumsum(3)
    memory = F.pad(memory, (0, 0, 0, 0, blocks - folded, 0))
    normalizer = F.pad(normalizer, (0, 0, blocks - folded, 0))
    if state.memory is not None and state.normalizer is not None:
        memory = memory + state.memory.view(batch, kv_heads, -1, 1, *state.memory.shape[2:])
        normalizer = normalizer + state.normalizer.view(batch, kv_heads, -1, 1, phi_q.shape[-1])
    weight = (phi_q @ normalizer.unsqueeze(-1)).squeeze(-1)
    return weight, phi_q @ memory


def _key_features(k: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Return the keys' features, once per map: [B, H, T, 2F], or [B, K, T, 2F] for shared maps."""
    return feature_map(per_head(k, w_k.shape[0], 1), w_k)


def _one_query(x: HybridInputs, state: HybridState) -> torch.Tensor:
    """Attend from one query to all of `k`, its terrace, and to the state below it."""
    q, k, v, w_q, _, window_factor, _ = x
    dtype = accumulation_dtype(q.dtype)
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    q_BKGD = q.to(dtype).view(batch, kv_heads, -1, head_dim)
    scores = q_BKGD @ k.to(dtype).transpose(-1, -2) * head_dim**-0.5
    sigma = window_factor.to(dtype).sigmoid().view(kv_heads, -1, 1)
    weights = sigma * (scores - scores.amax(-1, keepdim=True)).exp()
    weight, value = weights.sum(-1, keepdim=True), weights @ v.to(dtype)
    if state.memory is not None and state.normalizer is not None:
        phi_q = feature_map(q, w_q).view(batch, kv_heads, q_BKGD.shape[2], 1, -1)
        memory = state.memory.view(batch, kv_heads, -1, *state.memory.shape[2:])
        normalizer = state.normalizer.view(batch, kv_heads, -1, phi_q.shape[-1], 1)
        value = value + (phi_q @ memory).squeeze(-2)
        weight = weight + (phi_q @ normalizer).squeeze(-1)
    y = (value / weight.clamp_min(torch.finfo(dtype).tiny)).view(batch, heads, 1, head_dim)
    return y.to(q.dtype)


def _remember(x: HybridInputs, state: HybridState) -> None:
    """Keep the terrace of the next token live and fold every block before it into the state."""
    _, k, v, _, w_k, _, window_size = x
    leaving = max(k.shape[2] // window_size - 1, 0) * window_size
    if leaving:
        dtype = accumulation_dtype(k.dtype)
        phi_k = _key_features(k[:, :, :leaving], w_k)
        values = per_head(v[:, :, :leaving].to(dtype), phi_k.shape[1], 1)
        memory, normalizer = phi_k.transpose(-1, -2) @ values, phi_k.sum(2)
        state.memory = memory if state.memory is None else state.memory + memory
        state.normalizer = normalizer if state.normalizer is None else state.normalizer + normalizer
    state.keys, state.values = k[:, :, leaving:], v[:, :, leaving:]
