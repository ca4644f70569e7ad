"""A prompt's hybrid attention as two Triton kernels: what is folded before each block, and the attention.

An exported checkpoint carries this file beside ``student_attention.py``, so it imports torch, Triton and
``hybrid.py`` alone; only a GPU needs it. It computes forward, in bf16 with fp32 sums; features are never in
memory.

Shape letters as in ``hybrid.py``; C tokens of a tile, E the feature dimension padded to a power of two.
"""

from __future__ import annotations

import functools

import torch

from .hybrid import PHI_MIN, Folded, HybridInputs

try:  # transformers asks for what stands outside of one before it loads an export, on a CPU too
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the kernels need Triton, which torch brings for GPUs: pip install triton") from error

LOG2_E = 1.4426950408889634
FEWEST_FEATURES = 64
"""E at least: of narrower tiles ptxas 12.8 (Triton 3.6.0, 3.7.1) makes code that reads beyond shared memory
on an H200, or gives other numbers (`test_compiled_for_hopper`)."""
HOPPERS_BYTES = 200_000
"""Shared memory of a multiprocessor that the tiles of an H200 need."""


@functools.cache
def _fold_stages(device: torch.device, head_dim: int) -> int:
    """Return how many tiles are on their way at once while blocks are folded: the fastest tried on an H200.

    Where a GPU's multiprocessors hold half as much, one, which fits everywhere at all sizes that are taken.
    """
    if device.type != "cuda":
        return 1
    held = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    if held < HOPPERS_BYTES:
        return 1
    return 2 if head_dim <= 64 else 3


@triton.jit
def _rows(ptr, stride, first, tokens, C: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr):
    """Load [C, D] of a head from token `first` on; what lies past the last token is zero."""
    at = first + tl.arange(0, C)
    at_CD = at.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    if MASKED:
        return tl.load(ptr + at_CD, mask=(at < tokens)[:, None], other=0.0)
    return tl.load(ptr + at_CD)


@triton.jit
def _half(z_CE, f_ok, phi_min):
    """Softmax over the features of one half, at least phi_min; padded features are zero."""
    z_CE = tl.where(f_ok, z_CE, float("-inf"))
    e = tl.exp(z_CE - tl.max(z_CE, 1)[:, None])
    return tl.where(f_ok, tl.maximum(e / tl.sum(e, 1)[:, None], phi_min), 0.0)


@triton.jit
def _load_map(w_ptr, dtype: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr):
    """Load an fp32 map as a sum of two matrices of a narrower dtype: 16 bits of mantissa in bf16."""
    d, f = tl.arange(0, D), tl.arange(0, E)
    w_DE = tl.load(w_ptr + d[:, None] * F + f[None, :], mask=(f < F)[None, :], other=0.0)
    high_DE = w_DE.to(dtype)
    low_DE = (w_DE - high_DE.to(tl.float32)).to(dtype)
    return high_DE, low_DE


@triton.jit(do_not_specialize=["tokens", "leaving", "read"])
def _fold_kernel(
    k_ptr, v_ptr, w_ptr, leaving_ptr, memory_ptr, total_ptr, folded_ptr, normalizer_ptr,
    skb, skh, skt, svb, svh, svt, tokens, maps, groups, leaving, read, phi_min,
    RAGGED: tl.constexpr, W: tl.constexpr, C: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """Store what the blocks up to each of the first `read` sum to, and in fp32 the sum of those that leave.

    One program goes through a head's keys for one half of the features.
    """
    at, half = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, a = at // maps, at % maps
    d, f = tl.arange(0, D), tl.arange(0, E)
    f_ok = (f < F)[None, :]
    k_ptr += batch * skb + a // groups * skh
    v_ptr += batch * svb + a // groups * svh
    w_ptr += a * D * F
    if RAGGED:
        leaving = tl.load(leaving_ptr + batch).to(tl.int32)
    high_DE, low_DE = _load_map(w_ptr, k_ptr.dtype.element_ty, D, F, E)
    memory_ED = tl.zeros([E, D], tl.float32)
    total_E = tl.zeros([E], tl.float32)
    sign = 1.0 - 2.0 * half
    stop = tl.maximum(read * W, leaving)
    for start in tl.range(0, stop, C):
        if RAGGED and start == leaving:
            _store_folded(folded_ptr, normalizer_ptr, at, half, memory_ED, total_E, D, F, E)
        k_CD = _rows(k_ptr, skt, start, tokens, C, D, True)
        v_CD = _rows(v_ptr, svt, start, tokens, C, D, True)
        z_CE = tl.dot(k_CD, low_DE, tl.dot(k_CD, high_DE))
        phi_CE = _half(z_CE * sign, f_ok, phi_min)
        memory_ED = tl.dot(tl.trans(phi_CE.to(k_CD.dtype)), v_CD, memory_ED)
        total_E += tl.sum(phi_CE, 0)
        block = (start + C) // W - 1
        if (start + C) % W == 0 and block < read:
            to = (at * read + block) * 2 + half
            out = memory_ptr + to * (E * D) + f[:, None] * D + d[None, :]
            tl.store(out, memory_ED.to(memory_ptr.dtype.element_ty))
            tl.store(total_ptr + to * E + f, total_E)
    if leaving == stop:
        _store_folded(folded_ptr, normalizer_ptr, at, half, memory_ED, total_E, D, F, E)


@triton.jit
def _store_folded(
    folded_ptr, normalizer_ptr, at, half, memory_ED, total_E,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    d, f = tl.arange(0, D), tl.arange(0, E)
    row = at * (2 * F) + half * F + f
    tl.store(folded_ptr + row[:, None] * D + d[None, :], memory_ED, mask=(f < F)[:, None])
    tl.store(normalizer_ptr + row, total_E, mask=f < F)


@triton.jit
def _window_tile(
    state, start, rows, q_CD, k_ptr, skt, v_ptr, svt, tokens, scale2,
    C: tl.constexpr, D: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    m, weight, value_CD = state
    k_CD = _rows(k_ptr, skt, start, tokens, C, D, DIAGONAL)
    v_CD = _rows(v_ptr, svt, start, tokens, C, D, DIAGONAL)
    s = tl.dot(q_CD, tl.trans(k_CD)) * scale2
    if DIAGONAL:
        s = tl.where((start + tl.arange(0, C))[None, :] <= rows[:, None], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    alpha = tl.exp2(m - m_new)
    e = tl.exp2(s - m_new[:, None])
    return m_new, weight * alpha + tl.sum(e, 1), tl.dot(e.to(v_CD.dtype), v_CD, value_CD * alpha[:, None])


@triton.jit
def _below(
    half: tl.constexpr, z_CE, f_ok, phi_min, memory_ptr, total_ptr, at, weight, value_CD,
    D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Add what one half of the features reads of the folded blocks."""
    d, f = tl.arange(0, D), tl.arange(0, E)
    at = at * 2 + half
    phi_CE = _half(z_CE if half == 0 else -z_CE, f_ok, phi_min)
    memory_ED = tl.load(memory_ptr + at * (E * D) + f[:, None] * D + d[None, :])
    total_E = tl.load(total_ptr + at * E + f)
    weight += tl.sum(phi_CE * total_E[None, :], 1)
    return weight, tl.dot(phi_CE.to(memory_ED.dtype), memory_ED, value_CD)


@triton.jit(do_not_specialize=["tokens", "read"])
def _prompt_kernel(
    q_ptr, k_ptr, v_ptr, w_ptr, factor_ptr, memory_ptr, total_ptr, y_ptr,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, syb, syh, syt,
    tokens, heads, groups, map_groups, read, scale2, phi_min,
    W: tl.constexpr, C: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """C rows of a head: their window, their own tile first, and what is folded below it."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * C
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // heads, bh % heads
    q_ptr += batch * sqb + head * sqh
    y_ptr += batch * syb + head * syh
    k_ptr += batch * skb + head // groups * skh
    v_ptr += batch * svb + head // groups * svh
    rows = first + tl.arange(0, C)
    q_CD = _rows(q_ptr, sqt, first, tokens, C, D, True)
    state = (tl.full([C], float("-inf"), tl.float32), tl.zeros([C], tl.float32), tl.zeros([C, D], tl.float32))
    state = _window_tile(state, first, rows, q_CD, k_ptr, skt, v_ptr, svt, tokens, scale2, C, D, True)
    block = first // W
    for start in tl.range(tl.maximum(block - 1, 0) * W, first, C):
        state = _window_tile(state, start, rows, q_CD, k_ptr, skt, v_ptr, svt, tokens, scale2, C, D, False)
    _, weight, value_CD = state
    sigma = 1.0 / (1.0 + tl.exp(-tl.load(factor_ptr + head).to(tl.float32)))
    weight, value_CD = weight * sigma, value_CD * sigma
    if block >= 2:
        high_DE, low_DE = _load_map(w_ptr + head * D * F, q_ptr.dtype.element_ty, D, F, E)
        z_CE = tl.dot(q_CD, low_DE, tl.dot(q_CD, high_DE))
        at = bh // map_groups * read + block - 2
        f_ok = (tl.arange(0, E) < F)[None, :]
        weight, value_CD = _below(0, z_CE, f_ok, phi_min, memory_ptr, total_ptr, at, weight, value_CD, D, E)
        weight, value_CD = _below(1, z_CE, f_ok, phi_min, memory_ptr, total_ptr, at, weight, value_CD, D, E)
    y_CD = value_CD / weight[:, None]
    at_CD = rows.to(tl.int64)[:, None] * syt + tl.arange(0, D)[None, :]
    tl.store(y_ptr + at_CD, y_CD.to(y_ptr.dtype.element_ty), mask=(rows < tokens)[:, None])


def takes(x: HybridInputs) -> bool:
    """Say whether `attend` computes `x`: in bf16, sizes that tiles can have."""
    head_dim, feature_dim, window = x.q.shape[-1], x.w_q.shape[-1], x.window_size
    return (
        x.q.dtype == x.k.dtype == x.v.dtype == torch.bfloat16
        and head_dim in (16, 32, 64, 128)
        and feature_dim <= 128
        and window >= 16
        and window & (window - 1) == 0
    )


def attend(x: HybridInputs, leaving: int | torch.Tensor = 0) -> tuple[torch.Tensor, Folded | None]:
    """Attend from every token of a prompt, and fold what leaves the terrace after it.

    Args:
        x: what to attend with.
        leaving: how many tokens leave, whole blocks; where sequences differ [B], on the device.

    Returns:
        The output, [B, H, T, D], in memory as [B, T, H, D], and the sums of the blocks that leave; None where
        none does.
    """
    q, k, v = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in x[:3])
    batch, heads, tokens, size = q.shape
    maps, _, feature_dim = x.w_k.shape
    padded, tile = max(FEWEST_FEATURES, triton.next_power_of_2(feature_dim)), min(x.window_size, 64)
    read = max(-(-tokens // x.window_size) - 2, 0)
    ragged = isinstance(leaving, torch.Tensor)
    sizes = {"W": x.window_size, "C": tile, "D": size, "F": feature_dim, "E": padded}
    memory = q.new_empty(batch, maps, read, 2, padded, size)
    total = q.new_empty(batch, maps, read, 2, padded, dtype=torch.float32)
    folded = None
    if ragged or leaving:
        folded = Folded(
            total.new_empty(batch, maps, 2 * feature_dim, size), total.new_empty(batch, maps, 2 * feature_dim)
        )
    if read or folded is not None:
        _fold_kernel[(batch * maps, 2)](
            k, v, x.w_k.contiguous(), leaving if ragged else k, memory, total, *(folded or (total, total)),
            *k.stride()[:3], *v.stride()[:3], tokens, maps, maps // k.shape[1], 0 if ragged else leaving,
            read, PHI_MIN, RAGGED=ragged, **sizes, num_warps=4, num_stages=_fold_stages(q.device, size),
        )  # fmt: skip
    y = q.new_empty(batch, tokens, heads, size).transpose(1, 2)
    strides = [stride for tensor in (q, k, v, y) for stride in tensor.stride()[:3]]
    _prompt_kernel[(triton.cdiv(tokens, tile), batch * heads)](
        q, k, v, x.w_q.contiguous(), x.window_factor, memory, total, y, *strides, tokens, heads,
        heads // k.shape[1], heads // maps, read, size**-0.5 * LOG2_E, PHI_MIN, **sizes,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return y, folded
