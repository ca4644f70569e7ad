"""What of the cross-entropy between both attentions needs every pair of tokens below the window.

That is each row's sum of a log2 u, and the sum of a phi_k / u, the one part of a query's gradient that no
state of `states` gives; a is the teacher's attention, known by its row's `lse`, and u the student's weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.launch import (
    Mode,
    Problem,
    bht,
    choose_tiles,
    constants,
    sizes,
)
from trenchcoat_trainer.students.lolcats.kernels.tile import exp2, load_rows, log2, reciprocal, window_starts


@triton.jit
def _pairs(
    x, ratio1_ME, ratio2_ME, start, q_MD, phi1_ME, phi2_ME, lse, lo, k_ptr, skt, phik_ptr, scale2, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr, RATIO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys."""
    keys, d, f = start + tl.arange(0, N), tl.arange(0, D), tl.arange(0, E)
    phik1_NE = load_rows(phik_ptr, keys, 2 * F, f, tokens, F, MASKED, E != F)
    phik2_NE = load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, MASKED, E != F)
    k_ND = load_rows(k_ptr, keys, skt, d, tokens, D, MASKED, False)
    s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
    u = tl.dot(phi1_ME, tl.trans(phik1_NE), input_precision=PRECISION)
    u = tl.dot(phi2_ME, tl.trans(phik2_NE), u, input_precision=PRECISION)
    a = exp2(s * scale2 - lse[:, None])
    if MASKED:
        below = keys[None, :] < lo[:, None]
        a = tl.where(below, a, 0.0)
        u = tl.where(below, u, 1.0)
    x += tl.sum(a * log2(u), 1)
    if RATIO:
        ratio = (a * reciprocal(u)).to(phik1_NE.dtype)
        ratio1_ME = tl.dot(ratio, phik1_NE, ratio1_ME, input_precision=PRECISION)
        ratio2_ME = tl.dot(ratio, phik2_NE, ratio2_ME, input_precision=PRECISION)
    return x, ratio1_ME, ratio2_ME


@triton.jit
def _below_kernel(
    q_ptr, k_ptr, phiq_ptr, phik_ptr, lse_ptr, x_ptr, ratio_ptr, sqb, sqh, sqt, skb, skh, skt,
    tokens, heads, groups, phi_groups, scale2,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    DROPPED: tl.constexpr, RATIO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both sums of M rows of one head."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // heads, bh % heads
    q_ptr += batch * sqb + head * sqh
    k_ptr += batch * skb + (head // groups) * skh
    phiq_ptr += bh * tokens * (2 * F)
    phik_ptr += (bh // phi_groups) * tokens * (2 * F)
    rows, d, f = first + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    row_ok = rows < tokens
    stop = tl.minimum(first + M, tokens)
    lo, lo_first, lo_last = window_starts(rows, first, stop, W, DROPPED)
    at = bh * tokens + rows
    lse = tl.load(lse_ptr + at, mask=row_ok, other=float("inf"))
    q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F)
    x = tl.zeros([M], tl.float32)
    ratio1_ME = tl.zeros([M, E], tl.float32)
    ratio2_ME = tl.zeros([M, E], tl.float32)
    whole = lo_first // N * N
    for start in tl.range(0, whole, N):
        x, ratio1_ME, ratio2_ME = _pairs(
            x, ratio1_ME, ratio2_ME, start, q_MD, phi1_ME, phi2_ME, lse, lo, k_ptr, skt, phik_ptr, scale2,
            tokens, D, F, E, N, False, RATIO, PRECISION,
        )  # fmt: skip
    if DROPPED or W % M != 0 or W % N != 0:
        for start in tl.range(whole, lo_last, N):
            x, ratio1_ME, ratio2_ME = _pairs(
                x, ratio1_ME, ratio2_ME, start, q_MD, phi1_ME, phi2_ME, lse, lo, k_ptr, skt, phik_ptr, scale2,
                tokens, D, F, E, N, True, RATIO, PRECISION,
            )  # fmt: skip
    tl.store(x_ptr + at, x, mask=row_ok)
    if RATIO:
        ratio_at = ratio_ptr + at[:, None] * (2 * F) + f[None, :]
        ok = row_ok[:, None] & (f < F)[None, :]
        tl.store(ratio_at, ratio1_ME.to(ratio_ptr.dtype.element_ty), mask=ok)
        tl.store(ratio_at + F, ratio2_ME.to(ratio_ptr.dtype.element_ty), mask=ok)


def below_window(x: Problem, mode: Mode, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sums over the keys below each row's window: of a log2 u, [B, H, T], and of a phi_k / u.

    The latter, [B, H, T, 2F] in the operands' dtype, is empty where no gradient needs it.
    """
    batch, heads, tokens, _ = x.q.shape
    wanted = mode.wanted.features
    ratio = torch.empty_like(x.phi_q) if wanted else x.phi_q.new_empty(0)
    logarithms, tiles = torch.empty_like(lse), choose_tiles("below", x)
    _below_kernel[(triton.cdiv(tokens, tiles.rows), batch * heads)](
        x.q_teacher, x.k_teacher, x.phi_q, x.phi_k, lse, logarithms, ratio, *bht(x.q_teacher),
        *bht(x.k_teacher), *sizes(x), RATIO=wanted, **constants(x, mode, tiles),
    )  # fmt: skip
    return logarithms, ratio
