"""The backward over key tiles: gradients of k w_k, of k and of v, each where it is wanted."""

# ruff: noqa: SIM108 - a branch on a constexpr is cut at compile time, and both sides need not agree in type
from __future__ import annotations

import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.states import load_state
from trenchcoat_trainer.students.lolcats.kernels.tile import exp2, load_rows, reciprocal, softmax_gradient


@triton.jit
def _pairs(
    dphi1, dphi2, start, kt_ND, phik1_NE, phik2_NE, q_ptr, sqt, phiq_ptr, lse_ptr, rz_ptr, scale2, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the sums of (1/z - a/u) phi_q one tile of rows, which see all the keys below their windows."""
    rows, d, f = start + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, MASKED, E != F)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, MASKED, E != F)
    q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, MASKED, False)
    if MASKED:
        lse = tl.load(lse_ptr + rows, mask=rows < tokens, other=float("inf"))
        rz = tl.load(rz_ptr + rows, mask=rows < tokens, other=0.0)
    else:
        lse = tl.load(lse_ptr + rows)
        rz = tl.load(rz_ptr + rows)
    s = tl.dot(kt_ND, tl.trans(q_MD), input_precision=PRECISION)
    u = tl.dot(phik1_NE, tl.trans(phi1_ME), input_precision=PRECISION)
    u = tl.dot(phik2_NE, tl.trans(phi2_ME), u, input_precision=PRECISION)
    du = rz[None, :] - exp2(s * scale2 - lse[None, :]) * reciprocal(u)
    if MASKED:
        du = tl.where((rows < tokens)[None, :], du, 0.0)
    du_op = du.to(phi1_ME.dtype)
    dphi1 = tl.dot(du_op, phi1_ME, dphi1, input_precision=PRECISION)
    dphi2 = tl.dot(du_op, phi2_ME, dphi2, input_precision=PRECISION)
    return dphi1, dphi2


@triton.jit
def _key_below(
    dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key,
    q_ptr, sqt, g_ptr, sgt, phiq_ptr, lse_ptr, rz_ptr, dy_ptr, g_scale, b, scale2, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr,
    TEACHER: tl.constexpr, FEATURES: tl.constexpr, VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add all that those rows of a tile give whose windows lie above a key."""
    rows, d, f = start + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    row_ok = rows < tokens
    seen = row_ok[None, :] & (lo_key[:, None] <= rows[None, :])
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F)
    g_MD = load_rows(g_ptr, rows, sgt, d, tokens, D, True, False)
    rz = tl.load(rz_ptr + rows, mask=row_ok, other=0.0)
    gz = g_scale * rz
    u = tl.dot(phik1_NE, tl.trans(phi1_ME), input_precision=PRECISION)
    u = tl.dot(phik2_NE, tl.trans(phi2_ME), u, input_precision=PRECISION)
    if FEATURES:
        dy = tl.load(dy_ptr + rows, mask=row_ok, other=0.0)
        cz = (b - dy * g_scale) * rz
        du = tl.dot(v_ND, tl.trans(g_MD), input_precision=PRECISION) * gz[None, :] + cz[None, :]
        if TEACHER:
            lse = tl.load(lse_ptr + rows, mask=row_ok, other=float("inf"))
            q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
            s = tl.dot(kt_ND, tl.trans(q_MD), input_precision=PRECISION) * scale2
            du -= b * exp2(s - lse[None, :]) * reciprocal(u)
        du_op = tl.where(seen, du, 0.0).to(phi1_ME.dtype)
        dphi1 = tl.dot(du_op, phi1_ME, dphi1, input_precision=PRECISION)
        dphi2 = tl.dot(du_op, phi2_ME, dphi2, input_precision=PRECISION)
    if VALUES:
        p = tl.where(seen, u * gz[None, :], 0.0)
        dv_ND = tl.dot(p.to(g_MD.dtype), g_MD, dv_ND, input_precision=PRECISION)
    return dphi1, dphi2, dv_ND


@triton.jit
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, phiq_ptr, phik_ptr, factor_ptr, memory_ptr, sum_ptr, wk_ptr, g_ptr,
    lse_ptr, max_ptr, rz_ptr, arg_ptr, dy_ptr, dlog_ptr, scales_ptr, dz_ptr, dk_ptr, dv_ptr,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sqtb, sqth, sqtt, sktb, skth, sktt, sgb, sgh, sgt,
    tokens, heads, groups, phi_groups, scale2, scale, phi_min,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    C: tl.constexpr, TEACHER: tl.constexpr, SEPARATE: tl.constexpr, DROPPED: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr, MAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of N keys from one query head, as is wanted: of k w_k (MAPS), of k (KEYS), of v (VALUES)."""
    FEATURES: tl.constexpr = KEYS or MAPS
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
    rz_ptr += bh * tokens
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
    v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
    if TEACHER and FEATURES:
        kt_ND = load_rows(kt_ptr, keys, sktt, d, tokens, D, True, False)
    else:
        kt_ND = v_ND
    phik1_NE = load_rows(phik_ptr, keys, 2 * F, f, tokens, F, True, E != F)
    phik2_NE = load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, True, E != F)
    dphi1 = tl.zeros([N, E], tl.float32)
    dphi2 = tl.zeros([N, E], tl.float32)
    dv_ND = tl.zeros([N, D], tl.float32)
    # Rows from here on see all of these keys, and a block of states begins.
    whole = tl.cdiv(lo_end, C) * C
    if TEACHER and FEATURES:
        whole_end = tl.maximum(tokens // M * M, whole)
        for start in tl.range(whole, whole_end, M):
            dphi1, dphi2 = _pairs(
                dphi1, dphi2, start, kt_ND, phik1_NE, phik2_NE, qt_ptr, sqtt, phiq_ptr, lse_ptr, rz_ptr,
                scale2, tokens, D, F, E, M, False, PRECISION,
            )  # fmt: skip
        for start in tl.range(whole_end, tokens, M):
            dphi1, dphi2 = _pairs(
                dphi1, dphi2, start, kt_ND, phik1_NE, phik2_NE, qt_ptr, sqtt, phiq_ptr, lse_ptr, rz_ptr,
                scale2, tokens, D, F, E, M, True, PRECISION,
            )  # fmt: skip
        dphi1, dphi2 = b * dphi1, b * dphi2
    if whole < tokens:
        block = bh * tl.cdiv(tokens, C) + whole // C
        for half in tl.static_range(2):
            memory_ED, sum_E = load_state(memory_ptr, sum_ptr, block, half, D, E)
            if FEATURES:
                dphi_NE = tl.dot(v_ND, tl.trans(memory_ED), input_precision=PRECISION) + sum_E[None, :]
                if half == 0:
                    dphi1 += dphi_NE
                else:
                    dphi2 += dphi_NE
            if VALUES:
                phik_NE = phik1_NE if half == 0 else phik2_NE
                dv_ND = tl.dot(phik_NE, memory_ED, dv_ND, input_precision=PRECISION)
    if DROPPED or W % N != 0 or W % C != 0:
        for start in tl.range(lo_begin // M * M, tl.minimum(whole, tokens), M):
            dphi1, dphi2, dv_ND = _key_below(
                dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
                phiq_ptr, lse_ptr, rz_ptr, dy_ptr, g_scale, b, scale2, tokens,
                D, F, E, M, TEACHER, FEATURES, VALUES, PRECISION,
            )  # fmt: skip
    if FEATURES:
        dz_NE = softmax_gradient(dphi1, dphi2, phik1_NE, phik2_NE, phi_min)
        dz_op = dz_NE.to(dz_ptr.dtype.element_ty)
        f_ok = f < F
        if MAPS:
            # A key/value head's gradients lie side by side: one product of its keys serves the group.
            dz_at = ((batch * tokens + keys) * heads + head)[:, None] * F + f[None, :]
            tl.store(dz_ptr + dz_at, dz_op, mask=key_ok[:, None] & f_ok[None, :])

    if KEYS or VALUES:
        if KEYS:
            w_at = wk_ptr + (head // phi_groups) * D * F
            w_DE = tl.load(w_at + d[:, None] * F + f[None, :], mask=f_ok[None, :], other=0.0)
            dk_ND = tl.dot(dz_op, tl.trans(w_DE.to(dz_op.dtype)), input_precision=PRECISION)
        k_ND = load_rows(k_ptr, keys, skt, d, tokens, D, True, False)
        sigma = 1.0 / (1.0 + tl.exp(-tl.load(factor_ptr + head).to(tl.float32)))
        stop = tl.minimum(((first + N - 1) // W + 2) * W, tokens)
        for start in tl.range(first // M * M, stop, M):
            rows = start + tl.arange(0, M)
            row_ok = rows < tokens
            q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
            g_MD = load_rows(g_ptr, rows, sgt, d, tokens, D, True, False)
            m = tl.load(max_ptr + rows, mask=row_ok, other=0.0)
            rz = tl.load(rz_ptr + rows, mask=row_ok, other=0.0)
            inside = keys[:, None] <= rows[None, :]
            if W % N != 0:
                inside = inside & (lo_key[:, None] > rows[None, :])
            s = tl.dot(k_ND, tl.trans(q_MD), input_precision=PRECISION) * scale2
            p = exp2(tl.where(inside, s - m[None, :], float("-inf"))) * (sigma * rz)[None, :]
            if KEYS:
                dy = tl.load(dy_ptr + rows, mask=row_ok, other=0.0) * g_scale
                arg = tl.load(arg_ptr + rows, mask=row_ok, other=-1)
                dlog = tl.load(dlog_ptr + rows, mask=row_ok, other=0.0)
                gv = tl.dot(v_ND, tl.trans(g_MD), input_precision=PRECISION) * g_scale
                ds = p * (gv + (b - dy)[None, :])
                if TEACHER:
                    lse = tl.load(lse_ptr + rows, mask=row_ok, other=float("inf"))
                    if SEPARATE:
                        qt_MD = load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
                        s = tl.dot(kt_ND, tl.trans(qt_MD), input_precision=PRECISION) * scale2
                    ds -= b * exp2(tl.where(inside, s - lse[None, :], float("-inf")))
                ds -= tl.where(keys[:, None] == arg[None, :], dlog[None, :], 0.0)
                dk_ND = tl.dot((ds * scale).to(q_MD.dtype), q_MD, dk_ND, input_precision=PRECISION)
            if VALUES:
                dv_ND = tl.dot((p * g_scale).to(g_MD.dtype), g_MD, dv_ND, input_precision=PRECISION)
        out = bh * tokens * D + keys[:, None] * D + d[None, :]
        if KEYS:
            tl.store(dk_ptr + out, dk_ND.to(dk_ptr.dtype.element_ty), mask=key_ok[:, None])
        if VALUES:
            tl.store(dv_ptr + out, dv_ND.to(dv_ptr.dtype.element_ty), mask=key_ok[:, None])
