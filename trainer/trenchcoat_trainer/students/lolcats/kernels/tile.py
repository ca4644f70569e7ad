"""What kernels share on the device: tiles, where windows begin, the features' gradient, logarithms."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.kernels.launch import INTERPRETED

_BY_INSTRUCTION = tl.constexpr(not INTERPRETED and torch.version.hip is None)


@triton.jit
def _instruction(x, ASSEMBLY: tl.constexpr):
    return tl.inline_asm_elementwise(ASSEMBLY, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def exp2(x):
    """2 ** x by one instruction of the GPU, to 2 units in the last place."""
    if _BY_INSTRUCTION:
        return _instruction(x, "ex2.approx.ftz.f32 $0, $1;")
    return tl.exp2(x)


@triton.jit
def log2(x):
    """log2 x by one instruction, to 2 ** -22; tl.log2 takes some twenty, as all else of a pair together.

    See findings/triton-computes-log2-in-software.sh.
    """
    if _BY_INSTRUCTION:
        return _instruction(x, "lg2.approx.ftz.f32 $0, $1;")
    return tl.log2(x)


@triton.jit
def reciprocal(x):
    """1 / x by one instruction, to 1 unit in the last place; x is no subnormal number."""
    if _BY_INSTRUCTION:
        return _instruction(x, "rcp.approx.ftz.f32 $0, $1;")
    return 1.0 / x


@triton.jit
def load_rows(ptr, rows, stride, dims, tokens, width, MASK_T: tl.constexpr, MASK_D: tl.constexpr):
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
def window_starts(rows, first, stop, W: tl.constexpr, DROPPED: tl.constexpr):
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
def softmax_gradient(dphi1, dphi2, phi1, phi2, phi_min):
    """Carry the gradient of both halves of phi back to x w; clamped features pass none on."""
    phi1, phi2 = phi1.to(tl.float32), phi2.to(tl.float32)
    dphi1 = tl.where(phi1 > phi_min, dphi1, 0.0)
    dphi2 = tl.where(phi2 > phi_min, dphi2, 0.0)
    dz1 = phi1 * (dphi1 - tl.sum(dphi1 * phi1, 1)[:, None])
    dz2 = phi2 * (dphi2 - tl.sum(dphi2 * phi2, 1)[:, None])
    return dz1 - dz2
