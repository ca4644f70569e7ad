"""The backward over query tiles: gradients of q w_q, of log sigma and, where it is wanted, of q."""

from __future__ import annotations

import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.states import load_state
from trenchcoat_trainer.students.lolcats.kernels.tile import exp2, load_rows, softmax_gradient, window_starts


@triton.jit
def _of_half(
    ratio_at, memory_ED, sum_E, g_MD, gz, cz, b, ratio_ok, TEACHER: tl.constexpr, PRECISION: tl.constexpr
):
    """Return the gradient of half of the rows' features: of keys in whole blocks, of all cross-entropy."""
    dphi_ME = tl.dot(g_MD, tl.trans(memory_ED), input_precision=PRECISION) * gz[:, None]
    dphi_ME += cz[:, None] * sum_E[None, :]
    if TEACHER:
        ratio_ME = tl.load(ratio_at, mask=ratio_ok, other=0.0)
        dphi_ME -= b * ratio_ME.to(tl.float32)
    return dphi_ME


@triton.jit
def _query_below(
    dphi1, dphi2, start, g_MD, gz, cz, lo, v_ptr, svt, phik_ptr, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what those keys of a tile give that lie below the window of a row."""
    keys, d, f = start + tl.arange(0, N), tl.arange(0, D), tl.arange(0, E)
    phik1_NE = load_rows(phik_ptr, keys, 2 * F, f, tokens, F, True, E != F)
    phik2_NE = load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, True, E != F)
    v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
    du = tl.dot(g_MD, tl.trans(v_ND), input_precision=PRECISION) * gz[:, None] + cz[:, None]
    du_op = tl.where(keys[None, :] < lo[:, None], du, 0.0).to(phik1_NE.dtype)
    dphi1 = tl.dot(du_op, phik1_NE, dphi1, input_precision=PRECISION)
    dphi2 = tl.dot(du_op, phik2_NE, dphi2, input_precision=PRECISION)
    return dphi1, dphi2


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, phiq_ptr, phik_ptr, factor_ptr, memory_ptr, sum_ptr, ratio_ptr,
    wq_ptr, y_ptr, g_ptr, lse_ptr, max_ptr, rz_ptr, arg_ptr, dy_ptr, scales_ptr, dz_ptr, dq_ptr,
    dlog_ptr, syb, syh, syt,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sqtb, sqth, sqtt, sktb, skth, sktt, sgb, sgh, sgt,
    tokens, heads, groups, phi_groups, scale2, scale, phi_min,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    C: tl.constexpr, TEACHER: tl.constexpr, SEPARATE: tl.constexpr, DROPPED: tl.constexpr,
    QUERIES: tl.constexpr, MAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of M rows of one head: of log sigma and, as is wanted, of q w_q (MAPS) and of q (QUERIES).

    Without a teacher g . y is computed here and left to the other kernels in dy_ptr.
    """
    ALIGNED: tl.constexpr = not DROPPED and W % M == 0 and W % C == 0
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
    row_ok, f_ok = rows < tokens, f < F
    stop = tl.minimum(first + M, tokens)
    lo, lo_first, lo_last = window_starts(rows, first, stop, W, DROPPED)
    whole = lo_first // C * C
    at = bh * tokens + rows
    g_scale = tl.load(scales_ptr)
    b = tl.load(scales_ptr + 1)
    rz = tl.load(rz_ptr + at, mask=row_ok, other=0.0)
    g_MD = load_rows(g_ptr, rows, sgt, d, tokens, D, True, False)
    if TEACHER:
        dy = tl.load(dy_ptr + at, mask=row_ok, other=0.0)
    else:
        y_MD = load_rows(y_ptr + batch * syb + head * syh, rows, syt, d, tokens, D, True, False)
        dy = tl.sum(g_MD.to(tl.float32) * y_MD.to(tl.float32), 1)
        tl.store(dy_ptr + at, dy, mask=row_ok)
    dy *= g_scale
    gz, cz = g_scale * rz, (b - dy) * rz
    ratio_at = ratio_ptr + at[:, None] * (2 * F) + f[None, :]
    ok = row_ok[:, None] & f_ok[None, :]
    block = (bh // phi_groups) * tl.cdiv(tokens, C) + whole // C
    memory_ED, sum_E = load_state(memory_ptr, sum_ptr, block, 0, D, E)
    dphi1 = _of_half(ratio_at, memory_ED, sum_E, g_MD, gz, cz, b, ok, TEACHER, PRECISION)
    memory_ED, sum_E = load_state(memory_ptr, sum_ptr, block, 1, D, E)
    dphi2 = _of_half(ratio_at + F, memory_ED, sum_E, g_MD, gz, cz, b, ok, TEACHER, PRECISION)
    if not ALIGNED:
        for start in tl.range(whole, lo_last, N):
            dphi1, dphi2 = _query_below(
                dphi1, dphi2, start, g_MD, gz, cz, lo, v_ptr, svt, phik_ptr, tokens, D, F, E, N, PRECISION
            )
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F).to(tl.float32)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F).to(tl.float32)
    u_du = tl.sum(phi1_ME * dphi1 + phi2_ME * dphi2, 1)
    tl.store(dlog_ptr + at, -u_du, mask=row_ok)
    dz_op = softmax_gradient(dphi1, dphi2, phi1_ME, phi2_ME, phi_min).to(dz_ptr.dtype.element_ty)
    if MAPS:
        # As projections leave heads: all sequences' tokens are one dimension for the product with x.
        dz_at = ((batch * tokens + rows) * heads + head)[:, None] * F + f[None, :]
        tl.store(dz_ptr + dz_at, dz_op, mask=ok)

    if QUERIES:
        w_DE = tl.load(wq_ptr + head * D * F + d[:, None] * F + f[None, :], mask=f_ok[None, :], other=0.0)
        dq_MD = tl.dot(dz_op, tl.trans(w_DE.to(dz_op.dtype)), input_precision=PRECISION)
        q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
        if SEPARATE:
            qt_MD = load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
        m = tl.load(max_ptr + at, mask=row_ok, other=0.0)
        arg = tl.load(arg_ptr + at, mask=row_ok, other=0)
        if TEACHER:
            lse = tl.load(lse_ptr + at, mask=row_ok, other=float("inf"))
        sigma_z = rz / (1.0 + tl.exp(-tl.load(factor_ptr + head).to(tl.float32)))
        for start in tl.range(lo_first // N * N, stop, N):
            keys = start + tl.arange(0, N)
            k_ND = load_rows(k_ptr, keys, skt, d, tokens, D, True, False)
            v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
            inside = keys[None, :] <= rows[:, None]
            if W % M != 0 or W % N != 0:
                inside = inside & (keys[None, :] >= lo[:, None])
            s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale2
            p = exp2(tl.where(inside, s - m[:, None], float("-inf"))) * sigma_z[:, None]
            gv = tl.dot(g_MD, tl.trans(v_ND), input_precision=PRECISION) * g_scale
            ds = p * (gv + (b - dy)[:, None])
            if TEACHER:
                if SEPARATE:
                    kt_ND = load_rows(kt_ptr, keys, sktt, d, tokens, D, True, False)
                    s = tl.dot(qt_MD, tl.trans(kt_ND), input_precision=PRECISION) * scale2
                ds -= b * exp2(tl.where(inside, s - lse[:, None], float("-inf")))
            ds += tl.where(keys[None, :] == arg[:, None], u_du[:, None], 0.0)
            dq_MD = tl.dot((ds * scale).to(k_ND.dtype), k_ND, dq_MD, input_precision=PRECISION)
        dq_at = dq_ptr + bh * tokens * D + rows[:, None] * D + d[None, :]
        tl.store(dq_at, dq_MD.to(dq_ptr.dtype.element_ty), mask=row_ok[:, None])
