"""What the kernels share on the device: a tile's rows, where windows begin, the features' gradient."""

from __future__ import annotations

import triton
import triton.language as tl


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
