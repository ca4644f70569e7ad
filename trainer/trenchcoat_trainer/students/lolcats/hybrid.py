"""LoLCATs' hybrid attention as a function of its inputs: full forward and one query, in plain torch.

An exported checkpoint carries this file beside ``student_attention.py``, so it must import only torch.

Hybrid attention (LoLCATs, arXiv 2410.10254, with the feature maps of Hedgehog, arXiv 2402.04347) gives query
i an exact softmax over its *terrace*, the block of ``window_size`` positions that holds i and the block
before it, and linear attention over every earlier position.  Blocks are counted from position 0, so a decoder
can follow: when a block leaves the terrace it is folded, whole, into a state of constant size.

Shape letters: B batch, H query heads, K key/value heads (K divides H), G = H / K, T tokens, N blocks,
W window size, D head dimension, F feature dimension (2F features: one half for +x, one for -x).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

PHI_MIN = 1e-12
"""Smallest value of a feature: keeps phi_q . phi_k, and so its logarithm, away from zero."""

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
    # What clamp_min would give; but its backward on a CPU takes as long as all the rest of this.
    return F.threshold(torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1), PHI_MIN, PHI_MIN)


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


class Folded(NamedTuple):
    """The blocks that have left the terrace.

    Attributes:
        memory: the sum of phi_k v^T, [B, H, 2F, D], or [B, K, 2F, D] where query heads share their group's
            key map.
        normalizer: the sum of phi_k, [B, H or K, 2F].
    """

    memory: torch.Tensor
    normalizer: torch.Tensor


def checked_part(keep_parts: str) -> str:
    """Return `keep_parts`; ValueError where there is no such part."""
    if keep_parts not in PARTS:
        raise ValueError(f"keep_parts must be both, window or linear, not {keep_parts!r}")
    return keep_parts


def attend(x: HybridInputs, keep_parts: str = "both") -> torch.Tensor:
    """Compute the attention's output of inputs that were checked, [B, H, T, D]."""
    return forward(x, checked_part(keep_parts), None)[0]


def linear_share(x: HybridInputs) -> torch.Tensor:
    """Return the share of each row's weight that lies below the window, [B, H, T], from 0 to 1.

    Rows of the first two blocks have nothing below their window and give 0.
    """
    return forward(x._replace(v=x.k), "both", None)[1]


def forward(x: HybridInputs, keep_parts: str, folded: Folded | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend block by block; `k` and `v` start at a block boundary, behind which lies `folded`.

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
    if keep_parts != "window" and (blocks > 2 or folded is not None):
        linear_weight, linear_value = _linear_part(q_BKGNWD, k_BKNWD, v_BKNWD, w_q, w_k, folded)
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
    folded: Folded | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight [B, K, G, N, W] and the weighted values [B, K, G, N, W, D] below the terrace."""
    batch, kv_heads, groups, blocks, window_size, head_dim = q_BKGNWD.shape
    phi_q = feature_map(q_BKGNWD.reshape(batch, kv_heads * groups, -1, head_dim), w_q)
    phi_q = phi_q.view(batch, kv_heads, groups, blocks, window_size, -1)
    below = max(blocks - 2, 0)  # the last two blocks are below nobody's terrace
    k_BKND = k_BKNWD[:, :, :below].reshape(batch, kv_heads, -1, head_dim)
    phi_k = key_features(k_BKND, w_k)
    phi_k = phi_k.view(batch, kv_heads, w_k.shape[0] // kv_heads, below, window_size, phi_q.shape[-1])
    memory = running_sum(torch.einsum("bkgnwf,bknwd->bkgnfd", phi_k, v_BKNWD[:, :, :below]))
    normalizer = phi_k.sum(4).cumsum(3)
    memory = F.pad(memory, (0, 0, 0, 0, blocks - below, 0))
    normalizer = F.pad(normalizer, (0, 0, blocks - below, 0))
    if folded is not None:
        memory = memory + folded.memory.view(batch, kv_heads, -1, 1, *folded.memory.shape[2:])
        normalizer = normalizer + folded.normalizer.view(batch, kv_heads, -1, 1, phi_q.shape[-1])
    weight = (phi_q @ normalizer.unsqueeze(-1)).squeeze(-1)
    return weight, phi_q @ memory


class _RunningSum(torch.autograd.Function):
    """``x.cumsum(3)`` on a CPU, where torch's goes through memory with long strides: here block by block."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        # As torch does, so that no bit differs.
        total = torch.zeros_like(x[:, :, :, 0], dtype=torch.float64)
        for block in range(x.shape[3]):
            total += x[:, :, :, block]
            y[:, :, :, block] = total
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return _RunningSum.apply(dy.flip(3)).flip(3)


def running_sum(x: torch.Tensor) -> torch.Tensor:
    """Return the sums over blocks up to each one's own: [B, K, G, N, ...], over N."""
    if x.device.type != "cpu" or not x.shape[3] or torch.compiler.is_compiling():
        return x.cumsum(3)
    return _RunningSum.apply(x)


def key_features(k: torch.Tensor, w_k: torch.Tensor) -> torch.Tensor:
    """Return the keys' features, once per map: [B, H, T, 2F], or [B, K, T, 2F] for shared maps."""
    return feature_map(per_head(k, w_k.shape[0], 1), w_k)


def one_query(x: HybridInputs, folded: Folded | None, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Attend from one query to all of `k`, its terrace, and to what is folded below it: [B, H, 1, D].

    `seen`, bool [B, keys], leaves out keys of a sequence whose terrace holds fewer than others'.
    """
    q, k, v, w_q, _, window_factor, _ = x
    dtype = accumulation_dtype(q.dtype)
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    q_BKGD = q.to(dtype).view(batch, kv_heads, -1, head_dim)
    scores = q_BKGD @ k.to(dtype).transpose(-1, -2) * head_dim**-0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    sigma = window_factor.to(dtype).sigmoid().view(kv_heads, -1, 1)
    weights = sigma * (scores - scores.amax(-1, keepdim=True)).exp()
    weight, value = weights.sum(-1, keepdim=True), weights @ v.to(dtype)
    if folded is not None:
        phi_q = feature_map(q, w_q).view(batch, kv_heads, q_BKGD.shape[2], 1, -1)
        memory = folded.memory.view(batch, kv_heads, -1, *folded.memory.shape[2:])
        normalizer = folded.normalizer.view(batch, kv_heads, -1, phi_q.shape[-1], 1)
        value = value + (phi_q @ memory).squeeze(-2)
        weight = weight + (phi_q @ normalizer).squeeze(-1)
    y = (value / weight.clamp_min(torch.finfo(dtype).tiny)).view(batch, heads, 1, head_dim)
    return y.to(q.dtype)


def fold(k: torch.Tensor, v: torch.Tensor, w_k: torch.Tensor, seen: torch.Tensor | None = None) -> Folded:
    """Sum keys' features and values, of those that `seen`, bool [B, keys], names; all where it is None."""
    phi_k = key_features(k, w_k)
    if seen is not None:
        phi_k = phi_k * seen[:, None, :, None]
    values = per_head(v.to(phi_k.dtype), phi_k.shape[1], 1)
    return Folded(phi_k.transpose(-1, -2) @ values, phi_k.sum(2))


def take(x: torch.Tensor, index_BT: torch.Tensor) -> torch.Tensor:
    """Return the tokens of x, [B, heads, tokens, D], that each sequence's row of the index names."""
    return x.gather(2, index_BT[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def visible_first(visible_BT: torch.Tensor) -> torch.Tensor:
    """Return the order that puts a sequence's own tokens before hidden ones, [B, T].

    So blocks are counted from each one's first token, and what is hidden lies after all that see.
    """
    return (~visible_BT).long().argsort(dim=1, stable=True)


def put_back(y_BHTD: torch.Tensor, order_BT: torch.Tensor) -> torch.Tensor:
    """Undo `take` by an order."""
    return torch.zeros_like(y_BHTD).scatter(2, order_BT[:, None, :, None].expand_as(y_BHTD), y_BHTD)
