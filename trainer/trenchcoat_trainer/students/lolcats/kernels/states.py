"""Linear attention by blocks: what its rows read of all keys before it, and its keys of all rows after it.

Both are sums of C tokens' outer products carried from block to block, as in chunkwise linear attention, so
that only what depends on a pair of tokens by a logarithm (the cross-entropy) has to visit all pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.launch import (
    CHUNK,
    Problem,
    Rows,
    bht,
    padded,
    precision,
)
from trenchcoat_trainer.students.lolcats.kernels.tile import load_rows


class States(NamedTuple):
    """One state for each block of C tokens and each half of the features.

    Attributes:
        memory: sums of phi (outer) values or gradients, [B, heads, blocks, 2, E, D], in the operands' dtype.
        total: sums of phi, [B, heads, blocks, 2, E], fp32.
    """

    memory: torch.Tensor
    total: torch.Tensor


@triton.jit
def load_state(memory_ptr, total_ptr, at, half: tl.constexpr, D: tl.constexpr, E: tl.constexpr):
    """Load half of a block's state: sums of outer products [E, D], and of features [E]."""
    d, f = tl.arange(0, D), tl.arange(0, E)
    at = at * 2 + half
    memory_ED = tl.load(memory_ptr + at * (E * D) + f[:, None] * D + d[None, :])
    return memory_ED, tl.load(total_ptr + at * E + f)


@triton.jit
def _before_kernel(
    phi_ptr, v_ptr, memory_ptr, total_ptr, svb, svh, svt, tokens, heads, groups,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store for every block of one head and half of the features what all keys before it sum to."""
    bh, half = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, f = tl.arange(0, D), tl.arange(0, E)
    v_ptr += (bh // heads) * svb + (bh % heads // groups) * svh
    phi_ptr += bh * tokens * (2 * F) + half * F
    block = bh * tl.cdiv(tokens, C) * 2 + half
    memory = tl.zeros([E, D], tl.float32)
    total = tl.zeros([E], tl.float32)
    for start in tl.range(0, tokens, C):
        at = block + start // C * 2
        out = memory_ptr + at * (E * D) + f[:, None] * D + d[None, :]
        tl.store(out, memory.to(memory_ptr.dtype.element_ty))
        tl.store(total_ptr + at * E + f, total)
        keys = start + tl.arange(0, C)
        phi_CE = load_rows(phi_ptr, keys, 2 * F, f, tokens, F, True, E != F)
        v_CD = load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
        memory = tl.dot(tl.trans(phi_CE), v_CD, memory, input_precision=PRECISION)
        total += tl.sum(phi_CE.to(tl.float32), 0)


@triton.jit
def _after_kernel(
    phi_ptr, g_ptr, rz_ptr, dy_ptr, scales_ptr, memory_ptr, total_ptr, sgb, sgh, sgt, tokens, heads,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, C: tl.constexpr, FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Store for every block of one head and half of the features what its rows and all after it sum to."""
    bh, half = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, f = tl.arange(0, D), tl.arange(0, E)
    g_ptr += (bh // heads) * sgb + (bh % heads) * sgh
    phi_ptr += bh * tokens * (2 * F) + half * F
    g_scale = tl.load(scales_ptr)
    blocks = tl.cdiv(tokens, C)
    memory = tl.zeros([E, D], tl.float32)
    total = tl.zeros([E], tl.float32)
    for step in tl.range(0, blocks):
        block = blocks - 1 - step
        rows = block * C + tl.arange(0, C)
        row_ok = rows < tokens
        phi_CE = load_rows(phi_ptr, rows, 2 * F, f, tokens, F, True, E != F)
        g_CD = load_rows(g_ptr, rows, sgt, d, tokens, D, True, False)
        gz = tl.load(rz_ptr + bh * tokens + rows, mask=row_ok, other=0.0) * g_scale
        g_CD = (g_CD.to(tl.float32) * gz[:, None]).to(g_CD.dtype)
        memory = tl.dot(tl.trans(phi_CE), g_CD, memory, input_precision=PRECISION)
        at = (bh * blocks + block) * 2 + half
        out = memory_ptr + at * (E * D) + f[:, None] * D + d[None, :]
        tl.store(out, memory.to(memory_ptr.dtype.element_ty))
        if FEATURES:
            dy = tl.load(dy_ptr + bh * tokens + rows, mask=row_ok, other=0.0)
            total -= tl.sum(phi_CE.to(tl.float32) * (dy * gz)[:, None], 0)
            tl.store(total_ptr + at * E + f, total)


def _new_states(phi: torch.Tensor, head_dim: int) -> States:
    batch, heads, tokens, features = phi.shape
    shape = (batch, heads, triton.cdiv(tokens, CHUNK), 2, padded(features // 2))
    return States(phi.new_empty(*shape, head_dim), phi.new_empty(shape, dtype=torch.float32))


def _constants(phi: torch.Tensor, head_dim: int) -> dict[str, Any]:
    """Return what both kernels are compiled for."""
    feature_dim = phi.shape[-1] // 2
    return {
        "D": head_dim, "F": feature_dim, "E": padded(feature_dim), "C": CHUNK,
        "PRECISION": precision(phi.dtype), "num_warps": 4,
        "num_stages": 2 if phi.dtype == torch.bfloat16 else 1,
    }  # fmt: skip


def before(phi_k: torch.Tensor, v: torch.Tensor) -> States:
    """Return what lies before each block: sums of phi_k v^T and of phi_k.

    Args:
        phi_k: features of the keys, [B, H, T, 2F], or [B, K, T, 2F] where a group shares its map.
        v: values, [B, K, T, D].
    """
    batch, heads, tokens, _ = phi_k.shape
    states = _new_states(phi_k, v.shape[-1])
    _before_kernel[(batch * heads, 2)](
        phi_k, v, *states, *bht(v), tokens, heads, heads // v.shape[1], **_constants(phi_k, v.shape[-1])
    )
    return states


def after(x: Problem, rows: Rows, g: torch.Tensor, scales: torch.Tensor, key_features: bool) -> States:
    """Return what each block and all after it add up to: sums of phi_q g^T / z and of -phi_q (g . y) / z.

    `g` [B, H, T, D] counts scales[0] times.  The second is left out where no key's features have a gradient.
    """
    batch, heads, tokens, _ = x.phi_q.shape
    states = _new_states(x.phi_q, g.shape[-1])
    _after_kernel[(batch * heads, 2)](
        x.phi_q, g, rows.rz, rows.dy, scales, *states, *bht(g), tokens, heads,
        FEATURES=key_features, **_constants(x.phi_q, g.shape[-1]),
    )  # fmt: skip
    return states
