"""The backward over key tiles: gradients of k w_k, of k and of v, each where it is wanted."""

# ruff: noqa: SIM108 - a branch on a constexpr is cut at compile time, and both sides need not agree in type
from __future__ import annotations

import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.tile import load_rows, softmax_gradient


@triton.jit
def _key_below(
    dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key,
    q_ptr, sqt, g_ptr, sgt, phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr,
    MASKED: tl.constexpr, TEACHER: tl.constexpr, FEATURES: tl.constexpr, VALUES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of rows whose windows lie above the keys to the gradients of their features and values."""
    rows, d, f = start + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, MASKED, E != F)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, MASKED, E != F)
    g_MD = load_rows(g_ptr, rows, sgt, d, tokens, D, MASKED, False)
    if MASKED:
        row_ok = rows < tokens
        z = tl.load(z_ptr + rows, mask=row_ok, other=1.0)
        dy = tl.load(dy_ptr + rows, mask=row_ok, other=0.0)
        seen = row_ok[None, :] & (lo_key[:, None] <= rows[None, :])
    else:
        z = tl.load(z_ptr + rows)
        dy = tl.load(dy_ptr + rows)
    gz = g_scale / z
    u = tl.dot(phik1_NE, tl.trans(phi1_ME), input_precision=PRECISION)
    u = tl.dot(phik2_NE, tl.trans(phi2_ME), u, input_precision=PRECISION)
    if FEATURES:
        cz = (b - dy * g_scale) / z
        du = tl.dot(v_ND, tl.trans(g_MD), input_precision=PRECISION) * gz[None, :] + cz[None, :]
        if TEACHER:
            if MASKED:
                lse = tl.load(lse_ptr + rows, mask=row_ok, other=float("inf"))
            else:
                lse = tl.load(lse_ptr + rows)
            q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, MASKED, False)
            s = tl.dot(kt_ND, tl.trans(q_MD), input_precision=PRECISION) * scale2
            du -= b * tl.exp2(s - lse[None, :]) / u
        if MASKED:
            du = tl.where(seen, du, 0.0)
        du_op = du.to(phi1_ME.dtype)
        dphi1 = tl.dot(du_op, phi1_ME, dphi1, input_precision=PRECISION)
        dphi2 = tl.dot(du_op, phi2_ME, dphi2, input_precision=PRECISION)
    if VALUES:
        p = u * gz[None, :]
        if MASKED:
            p = tl.where(seen, p, 0.0)
        dv_ND = tl.dot(p.to(g_MD.dtype), g_MD, dv_ND, input_precision=PRECISION)
    return dphi1, dphi2, dv_ND


@triton.jit
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, phiq_ptr, phik_ptr, factor_ptr, wk_ptr, g_ptr,
    lse_ptr, max_ptr, arg_ptr, z_ptr, dy_ptr, dlog_ptr, scales_ptr, dz_ptr, dk_ptr, dv_ptr,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sqtb, sqth, sqtt, sktb, skth, sktt, sgb, sgh, sgt,
    tokens, heads, groups, phi_groups, scale2, scale, phi_min,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    TEACHER: tl.constexpr, SEPARATE: tl.constexpr, DROPPED: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, MAPS: tl.constexpr, PRECISION: tl.constexpr,
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
    begin = lo_begin // M * M
    whole_begin = tl.minimum(tl.cdiv(lo_end, M) * M, tl.cdiv(tokens, M) * M)
    whole_end = tl.maximum(tokens // M * M, whole_begin)
    if DROPPED or W % M != 0 or W % N != 0:
        for start in tl.range(begin, whole_begin, M):
            dphi1, dphi2, dv_ND = _key_below(
                dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
                phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
                W, D, F, E, M, True, TEACHER, FEATURES, VALUES, PRECISION,
            )  # fmt: skip
    for start in tl.range(whole_begin, whole_end, M):
        dphi1, dphi2, dv_ND = _key_below(
            dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
            phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
            W, D, F, E, M, False, TEACHER, FEATURES, VALUES, PRECISION,
        )  # fmt: skip
    for start in tl.range(whole_end, tokens, M):
        dphi1, dphi2, dv_ND = _key_below(
            dphi1, dphi2, dv_ND, start, kt_ND, v_ND, phik1_NE, phik2_NE, lo_key, qt_ptr, sqtt, g_ptr, sgt,
            phiq_ptr, lse_ptr, z_ptr, dy_ptr, g_scale, b, scale2, tokens,
            W, D, F, E, M, True, TEACHER, FEATURES, VALUES, PRECISION,
        )  # fmt: skip
    if FEATURES:
        dz_NE = softmax_gradient(dphi1, dphi2, phik1_NE, phik2_NE, phi_min)
        dz_op = dz_NE.to(dz_ptr.dtype.element_ty)
        f_ok = f < F
        if MAPS:
            # A key/value head's gradients lie side by side: one product of its keys serves the group.
            dz_at = (batch * (heads // groups) + kv_head) * tokens * groups * F + (head % groups) * F
            tl.store(
                dz_ptr + dz_at + keys[:, None] * (groups * F) + f[None, :],
                dz_op,
                mask=key_ok[:, None] & f_ok[None, :],
            )

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
            z = tl.load(z_ptr + rows, mask=row_ok, other=1.0)
            inside = (keys[:, None] <= rows[None, :]) & (lo_key[:, None] > rows[None, :]) & row_ok[None, :]
            s = tl.dot(k_ND, tl.trans(q_MD), input_precision=PRECISION) * scale2
            p = tl.exp2(tl.where(inside, s - m[None, :], float("-inf"))) * (sigma / z)[None, :]
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
                    ds -= b * tl.exp2(tl.where(inside, s - lse[None, :], float("-inf")))
                ds -= tl.where(keys[:, None] == arg[None, :], dlog[None, :], 0.0)
                dk_ND = tl.dot((ds * scale).to(q_MD.dtype), q_MD, dk_ND, input_precision=PRECISION)
            if VALUES:
                dv_ND = tl.dot((p * g_scale).to(g_MD.dtype), g_MD, dv_ND, input_precision=PRECISION)
        out = bh * tokens * D + keys[:, None] * D + d[None, :]
        if KEYS:
            tl.store(dk_ptr + out, dk_ND.to(dk_ptr.dtype.element_ty), mask=key_ok[:, None])
        if VALUES:
            tl.store(dv_ptr + out, dv_ND.to(dv_ptr.dtype.element_ty), mask=key_ok[:, None])
