"""Hybrid attention and the losses of attention transfer as Triton kernels, in the manner of flash attention.

One pass over the tiles of keys serves both attentions.  The window comes first, because the teacher's online
softmax and the student's window are then the same numbers until the first key below the window; the tiles
below it add to the teacher's softmax and to the student's linear part.  Per row only the teacher's
log-sum-exp, the student's weight Z and two products are kept.  The backward of attention transfer touches no
window tile: the rows of the student's softmax sum to a constant, so the gradient of log sigma is minus the
sum of u du below the window.  Two kernels, one over query tiles and one over key tiles, give every gradient
without atomics, so results do not vary from run to run.

Operands are bf16 on the matrix units with fp32 accumulation and statistics, or fp32 throughout for fp32
inputs.  Scores and logarithms are in base 2 inside.  Shape letters as in `hybrid.py`; M rows and N keys of a
tile, E the feature dimension padded to a power of two.
"""

# ruff: noqa: SIM108 - a branch on a constexpr is cut at compile time, and both sides need not agree in type
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.attention.hybrid import PHI_MIN

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""True when Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1 at import)."""

LOG2_E = 1.4426950408889634


def unsupported(q: torch.Tensor) -> str | None:
    """Say why the kernels cannot take queries like `q` [B, H, T, D], or None when they can."""
    head_dim = q.shape[-1]
    if q.dtype not in (torch.bfloat16, torch.float32):
        return f"the kernels take bfloat16 and float32, not {q.dtype}"
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 128:
        return f"the kernels take a head_dim of 16, 32, 64 or 128, not {head_dim}"
    return None


@triton.jit
def _feature_kernel(
    x_ptr, w_ptr, phi_ptr, sxb, sxh, sxt, tokens, heads, groups, phi_min,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """phi = [softmax(x w), softmax(-x w)], at least phi_min, for M tokens of one head."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    d, f = tl.arange(0, D), tl.arange(0, E)
    row_ok, f_ok = rows < tokens, f < F
    x_MD = tl.load(
        x_ptr + batch * sxb + (head // groups) * sxh + rows[:, None] * sxt + d[None, :],
        mask=row_ok[:, None], other=0.0,
    )  # fmt: skip
    w_DE = tl.load(w_ptr + head * D * F + d[:, None] * F + f[None, :], mask=f_ok[None, :], other=0.0)
    if x_MD.dtype == tl.bfloat16:  # the fp32 map as a sum of two bf16 matrices: 16 bits of mantissa
        w_high = w_DE.to(tl.bfloat16)
        w_low = (w_DE.to(tl.float32) - w_high.to(tl.float32)).to(tl.bfloat16)
        z_ME = tl.dot(x_MD, w_low, tl.dot(x_MD, w_high))
    else:
        z_ME = tl.dot(x_MD, w_DE.to(tl.float32), input_precision=PRECISION)
    phi_ptr += (batch * heads + head) * tokens * (2 * F) + rows[:, None] * (2 * F) + f[None, :]
    ok = row_ok[:, None] & f_ok[None, :]
    for half in tl.static_range(2):
        z_half = tl.where(f_ok[None, :], z_ME if half == 0 else -z_ME, float("-inf"))
        e = tl.exp(z_half - tl.max(z_half, 1)[:, None])
        phi = tl.maximum(e / tl.sum(e, 1)[:, None], phi_min)
        tl.store(phi_ptr + half * F, phi.to(phi_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _load_rows(ptr, rows, stride, dims, tokens, width, MASK_T: tl.constexpr, MASK_D: tl.constexpr):
    """Load [rows, dims] of a matrix; rows past `tokens` and columns past `width` are zero."""
    at = ptr + rows[:, None] * stride + dims[None, :]
    if MASK_T and MASK_D:
        return tl.load(at, mask=(rows < tokens)[:, None] & (dims < width)[None, :], other=0.0)
    if MASK_T:
        return tl.load(at, mask=(rows < tokens)[:, None], other=0.0)
    if MASK_D:
        return tl.load(at, mask=(dims < width)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def _window_starts(rows, first, stop, W: tl.constexpr, DROPPED: tl.constexpr):
    """Where the windows of `rows` begin, and those of the first and the last of them; `stop` ends the rows.

    A dropped window begins behind the row: every key up to the row's own lies below it.
    """
    if DROPPED:
        lo, lo_first, lo_last = rows + 1, first + 1, stop
    else:
        lo = tl.maximum((rows // W - 1) * W, 0)
        lo_first = tl.maximum((first // W - 1) * W, 0)
        lo_last = tl.maximum(((stop - 1) // W - 1) * W, 0)
    return lo, lo_first, lo_last


@triton.jit
def _log2_sigmoid(x):
    return (tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))) * 1.4426950408889634


@triton.jit
def _forward_below(
    state, start, q_MD, phi1_ME, phi2_ME, lo, k_ptr, skt, v_ptr, svt, vt_ptr, svtt, phik_ptr, scale2, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr, TEACHER: tl.constexpr, SEPARATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys below the window to the teacher's softmax and to the student's linear part."""
    m, total, in_window, x, z, acc, acc_y = state
    keys, d, f = start + tl.arange(0, N), tl.arange(0, D), tl.arange(0, E)
    phik1_NE = _load_rows(phik_ptr, keys, 2 * F, f, tokens, F, MASKED, E != F)
    phik2_NE = _load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, MASKED, E != F)
    u = tl.dot(phi1_ME, tl.trans(phik1_NE), input_precision=PRECISION)
    u = tl.dot(phi2_ME, tl.trans(phik2_NE), u, input_precision=PRECISION)
    v_ND = _load_rows(v_ptr, keys, svt, d, tokens, D, MASKED, False)
    if MASKED:
        below = keys[None, :] < lo[:, None]
        u = tl.where(below, u, 0.0)
    if TEACHER:
        k_ND = _load_rows(k_ptr, keys, skt, d, tokens, D, MASKED, False)
        s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale2
        log_u = tl.log2(u)
        if MASKED:
            s = tl.where(below, s, float("-inf"))
            log_u = tl.where(below, log_u, 0.0)
        m_new = tl.maximum(m, tl.max(s, 1))
        alpha = tl.exp2(m - m_new)
        p = tl.exp2(s - m_new[:, None])
        total = total * alpha + tl.sum(p, 1)
        in_window = in_window * alpha
        x = x * alpha + tl.sum(p * log_u, 1)
        acc = acc * alpha[:, None]
        if SEPARATE:
            vt_ND = _load_rows(vt_ptr, keys, svtt, d, tokens, D, MASKED, False)
            acc = tl.dot(p.to(vt_ND.dtype), vt_ND, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(p.to(v_ND.dtype), v_ND, acc, input_precision=PRECISION)
        m = m_new
    z += tl.sum(u, 1)
    acc_y = tl.dot(u.to(v_ND.dtype), v_ND, acc_y, input_precision=PRECISION)
    return m, total, in_window, x, z, acc, acc_y


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, vt_ptr, phiq_ptr, phik_ptr, factor_ptr,
    out_ptr, diff_ptr, lse_ptr, max_ptr, arg_ptr, z_ptr, dy_ptr, mse_ptr, xent_ptr,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt,
    sqtb, sqth, sqtt, sktb, skth, sktt, svtb, svth, svtt, sob, soh, sot,
    tokens, heads, groups, phi_groups, scale2,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TEACHER: tl.constexpr, SEPARATE: tl.constexpr, STUDENT_GRADIENTS: tl.constexpr, DROPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Both attentions of M rows of one head, their losses, and the row statistics of the backward."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // heads, bh % heads
    kv_head = head // groups
    q_ptr += batch * sqb + head * sqh
    k_ptr += batch * skb + kv_head * skh
    v_ptr += batch * svb + kv_head * svh
    qt_ptr += batch * sqtb + head * sqth
    kt_ptr += batch * sktb + kv_head * skth
    vt_ptr += batch * svtb + kv_head * svth
    phiq_ptr += bh * tokens * (2 * F)
    phik_ptr += (bh // phi_groups) * tokens * (2 * F)

    rows, d, f = first + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    row_ok = rows < tokens
    stop = tl.minimum(first + M, tokens)
    lo, lo_first, lo_last = _window_starts(rows, first, stop, W, DROPPED)
    q_MD = _load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
    if SEPARATE:
        qt_MD = _load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
    else:
        qt_MD = q_MD
    factor = tl.load(factor_ptr + head).to(tl.float32)
    sigma = 1.0 / (1.0 + tl.exp(-factor))

    # The window: the student's maximum m, weight e and output; the teacher's softmax begins with it.
    m = tl.full([M], float("-inf"), tl.float32)
    e_sum = tl.zeros([M], tl.float32)
    x = tl.zeros([M], tl.float32)
    arg = tl.zeros([M], tl.int32)
    acc_w = tl.zeros([M, D], tl.float32)
    m_t = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in tl.range(stop if DROPPED else lo_first // N * N, stop, N):
        keys = start + tl.arange(0, N)
        k_ND = _load_rows(k_ptr, keys, skt, d, tokens, D, True, False)
        v_ND = _load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
        inside = (keys[None, :] <= rows[:, None]) & (keys[None, :] >= lo[:, None]) & (keys < tokens)[None, :]
        s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale2
        s = tl.where(inside, s, float("-inf"))
        tile_max = tl.max(s, 1)
        if STUDENT_GRADIENTS:
            tile_arg = tl.max(tl.where(inside & (s == tile_max[:, None]), keys[None, :], 0), 1)
            arg = tl.where(tile_max > m, tile_arg, arg)
        m_new = tl.maximum(m, tile_max)
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - m_safe)
        moved = tl.where(m == float("-inf"), 0.0, m - m_safe)
        s = s - m_safe[:, None]
        e = tl.exp2(s)
        acc_w = tl.dot(e.to(v_ND.dtype), v_ND, acc_w * alpha[:, None], input_precision=PRECISION)
        if SEPARATE:
            kt_ND = _load_rows(kt_ptr, keys, sktt, d, tokens, D, True, False)
            vt_ND = _load_rows(vt_ptr, keys, svtt, d, tokens, D, True, False)
            s_t = tl.dot(qt_MD, tl.trans(kt_ND), input_precision=PRECISION) * scale2
            s_t = tl.where(inside, s_t, float("-inf"))
            mt_new = tl.maximum(m_t, tl.max(s_t, 1))
            mt_safe = tl.where(mt_new == float("-inf"), 0.0, mt_new)
            alpha_t = tl.exp2(m_t - mt_safe)
            p = tl.exp2(s_t - mt_safe[:, None])
            x = alpha_t * (x + total * moved) + tl.sum(tl.where(inside, p * s, 0.0), 1)
            total = total * alpha_t + tl.sum(p, 1)
            acc = tl.dot(p.to(vt_ND.dtype), vt_ND, acc * alpha_t[:, None], input_precision=PRECISION)
            m_t = mt_new
        elif TEACHER:
            x = alpha * (x + e_sum * moved) + tl.sum(tl.where(inside, e * s, 0.0), 1)
        e_sum = e_sum * alpha + tl.sum(e, 1)
        m = m_new
    if not SEPARATE:
        m_t, total, acc = m, e_sum, acc_w
    if not DROPPED:  # else -inf gives way to the first key below
        m_t = tl.where(m_t == float("-inf"), 0.0, m_t)
    in_window = total
    z = sigma * e_sum
    acc_y = sigma * acc_w

    # Below the window: whole tiles, then the tiles where the rows' windows begin.
    phi1_ME = _load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F)
    phi2_ME = _load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F)
    whole = lo_first // N * N
    state = (m_t, total, in_window, x, z, acc, acc_y)
    for start in tl.range(0, whole, N):
        state = _forward_below(
            state, start, qt_MD, phi1_ME, phi2_ME, lo, kt_ptr, sktt, v_ptr, svt, vt_ptr, svtt, phik_ptr,
            scale2, tokens, D, F, E, N, False, TEACHER, SEPARATE, PRECISION,
        )  # fmt: skip
    if DROPPED or W % M != 0 or W % N != 0:
        for start in tl.range(whole, lo_last, N):
            state = _forward_below(
                state, start, qt_MD, phi1_ME, phi2_ME, lo, kt_ptr, sktt, v_ptr, svt, vt_ptr, svtt, phik_ptr,
                scale2, tokens, D, F, E, N, True, TEACHER, SEPARATE, PRECISION,
            )  # fmt: skip
    m_t, total, in_window, x, z, acc, acc_y = state

    z = tl.where(row_ok, z, 1.0)
    y_MD = acc_y / z[:, None]
    at = bh * tokens + rows
    o_at = batch * sob + head * soh + rows[:, None] * sot + d[None, :]
    tl.store(z_ptr + at, z, mask=row_ok)
    if STUDENT_GRADIENTS:
        tl.store(max_ptr + at, m, mask=row_ok)
        tl.store(arg_ptr + at, arg, mask=row_ok)
    if TEACHER:
        total = tl.where(row_ok, total, 1.0)
        out_MD = acc / total[:, None]
        diff_MD = y_MD - out_MD
        diff_op = diff_MD.to(diff_ptr.dtype.element_ty)
        xent = tl.log2(z) - (x + in_window * _log2_sigmoid(factor)) / total
        tl.store(out_ptr + o_at, out_MD.to(out_ptr.dtype.element_ty), mask=row_ok[:, None])
        tl.store(diff_ptr + o_at, diff_op, mask=row_ok[:, None])
        tl.store(lse_ptr + at, m_t + tl.log2(total), mask=row_ok)
        tl.store(dy_ptr + at, tl.sum(diff_op.to(tl.float32) * y_MD, 1), mask=row_ok)
        tl.store(mse_ptr + at, tl.sum(diff_MD * diff_MD, 1), mask=row_ok)
        tl.store(xent_ptr + at, xent * 0.6931471805599453, mask=row_ok)
    else:
        tl.store(out_ptr + o_at, y_MD.to(out_ptr.dtype.element_ty), mask=row_ok[:, None])


@triton.jit
def _softmax_gradient(dphi1, dphi2, phi1, phi2, phi_min):
    """Carry the gradient of both halves of phi back to x w; clamped features pass none on."""
    phi1, phi2 = phi1.to(tl.float32), phi2.to(tl.float32)
    dphi1 = tl.where(phi1 > phi_min, dphi1, 0.0)
    dphi2 = tl.where(phi2 > phi_min, dphi2, 0.0)
    dz1 = phi1 * (dphi1 - tl.sum(dphi1 * phi1, 1)[:, None])
    dz2 = phi2 * (dphi2 - tl.sum(dphi2 * phi2, 1)[:, None])
    return dz1 - dz2


@triton.jit
def _query_below(
    dphi1, dphi2, u_du, start, q_MD, phi1_ME, phi2_ME, g_MD, lse, gz, cz, lo,
    k_ptr, skt, v_ptr, svt, phik_ptr, b, scale2, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
    MASKED: tl.constexpr, TEACHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys below the window to the gradient of the rows' features."""
    keys, d, f = start + tl.arange(0, N), tl.arange(0, D), tl.arange(0, E)
    phik1_NE = _load_rows(phik_ptr, keys, 2 * F, f, tokens, F, MASKED, E != F)
    phik2_NE = _load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, MASKED, E != F)
    v_ND = _load_rows(v_ptr, keys, svt, d, tokens, D, MASKED, False)
    u = tl.dot(phi1_ME, tl.trans(phik1_NE), input_precision=PRECISION)
    u = tl.dot(phi2_ME, tl.trans(phik2_NE), u, input_precision=PRECISION)
    du = tl.dot(g_MD, tl.trans(v_ND), input_precision=PRECISION) * gz[:, None] + cz[:, None]
    if TEACHER:
        k_ND = _load_rows(k_ptr, keys, skt, d, tokens, D, MASKED, False)
        s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale2
        du -= b * tl.exp2(s - lse[:, None]) / u
    if MASKED:
        du = tl.where(keys[None, :] < lo[:, None], du, 0.0)
    u_du += tl.sum(u * du, 1)
    du_op = du.to(phik1_NE.dtype)
    dphi1 = tl.dot(du_op, phik1_NE, dphi1, input_precision=PRECISION)
    dphi2 = tl.dot(du_op, phik2_NE, dphi2, input_precision=PRECISION)
    return dphi1, dphi2, u_du


@triton.jit
def _query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, phiq_ptr, phik_ptr, factor_ptr, wq_ptr, y_ptr, g_ptr,
    lse_ptr, max_ptr, arg_ptr, z_ptr, dy_ptr, scales_ptr, dz_ptr, dq_ptr, dlog_ptr,
    syb, syh, syt,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sqtb, sqth, sqtt, sktb, skth, sktt, sgb, sgh, sgt,
    tokens, heads, groups, phi_groups, scale2, scale, phi_min,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TEACHER: tl.constexpr, SEPARATE: tl.constexpr, STUDENT_GRADIENTS: tl.constexpr, DROPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of M rows of one head: of q w_q, of log sigma and, for a student that trains, of q.

    Without a teacher g . y is computed here and left to the other kernel in dy_ptr.
    """
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // heads, bh % heads
    kv_head = head // groups
    q_ptr += batch * sqb + head * sqh
    k_ptr += batch * skb + kv_head * skh
    v_ptr += batch * svb + kv_head * svh
    qt_ptr += batch * sqtb + head * sqth
    kt_ptr += batch * sktb + kv_head * skth
    g_ptr += batch * sgb + head * sgh
    phiq_ptr += bh * tokens * (2 * F)
    phik_ptr += (bh // phi_groups) * tokens * (2 * F)

    rows, d, f = first + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    row_ok = rows < tokens
    stop = tl.minimum(first + M, tokens)
    lo, lo_first, lo_last = _window_starts(rows, first, stop, W, DROPPED)
    at = bh * tokens + rows
    g_scale = tl.load(scales_ptr)
    b = tl.load(scales_ptr + 1)
    z = tl.load(z_ptr + at, mask=row_ok, other=1.0)
    g_MD = _load_rows(g_ptr, rows, sgt, d, tokens, D, True, False)
    if TEACHER:
        lse = tl.load(lse_ptr + at, mask=row_ok, other=float("inf"))
        qt_MD = _load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
        dy = tl.load(dy_ptr + at, mask=row_ok, other=0.0)
    else:
        lse = z
        qt_MD = g_MD
        y_MD = _load_rows(y_ptr + batch * syb + head * syh, rows, syt, d, tokens, D, True, False)
        dy = tl.sum(g_MD.to(tl.float32) * y_MD.to(tl.float32), 1)
        tl.store(dy_ptr + at, dy, mask=row_ok)
    dy *= g_scale
    gz, cz = g_scale / z, (b - dy) / z
    phi1_ME = _load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F)
    phi2_ME = _load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F)
    dphi1 = tl.zeros([M, E], tl.float32)
    dphi2 = tl.zeros([M, E], tl.float32)
    u_du = tl.zeros([M], tl.float32)
    whole = lo_first // N * N
    for start in tl.range(0, whole, N):
        dphi1, dphi2, u_du = _query_below(
            dphi1, dphi2, u_du, start, qt_MD, phi1_ME, phi2_ME, g_MD, lse, gz, cz, lo, kt_ptr, sktt, v_ptr,
            svt, phik_ptr, b, scale2, tokens, D, F, E, N, False, TEACHER, PRECISION,
        )  # fmt: skip
    if DROPPED or W % M != 0 or W % N != 0:
        for start in tl.range(whole, lo_last, N):
            dphi1, dphi2, u_du = _query_below(
                dphi1, dphi2, u_du, start, qt_MD, phi1_ME, phi2_ME, g_MD, lse, gz, cz, lo, kt_ptr, sktt,
                v_ptr, svt, phik_ptr, b, scale2, tokens, D, F, E, N, True, TEACHER, PRECISION,
            )  # fmt: skip
    tl.store(dlog_ptr + at, -u_du, mask=row_ok)
    dz_ME = _softmax_gradient(dphi1, dphi2, phi1_ME, phi2_ME, phi_min)
    dz_op = dz_ME.to(dz_ptr.dtype.element_ty)
    f_ok = f < F
    tl.store(
        dz_ptr + bh * tokens * F + rows[:, None] * F + f[None, :], dz_op, mask=row_ok[:, None] & f_ok[None, :]
    )

    if STUDENT_GRADIENTS:
        w_DE = tl.load(wq_ptr + head * D * F + d[:, None] * F + f[None, :], mask=f_ok[None, :], other=0.0)
        dq_MD = tl.dot(dz_op, tl.trans(w_DE.to(dz_op.dtype)), input_precision=PRECISION)
        q_MD = _load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
        m = tl.load(max_ptr + at, mask=row_ok, other=0.0)
        arg = tl.load(arg_ptr + at, mask=row_ok, other=0)
        sigma_z = 1.0 / (1.0 + tl.exp(-tl.load(factor_ptr + head).to(tl.float32))) / z
        for start in tl.range(lo_first // N * N, stop, N):
            keys = start + tl.arange(0, N)
            k_ND = _load_rows(k_ptr, keys, skt, d, tokens, D, True, False)
            v_ND = _load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
            inside = (keys[None, :] <= rows[:, None]) & (keys[None, :] >= lo[:, None]) & row_ok[:, None]
            s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale2
            p = tl.exp2(tl.where(inside, s - m[:, None], float("-inf"))) * sigma_z[:, None]
            gv = tl.dot(g_MD, tl.trans(v_ND), input_precision=PRECISION) * g_scale
            ds = p * (gv + (b - dy)[:, None])
            if TEACHER:
                if SEPARATE:
                    kt_ND = _load_rows(kt_ptr, keys, sktt, d, tokens, D, True, False)
                    s = tl.dot(qt_MD, tl.trans(kt_ND), input_precision=PRECISION) * scale2
                ds -= b * tl.exp2(tl.where(inside, s - lse[:, None], float("-inf")))
            ds += tl.where(keys[None, :] == arg[:, None], u_du[:, None], 0.0)
            dq_MD = tl.dot((ds * scale).to(k_ND.dtype), k_ND, dq_MD, input_precision=PRECISION)
        dq_at = dq_ptr + bh * tokens * D + rows[:, None] * D + d[None, :]
        tl.store(dq_at, dq_MD.to(dq_ptr.dtype.element_ty), mask=row_ok[:, None])


@triton.jit
def _key_below(
    dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key,
    q_ptr, sqt, g_ptr, sgt, phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr,
    MASKED: tl.constexpr, TEACHER: tl.constexpr, STUDENT_GRADIENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of rows whose windows lie above the keys to the gradient of the keys' features."""
    rows, d, f = start + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    phi1_ME = _load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, MASKED, E != F)
    phi2_ME = _load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, MASKED, E != F)
    g_MD = _load_rows(g_ptr, rows, sgt, d, tokens, D, MASKED, False)
    if MASKED:
        row_ok = rows < tokens
        z = tl.load(z_ptr + rows, mask=row_ok, other=1.0)
        dy = tl.load(dy_ptr + rows, mask=row_ok, other=0.0)
        seen = row_ok[None, :] & (lo_key[:, None] <= rows[None, :])
    else:
        z = tl.load(z_ptr + rows)
        dy = tl.load(dy_ptr + rows)
    gz, cz = g_scale / z, (b - dy * g_scale) / z
    u = tl.dot(phik1_NE, tl.trans(phi1_ME), input_precision=PRECISION)
    u = tl.dot(phik2_NE, tl.trans(phi2_ME), u, input_precision=PRECISION)
    du = tl.dot(v_ND, tl.trans(g_MD), input_precision=PRECISION) * gz[None, :] + cz[None, :]
    if TEACHER:
        if MASKED:
            lse = tl.load(lse_ptr + rows, mask=row_ok, other=float("inf"))
        else:
            lse = tl.load(lse_ptr + rows)
        q_MD = _load_rows(q_ptr, rows, sqt, d, tokens, D, MASKED, False)
        s = tl.dot(kt_ND, tl.trans(q_MD), input_precision=PRECISION) * scale2
        du -= b * tl.exp2(s - lse[None, :]) / u
    if MASKED:
        du = tl.where(seen, du, 0.0)
    du_op = du.to(phi1_ME.dtype)
    dphi1 = tl.dot(du_op, phi1_ME, dphi1, input_precision=PRECISION)
    dphi2 = tl.dot(du_op, phi2_ME, dphi2, input_precision=PRECISION)
    if STUDENT_GRADIENTS:
        p = u * gz[None, :]
        if MASKED:
            p = tl.where(seen, p, 0.0)
        dv_ND = tl.dot(p.to(g_MD.dtype), g_MD, dv_ND, input_precision=PRECISION)
    return dphi1, dphi2, dv_ND


@triton.jit
def _key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, phiq_ptr, phik_ptr, factor_ptr, wk_ptr, g_ptr,
    lse_ptr, max_ptr, arg_ptr, z_ptr, dy_ptr, dlog_ptr, scales_ptr, dz_ptr, dk_ptr, dv_ptr,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sqtb, sqth, sqtt, sktb, skth, sktt, sgb, sgh, sgt,
    tokens, heads, groups, phi_groups, scale2, scale, phi_min,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TEACHER: tl.constexpr, SEPARATE: tl.constexpr, STUDENT_GRADIENTS: tl.constexpr, DROPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of N keys from one query head: of k w_k and, for a student that trains, of k and v."""
    first = tl.program_id(0) * N
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // heads, bh % heads
    kv_head = head // groups
    q_ptr += batch * sqb + head * sqh
    k_ptr += batch * skb + kv_head * skh
    v_ptr += batch * svb + kv_head * svh
    qt_ptr += batch * sqtb + head * sqth
    kt_ptr += batch * sktb + kv_head * skth
    g_ptr += batch * sgb + head * sgh
    phiq_ptr += bh * tokens * (2 * F)
    phik_ptr += (bh // phi_groups) * tokens * (2 * F)
    lse_ptr += bh * tokens
    max_ptr += bh * tokens
    arg_ptr += bh * tokens
    z_ptr += bh * tokens
    dy_ptr += bh * tokens
    dlog_ptr += bh * tokens

    keys, d, f = first + tl.arange(0, N), tl.arange(0, D), tl.arange(0, E)
    key_ok = keys < tokens
    # The first row that sees a key below its window.
    if DROPPED:
        lo_key, lo_begin, lo_end = keys, first, first + N - 1
    else:
        lo_key, lo_begin, lo_end = (keys // W + 2) * W, (first // W + 2) * W, ((first + N - 1) // W + 2) * W
    g_scale = tl.load(scales_ptr)
    b = tl.load(scales_ptr + 1)
    v_ND = _load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
    if TEACHER:
        kt_ND = _load_rows(kt_ptr, keys, sktt, d, tokens, D, True, False)
    else:
        kt_ND = v_ND
    phik1_NE = _load_rows(phik_ptr, keys, 2 * F, f, tokens, F, True, E != F)
    phik2_NE = _load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, True, E != F)
    dphi1 = tl.zeros([N, E], tl.float32)
    dphi2 = tl.zeros([N, E], tl.float32)
    dv_ND = tl.zeros([N, D], tl.float32)
    begin = lo_begin // M * M
    whole_begin = tl.minimum(tl.cdiv(lo_end, M) * M, tl.cdiv(tokens, M) * M)
    whole_end = tl.maximum(tokens // M * M, whole_begin)
    if DROPPED or W % M != 0 or W % N != 0:
        for start in tl.range(begin, whole_begin, M):
            dphi1, dphi2, dv_ND = _key_below(
                dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
                phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
                W, D, F, E, M, True, TEACHER, STUDENT_GRADIENTS, PRECISION,
            )  # fmt: skip
    for start in tl.range(whole_begin, whole_end, M):
        dphi1, dphi2, dv_ND = _key_below(
            dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
            phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
            W, D, F, E, M, False, TEACHER, STUDENT_GRADIENTS, PRECISION,
        )  # fmt: skip
    for start in tl.range(whole_end, tokens, M):
        dphi1, dphi2, dv_ND = _key_below(
            dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
            phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
            W, D, F, E, M, True, TEACHER, STUDENT_GRADIENTS, PRECISION,
        )  # fmt: skip
    dz_NE = _softmax_gradient(dphi1, dphi2, phik1_NE, phik2_NE, phi_min)
    dz_op = dz_NE.to(dz_ptr.dtype.element_ty)
    f_ok = f < F
    # One key/value head's gradients lie side by side, so that one product of its keys serves the group.
    dz_at = (batch * (heads // groups) + kv_head) * tokens * groups * F + (head % groups) * F
    tl.store(
        dz_ptr + dz_at + keys[:, None] * (groups * F) + f[None, :],
        dz_op,
        mask=key_ok[:, None] & f_ok[None, :],
    )

    if STUDENT_GRADIENTS:
        w_at = wk_ptr + (head // phi_groups) * D * F
        w_DE = tl.load(w_at + d[:, None] * F + f[None, :], mask=f_ok[None, :], other=0.0)
        dk_ND = tl.dot(dz_op, tl.trans(w_DE.to(dz_op.dtype)), input_precision=PRECISION)
        k_ND = _load_rows(k_ptr, keys, skt, d, tokens, D, True, False)
        sigma = 1.0 / (1.0 + tl.exp(-tl.load(factor_ptr + head).to(tl.float32)))
        stop = tl.minimum(((first + N - 1) // W + 2) * W, tokens)
        for start in tl.range(first // M * M, stop, M):
            rows = start + tl.arange(0, M)
            row_ok = rows < tokens
            q_MD = _load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
            g_MD = _load_rows(g_ptr, rows, sgt, d, tokens, D, True, False)
            m = tl.load(max_ptr + rows, mask=row_ok, other=0.0)
            z = tl.load(z_ptr + rows, mask=row_ok, other=1.0)
            dy = tl.load(dy_ptr + rows, mask=row_ok, other=0.0) * g_scale
            arg = tl.load(arg_ptr + rows, mask=row_ok, other=-1)
            dlog = tl.load(dlog_ptr + rows, mask=row_ok, other=0.0)
            inside = (keys[:, None] <= rows[None, :]) & (lo_key[:, None] > rows[None, :]) & row_ok[None, :]
            s = tl.dot(k_ND, tl.trans(q_MD), input_precision=PRECISION) * scale2
            p = tl.exp2(tl.where(inside, s - m[None, :], float("-inf"))) * (sigma / z)[None, :]
            gv = tl.dot(v_ND, tl.trans(g_MD), input_precision=PRECISION) * g_scale
            ds = p * (gv + (b - dy)[None, :])
            if TEACHER:
                lse = tl.load(lse_ptr + rows, mask=row_ok, other=float("inf"))
                if SEPARATE:
                    qt_MD = _load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
                    s = tl.dot(kt_ND, tl.trans(qt_MD), input_precision=PRECISION) * scale2
                ds -= b * tl.exp2(tl.where(inside, s - lse[None, :], float("-inf")))
            ds -= tl.where(keys[:, None] == arg[None, :], dlog[None, :], 0.0)
            dk_ND = tl.dot((ds * scale).to(q_MD.dtype), q_MD, dk_ND, input_precision=PRECISION)
            dv_ND = tl.dot((p * g_scale).to(g_MD.dtype), g_MD, dv_ND, input_precision=PRECISION)
        out = bh * tokens * D + keys[:, None] * D + d[None, :]
        tl.store(dk_ptr + out, dk_ND.to(dk_ptr.dtype.element_ty), mask=key_ok[:, None])
        tl.store(dv_ptr + out, dv_ND.to(dv_ptr.dtype.element_ty), mask=key_ok[:, None])


class _Tiles(NamedTuple):
    """How one kernel is cut: rows and keys of a tile, warps, pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


TRANSFER_TILES = {
    "forward": _Tiles(64, 32, 4, 3),
    "query": _Tiles(128, 64, 8, 2),
    "key": _Tiles(64, 128, 8, 1),
}
"""Fastest of those tried on H100 and H200 for attention transfer: 1024 tokens, bf16, 64 features a half."""

STUDENT_TILES = {
    "forward": _Tiles(64, 64, 4, 3),
    "query": _Tiles(64, 64, 4, 2),
    "key": _Tiles(32, 64, 4, 3),
}
"""Likewise for the student alone."""

HEAVY_TILES = {
    "forward": _Tiles(64, 32, 4, 2),
    "query": _Tiles(64, 32, 4, 2),
    "key": _Tiles(32, 64, 4, 2),
}
"""Likewise for student and teacher apart; also where more than 64 features a half must be held."""


FEATURE_ROWS, FEATURE_WARPS = 64, 4
"""Tile of the feature maps."""


def _tiles(kernel: str, x: _Problem, mode: _Mode) -> _Tiles:
    """Return the tiles of `kernel` for a problem."""
    if INTERPRETED:
        return _Tiles(32, 16, 4, 1) if kernel != "key" else _Tiles(16, 32, 4, 1)
    if x.q.dtype == torch.float32:
        return _Tiles(32, 32, 8, 1)
    if x.w_q.shape[-1] > 64 or mode.separate:
        return HEAVY_TILES[kernel]
    return (TRANSFER_TILES if mode.teacher else STUDENT_TILES)[kernel]


def _precision(dtype: torch.dtype) -> str:
    """Return how a product of fp32 operands is computed; bf16 operands take no notice.

    Three tf32 products on the matrix units keep nearly every bit of fp32 and take a quarter of the time.
    """
    return "ieee" if INTERPRETED or dtype != torch.float32 else "tf32x3"


def _bht(x: torch.Tensor) -> tuple[int, int, int]:
    """Return the strides of batch, head and token; the last dimension must be dense."""
    return x.stride(0), x.stride(1), x.stride(2)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return `x` with its last dimension dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _like_projection(q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Allocate [B, H, T, D] as [B, T, H, D] in memory, the form that o_proj reads."""
    batch, heads, tokens, head_dim = q.shape
    return q.new_empty(batch, tokens, heads, head_dim, dtype=dtype).transpose(1, 2)


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return phi [B, H, T, 2F] of queries or keys `x` [B, K, T, D] under the maps `w` [H, D, F].

    K divides H: each map reads the head of its group.  The result has the dtype of `x`.
    """
    batch, x_heads, tokens, head_dim = x.shape
    heads, _, feature_dim = w.shape
    phi = x.new_empty(batch, heads, tokens, 2 * feature_dim)
    rows = 16 if INTERPRETED else FEATURE_ROWS
    _feature_kernel[(triton.cdiv(tokens, rows), batch * heads)](
        x, w.contiguous(), phi, *_bht(x), tokens, heads, heads // x_heads, PHI_MIN,
        D=head_dim, F=feature_dim, E=_padded(feature_dim), M=rows, PRECISION=_precision(x.dtype),
        num_warps=FEATURE_WARPS,
    )  # fmt: skip
    return phi


def _padded(feature_dim: int) -> int:
    return max(16, triton.next_power_of_2(feature_dim))


class _Problem(NamedTuple):
    """What forward and backward read; the teacher's tensors are the student's own where they are shared."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_teacher: torch.Tensor
    k_teacher: torch.Tensor
    v_teacher: torch.Tensor
    w_q: torch.Tensor
    w_k: torch.Tensor
    window_factor: torch.Tensor
    phi_q: torch.Tensor
    phi_k: torch.Tensor


class _Rows(NamedTuple):
    """Row statistics [B, H, T] that the forward leaves to the backward."""

    lse: torch.Tensor
    maximum: torch.Tensor
    argmax: torch.Tensor
    z: torch.Tensor
    dy: torch.Tensor


class _Mode(NamedTuple):
    """Which of the kernels' parts are wanted."""

    window_size: int
    teacher: bool
    separate: bool
    student_gradients: bool
    dropped: bool = False


def _constants(x: _Problem, mode: _Mode, tiles: _Tiles) -> dict[str, Any]:
    feature_dim = x.w_q.shape[-1]
    return {
        "W": mode.window_size, "D": x.q.shape[-1], "F": feature_dim, "E": _padded(feature_dim),
        "M": tiles.rows, "N": tiles.keys, "TEACHER": mode.teacher, "SEPARATE": mode.separate,
        "STUDENT_GRADIENTS": mode.student_gradients, "DROPPED": mode.dropped,
        "PRECISION": _precision(x.q.dtype), "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip


def _sizes(x: _Problem) -> tuple[int, int, int, int, float]:
    heads, tokens, head_dim = x.q.shape[1:]
    maps = x.phi_k.shape[1]
    return tokens, heads, heads // x.k.shape[1], heads // maps, head_dim**-0.5 * LOG2_E


def _forward(
    x: _Problem, mode: _Mode
) -> tuple[torch.Tensor, torch.Tensor, _Rows, torch.Tensor, torch.Tensor]:
    """Return output, student's output less the teacher's, row statistics, squared error and XENT by row."""
    batch, heads, tokens, _ = x.q.shape
    rows = x.q.new_empty(7, batch, heads, tokens, dtype=torch.float32)
    argmax = rows[6].view(torch.int32)
    lse, maximum, z, dy, mse, xent = rows[:6]
    output = _like_projection(x.q, x.q.dtype)
    difference = _like_projection(x.q, x.q.dtype) if mode.teacher else output
    tiles = _tiles("forward", x, mode)
    _forward_kernel[(triton.cdiv(tokens, tiles.rows), batch * heads)](
        x.q, x.k, x.v, x.q_teacher, x.k_teacher, x.v_teacher, x.phi_q, x.phi_k, x.window_factor,
        output, difference, lse, maximum, argmax, z, dy, mse, xent,
        *_bht(x.q), *_bht(x.k), *_bht(x.v), *_bht(x.q_teacher), *_bht(x.k_teacher), *_bht(x.v_teacher),
        *_bht(output), *_sizes(x), **_constants(x, mode, tiles),
    )  # fmt: skip
    return output, difference, _Rows(lse, maximum, argmax, z, dy), mse, xent


class _Gradients(NamedTuple):
    """Gradients of the student's arguments; None where not wanted."""

    q: torch.Tensor | None
    k: torch.Tensor | None
    v: torch.Tensor | None
    w_q: torch.Tensor
    w_k: torch.Tensor
    window_factor: torch.Tensor | None


def _backward(
    x: _Problem, mode: _Mode, rows: _Rows, y: torch.Tensor, g: torch.Tensor, scales: torch.Tensor
) -> _Gradients:
    """Return the gradients for dloss/dy = scales[0] * g and dloss/dXENT = scales[1] in every row.

    `y`, the student's output, is read where no teacher's forward left its product with `g` in `rows.dy`.
    """
    batch, heads, tokens, head_dim = x.q.shape
    kv_heads, feature_dim = x.k.shape[1], x.w_q.shape[-1]
    groups = heads // kv_heads
    dz_q = x.q.new_empty(batch, heads, tokens, feature_dim)
    dz_k = x.q.new_empty(batch, kv_heads, tokens, groups * feature_dim)
    dlog_sigma = x.q.new_empty(batch, heads, tokens, dtype=torch.float32)
    dq, dk, dv = dz_q, dz_k, dz_k
    if mode.student_gradients:
        dq, dk, dv = (x.q.new_empty(batch, heads, tokens, head_dim) for _ in range(3))
    strides = (
        *_bht(x.q), *_bht(x.k), *_bht(x.v), *_bht(x.q_teacher), *_bht(x.k_teacher), *_bht(g),
        *_sizes(x), head_dim**-0.5, PHI_MIN,
    )  # fmt: skip
    inputs = (x.q, x.k, x.v, x.q_teacher, x.k_teacher, x.phi_q, x.phi_k, x.window_factor)
    statistics = (rows.lse, rows.maximum, rows.argmax, rows.z, rows.dy)
    w_q, w_k = x.w_q.contiguous(), x.w_k.contiguous()
    tiles = _tiles("query", x, mode)
    _query_gradient_kernel[(triton.cdiv(tokens, tiles.rows), batch * heads)](
        *inputs, w_q, y, g, *statistics, scales, dz_q, dq, dlog_sigma, *_bht(y), *strides,
        **_constants(x, mode, tiles),
    )  # fmt: skip
    tiles = _tiles("key", x, mode)
    _key_gradient_kernel[(triton.cdiv(tokens, tiles.keys), batch * heads)](
        *inputs, w_k, g, *statistics, dlog_sigma, scales, dz_k, dk, dv,
        *strides, **_constants(x, mode, tiles),
    )  # fmt: skip
    dw_q = _over_tokens(x.q, dz_q)
    dw_k = _over_tokens(x.k, dz_k).view(kv_heads, head_dim, groups, feature_dim).transpose(1, 2)
    dw_k = dw_k.reshape(heads, head_dim, feature_dim)
    if x.w_k.shape[0] != heads:
        dw_k = dw_k.view(x.w_k.shape[0], -1, head_dim, feature_dim).sum(1)
    dfactor = None
    if not mode.dropped:
        dfactor = dlog_sigma.sum((0, 2)) * (-x.window_factor.float()).sigmoid()
        dfactor = dfactor.to(x.window_factor.dtype)
    student: tuple[torch.Tensor | None, ...] = (None, None, None)
    if mode.student_gradients:
        student = (dq, _over_groups(dk, kv_heads), _over_groups(dv, kv_heads))
    return _Gradients(*student, dw_q.to(x.w_q.dtype), dw_k.to(x.w_k.dtype), dfactor)


def _over_groups(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Sum [B, H, T, D] over the query heads of each key/value head."""
    batch, heads, tokens, head_dim = x.shape
    return x if heads == kv_heads else x.view(batch, kv_heads, -1, tokens, head_dim).sum(2)


def _over_tokens(x: torch.Tensor, dz: torch.Tensor) -> torch.Tensor:
    """Return sum_t x^T dz in fp32, [H, D, F], for x [B, H, T, D] and dz [B, H, T, F]."""
    total = None
    for x_HTD, dz_HTF in zip(x, dz, strict=True):
        if x.is_cuda and x.dtype != torch.float32:
            part = torch.bmm(x_HTD.transpose(-1, -2), dz_HTF, out_dtype=torch.float32)
        else:
            part = torch.bmm(x_HTD.float().transpose(-1, -2), dz_HTF.float())
        total = part if total is None else total + part
    if total is None:
        raise ValueError("attention needs at least one sequence")
    return total


class _Distill(torch.autograd.Function):
    """(mse, xent, teacher's output) of student and teacher."""

    @staticmethod
    def forward(
        ctx: Any, window_size: int, separate: bool, dropped: bool, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        q, k, *_, w_q, w_k, _ = tensors
        x = _Problem(*tensors, features(q, w_q), features(k, w_k))
        student_gradients = any(ctx.needs_input_grad[3:6])
        if dropped and (separate or student_gradients):
            raise ValueError("the window is dropped in attention transfer only")
        ctx.mode = _Mode(window_size, True, separate, student_gradients, dropped)
        output, difference, rows, mse, xent = _forward(x, ctx.mode)
        ctx.save_for_backward(*x, difference, *rows)
        ctx.mark_non_differentiable(output)
        return mse.sum() / q.numel(), xent.mean(), output

    @staticmethod
    def backward(ctx: Any, grad_mse: torch.Tensor, grad_xent: torch.Tensor, _: Any) -> tuple[Any, ...]:
        *tensors, difference, lse, maximum, argmax, z, dy = ctx.saved_tensors
        x = _Problem(*tensors)
        scales = torch.stack([grad_mse * (2 / x.q.numel()), grad_xent / z.numel()]).float()
        d = _backward(x, ctx.mode, _Rows(lse, maximum, argmax, z, dy), difference, difference, scales)
        return None, None, None, d.q, d.k, d.v, None, None, None, d.w_q, d.w_k, d.window_factor


class _Hybrid(torch.autograd.Function):
    """The student's output alone."""

    @staticmethod
    def forward(ctx: Any, window_size: int, *tensors: torch.Tensor) -> torch.Tensor:
        q, k, v, w_q, w_k, window_factor = tensors
        x = _Problem(q, k, v, q, k, v, w_q, w_k, window_factor, features(q, w_q), features(k, w_k))
        ctx.mode = _Mode(window_size, False, False, any(ctx.needs_input_grad[1:4]))
        y, _, rows, _, _ = _forward(x, ctx.mode)
        ctx.save_for_backward(*tensors, x.phi_q, x.phi_k, y, rows.maximum, rows.argmax, rows.z)
        return y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, w_q, w_k, window_factor, phi_q, phi_k, y, maximum, argmax, z = ctx.saved_tensors
        x = _Problem(q, k, v, q, k, v, w_q, w_k, window_factor, phi_q, phi_k)
        g = _dense(g)
        dy = torch.empty_like(z)
        scales = torch.arange(1, -1, -1, device=q.device, dtype=torch.float32)
        d = _backward(x, ctx.mode, _Rows(z, maximum, argmax, z, dy), y, g, scales)
        return None, d.q, d.k, d.v, d.w_q, d.w_k, d.window_factor


def distill_loss(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_teacher: torch.Tensor,
    k_teacher: torch.Tensor,
    v_teacher: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    window_size: int,
    drop_window: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mse, xent, teacher's output); gradients flow to the student's arguments only."""
    separate = not (q_teacher is q and k_teacher is k and v_teacher is v)
    q, k, v = _dense(q), _dense(k), _dense(v)
    teacher = (_dense(q_teacher), _dense(k_teacher), _dense(v_teacher)) if separate else (q, k, v)
    mse, xent, output = _Distill.apply(
        window_size, separate, drop_window, q, k, v, *teacher, w_q, w_k, window_factor
    )
    return mse, xent, output


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    window_factor: torch.Tensor,
    window_size: int,
) -> torch.Tensor:
    """Return the student's output, [B, H, T, D]; every argument gets its gradient."""
    return _Hybrid.apply(window_size, _dense(q), _dense(k), _dense(v), w_q, w_k, window_factor)
