"""One pass over the tiles of keys for both attentions, their losses and the statistics of the backward.

The window comes first, because the teacher's online softmax and the student's window are then the same
numbers until the first key below the window; the tiles below it add to the teacher's softmax and to the
student's linear part.
"""

# ruff: noqa: SIM108 - a branch on a constexpr is cut at compile time, and both sides need not agree in type
from __future__ import annotations

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.launch import (
    Mode,
    Problem,
    Rows,
    bht,
    choose_tiles,
    constants,
    like_projection,
    sizes,
)
from trenchcoat_trainer.students.lolcats.kernels.tile import load_rows, window_starts


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
    phik1_NE = load_rows(phik_ptr, keys, 2 * F, f, tokens, F, MASKED, E != F)
    phik2_NE = load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, MASKED, E != F)
    u = tl.dot(phi1_ME, tl.trans(phik1_NE), input_precision=PRECISION)
    u = tl.dot(phi2_ME, tl.trans(phik2_NE), u, input_precision=PRECISION)
    v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, MASKED, False)
    if MASKED:
        below = keys[None, :] < lo[:, None]
        u = tl.where(below, u, 0.0)
    if TEACHER:
        k_ND = load_rows(k_ptr, keys, skt, d, tokens, D, MASKED, False)
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
            vt_ND = load_rows(vt_ptr, keys, svtt, d, tokens, D, MASKED, False)
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
    lo, lo_first, lo_last = window_starts(rows, first, stop, W, DROPPED)
    q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
    if SEPARATE:
        qt_MD = load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
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
        k_ND = load_rows(k_ptr, keys, skt, d, tokens, D, True, False)
        v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
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
            kt_ND = load_rows(kt_ptr, keys, sktt, d, tokens, D, True, False)
            vt_ND = load_rows(vt_ptr, keys, svtt, d, tokens, D, True, False)
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
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F)
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


def forward(x: Problem, mode: Mode) -> tuple[torch.Tensor, torch.Tensor, Rows, torch.Tensor, torch.Tensor]:
    """Return output, student's output less the teacher's, row statistics, squared error and XENT by row."""
    batch, heads, tokens, _ = x.q.shape
    rows = x.q.new_empty(7, batch, heads, tokens, dtype=torch.float32)
    argmax = rows[6].view(torch.int32)
    lse, maximum, z, dy, mse, xent = rows[:6]
    output = like_projection(x.q, x.q.dtype)
    difference = like_projection(x.q, x.q.dtype) if mode.teacher else output
    tiles = choose_tiles("forward", x, mode)
    _forward_kernel[(triton.cdiv(tokens, tiles.rows), batch * heads)](
        x.q, x.k, x.v, x.q_teacher, x.k_teacher, x.v_teacher, x.phi_q, x.phi_k, x.window_factor,
        output, difference, lse, maximum, argmax, z, dy, mse, xent,
        *bht(x.q), *bht(x.k), *bht(x.v), *bht(x.q_teacher), *bht(x.k_teacher), *bht(x.v_teacher),
        *bht(output), *sizes(x), STUDENT_GRADIENTS=mode.wanted.student, **constants(x, mode, tiles),
    )  # fmt: skip
    return output, difference, Rows(lse, maximum, argmax, z, dy), mse, xent
