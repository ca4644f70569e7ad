"""The student's attention, and its losses beside a teacher's attention that is known already.

Below the window the student's part is one product with a state of `states`; the window is a softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.cross_entropy import below_window
from trenchcoat_trainer.students.lolcats.kernels.launch import (
    Mode,
    Problem,
    Rows,
    bht,
    choose_tiles,
    like_projection,
    sizes,
    student_constants,
)
from trenchcoat_trainer.students.lolcats.kernels.states import States, before, load_state
from trenchcoat_trainer.students.lolcats.kernels.teacher import softmax_attention
from trenchcoat_trainer.students.lolcats.kernels.tile import exp2, load_rows, window_starts


@triton.jit
def _log2_sigmoid(x):
    return (tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))) * 1.4426950408889634


@triton.jit
def _finite(m, MASKED: tl.constexpr):
    """Replace the maximum of rows that have seen no key."""
    if MASKED:
        return tl.where(m == float("-inf"), 0.0, m)
    return m


@triton.jit
def _student_below(
    state, start, phi1_ME, phi2_ME, lo, v_ptr, svt, phik_ptr, tokens,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the student's linear part those keys of a tile that lie below the window of a row."""
    z, acc = state
    keys, d, f = start + tl.arange(0, N), tl.arange(0, D), tl.arange(0, E)
    phik1_NE = load_rows(phik_ptr, keys, 2 * F, f, tokens, F, True, E != F)
    phik2_NE = load_rows(phik_ptr + F, keys, 2 * F, f, tokens, F, True, E != F)
    v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, True, False)
    u = tl.dot(phi1_ME, tl.trans(phik1_NE), input_precision=PRECISION)
    u = tl.dot(phi2_ME, tl.trans(phik2_NE), u, input_precision=PRECISION)
    u = tl.where(keys[None, :] < lo[:, None], u, 0.0)
    return z + tl.sum(u, 1), tl.dot(u.to(v_ND.dtype), v_ND, acc, input_precision=PRECISION)


@triton.jit
def _window_tile(
    state, start, rows, lo, q_MD, k_ptr, skt, v_ptr, svt, qt_MD, kt_ptr, sktt, lse, scale2, tokens,
    D: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr, ALIGNED: tl.constexpr,
    ARG: tl.constexpr, TEACHER: tl.constexpr, SEPARATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys to the student's window, and to what the teacher's attention sums to there."""
    m, e_sum, acc_w, arg, x, in_window = state
    keys, d = start + tl.arange(0, N), tl.arange(0, D)
    k_ND = load_rows(k_ptr, keys, skt, d, tokens, D, MASKED, False)
    v_ND = load_rows(v_ptr, keys, svt, d, tokens, D, MASKED, False)
    s = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale2
    inside = keys[None, :] <= rows[:, None]
    if not ALIGNED:
        inside = inside & (keys[None, :] >= lo[:, None])
    if TEACHER:
        s_t = s
        if SEPARATE:
            kt_ND = load_rows(kt_ptr, keys, sktt, d, tokens, D, MASKED, False)
            s_t = tl.dot(qt_MD, tl.trans(kt_ND), input_precision=PRECISION) * scale2
        a = exp2(s_t - lse[:, None])
        if MASKED:
            a = tl.where(inside, a, 0.0)
        x += tl.sum(a * s, 1)
        in_window += tl.sum(a, 1)
    if MASKED:
        s = tl.where(inside, s, float("-inf"))
    tile_max = tl.max(s, 1)
    if ARG:
        tile_arg = tl.max(tl.where(s == tile_max[:, None], keys[None, :], 0), 1)
        arg = tl.where(tile_max > m, tile_arg, arg)
    m_new = tl.maximum(m, tile_max)
    m_safe = _finite(m_new, MASKED)
    alpha = exp2(m - m_safe)
    e = exp2(s - m_safe[:, None])
    e_sum = e_sum * alpha + tl.sum(e, 1)
    acc_w = tl.dot(e.to(v_ND.dtype), v_ND, acc_w * alpha[:, None], input_precision=PRECISION)
    return m_new, e_sum, acc_w, arg, x, in_window


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, qt_ptr, kt_ptr, phiq_ptr, phik_ptr, factor_ptr, memory_ptr, sum_ptr, taught_ptr,
    x_ptr, y_ptr, lse_ptr, max_ptr, rz_ptr, arg_ptr, dy_ptr, mse_ptr, xent_ptr,
    sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, sqtb, sqth, sqtt, sktb, skth, sktt,
    sob, soh, sot, syb, syh, syt, tokens, heads, groups, phi_groups, scale2,
    W: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    C: tl.constexpr, TEACHER: tl.constexpr, SEPARATE: tl.constexpr, DROPPED: tl.constexpr,
    STUDENT_GRADIENTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The student's M rows of a head, less the teacher's where there is one, and what the backward needs."""
    ALIGNED: tl.constexpr = not DROPPED and W % M == 0 and W % C == 0
    EVEN: tl.constexpr = ALIGNED and W % N == 0 and M % N == 0
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    bh = tl.program_id(1).to(tl.int64)
    batch, head = bh // heads, bh % heads
    kv_head = head // groups
    q_ptr += batch * sqb + head * sqh
    k_ptr += batch * skb + kv_head * skh
    v_ptr += batch * svb + kv_head * svh
    qt_ptr += batch * sqtb + head * sqth
    kt_ptr += batch * sktb + kv_head * skth
    phiq_ptr += bh * tokens * (2 * F)
    phik_ptr += (bh // phi_groups) * tokens * (2 * F)

    rows, d, f = first + tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    row_ok = rows < tokens
    stop = tl.minimum(first + M, tokens)
    lo, lo_first, lo_last = window_starts(rows, first, stop, W, DROPPED)
    whole = lo_first // C * C
    at = bh * tokens + rows

    # Below the window.
    phi1_ME = load_rows(phiq_ptr, rows, 2 * F, f, tokens, F, True, E != F)
    phi2_ME = load_rows(phiq_ptr + F, rows, 2 * F, f, tokens, F, True, E != F)
    block = (bh // phi_groups) * tl.cdiv(tokens, C) + whole // C
    memory_ED, sum_E = load_state(memory_ptr, sum_ptr, block, 0, D, E)
    acc_y = tl.dot(phi1_ME, memory_ED, input_precision=PRECISION)
    z = tl.sum(phi1_ME.to(tl.float32) * sum_E[None, :], 1)
    memory_ED, sum_E = load_state(memory_ptr, sum_ptr, block, 1, D, E)
    acc_y = tl.dot(phi2_ME, memory_ED, acc_y, input_precision=PRECISION)
    z += tl.sum(phi2_ME.to(tl.float32) * sum_E[None, :], 1)
    if not ALIGNED:
        linear = (z, acc_y)
        for start in tl.range(whole, lo_last, N):
            linear = _student_below(
                linear, start, phi1_ME, phi2_ME, lo, v_ptr, svt, phik_ptr, tokens, D, F, E, N, PRECISION
            )
        z, acc_y = linear

    # The window: the student's maximum m, weight e and output.
    q_MD = load_rows(q_ptr, rows, sqt, d, tokens, D, True, False)
    qt_MD = q_MD
    if SEPARATE:
        qt_MD = load_rows(qt_ptr, rows, sqtt, d, tokens, D, True, False)
    zero = tl.zeros([M], tl.float32)
    lse = zero
    if TEACHER:
        lse = tl.load(lse_ptr + at, mask=row_ok, other=float("inf"))
    state = (zero + float("-inf"), zero, tl.zeros([M, D], tl.float32), tl.zeros([M], tl.int32), zero, zero)
    if not DROPPED:
        if EVEN:
            for start in tl.range(lo_first, first, N):
                state = _window_tile(
                    state, start, rows, lo, q_MD, k_ptr, skt, v_ptr, svt, qt_MD, kt_ptr, sktt, lse, scale2,
                    tokens, D, N, False, True, STUDENT_GRADIENTS, TEACHER, SEPARATE, PRECISION,
                )  # fmt: skip
            diagonal = first
        else:
            diagonal = lo_first // N * N
        for start in tl.range(diagonal, stop, N):
            state = _window_tile(
                state, start, rows, lo, q_MD, k_ptr, skt, v_ptr, svt, qt_MD, kt_ptr, sktt, lse, scale2,
                tokens, D, N, True, EVEN, STUDENT_GRADIENTS, TEACHER, SEPARATE, PRECISION,
            )  # fmt: skip
    m, e_sum, acc_w, arg, x, in_window = state

    factor = tl.load(factor_ptr + head).to(tl.float32)
    sigma = 1.0 / (1.0 + tl.exp(-factor))
    z = tl.where(row_ok, z + sigma * e_sum, 1.0)
    rz = 1.0 / z
    y_MD = (acc_y + sigma * acc_w) * rz[:, None]
    y_at = batch * syb + head * syh + rows[:, None] * syt + d[None, :]
    tl.store(rz_ptr + at, rz, mask=row_ok)
    if STUDENT_GRADIENTS:
        tl.store(max_ptr + at, m, mask=row_ok)
        tl.store(arg_ptr + at, arg, mask=row_ok)
    if TEACHER:
        taught_at = taught_ptr + batch * sob + head * soh
        diff_MD = y_MD - load_rows(taught_at, rows, sot, d, tokens, D, True, False).to(tl.float32)
        diff_op = diff_MD.to(y_ptr.dtype.element_ty)
        logs = tl.load(x_ptr + at, mask=row_ok, other=0.0)
        if not DROPPED:
            logs += x + in_window * (_log2_sigmoid(factor) - m)
        tl.store(y_ptr + y_at, diff_op, mask=row_ok[:, None])
        tl.store(dy_ptr + at, tl.sum(diff_op.to(tl.float32) * y_MD, 1), mask=row_ok)
        tl.store(mse_ptr + at, tl.sum(diff_MD * diff_MD, 1), mask=row_ok)
        tl.store(xent_ptr + at, (tl.log2(z) - logs) * 0.6931471805599453, mask=row_ok)
    else:
        tl.store(y_ptr + y_at, y_MD.to(y_ptr.dtype.element_ty), mask=row_ok[:, None])


class Kept(NamedTuple):
    """What the forward keeps for the backward, beside the problem.

    Attributes:
        before: what lies before each block of keys.
        y: the student's output, less the teacher's where there is one, [B, H, T, D].
        ratio: sums of a phi_k / u over keys below the window, [B, H, T, 2F]; empty where nothing needs it.
        rows: statistics of the rows.
    """

    before: States
    y: torch.Tensor
    ratio: torch.Tensor
    rows: Rows


class Losses(NamedTuple):
    """What the forward says of a student beside its teacher.

    Attributes:
        taught: the teacher's output, [B, H, T, D].
        mse: squared error of each row, summed over D, [B, H, T].
        xent: cross-entropy of each row, [B, H, T].
    """

    taught: torch.Tensor
    mse: torch.Tensor
    xent: torch.Tensor


def forward(x: Problem, mode: Mode) -> tuple[Kept, Losses]:
    """Compute the student's attention, and beside a teacher's the losses; they mean nothing without one."""
    batch, heads, tokens, _ = x.q.shape
    states = before(x.phi_k, x.v)
    y = like_projection(x.q, x.q.dtype)
    statistics = x.q.new_empty(7, batch, heads, tokens, dtype=torch.float32)
    maximum, rz, argmax, dy, mse, xent, lse = statistics
    taught, logarithms, ratio = y, lse, x.phi_q.new_empty(0)
    if mode.teacher:
        taught, lse = softmax_attention(x.q_teacher, x.k_teacher, x.v_teacher)
        logarithms, ratio = below_window(x, mode, lse)
    rows = Rows(lse, maximum, rz, argmax.view(torch.int32), dy)
    tiles = choose_tiles("forward", x)
    _forward_kernel[(triton.cdiv(tokens, tiles.rows), batch * heads)](
        x.q, x.k, x.v, x.q_teacher, x.k_teacher, x.phi_q, x.phi_k, x.window_factor, *states, taught,
        logarithms, y, *rows, mse, xent, *bht(x.q), *bht(x.k), *bht(x.v), *bht(x.q_teacher),
        *bht(x.k_teacher), *bht(taught), *bht(y), *sizes(x), STUDENT_GRADIENTS=mode.wanted.student,
        **student_constants(x, mode, tiles),
    )  # fmt: skip
    return Kept(states, y, ratio, rows), Losses(taught, mse, xent)
