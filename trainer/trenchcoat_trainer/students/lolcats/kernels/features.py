"""Feature maps: phi of queries or keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trenchcoat_trainer.students.lolcats.hybrid import PHI_MIN
from trenchcoat_trainer.students.lolcats.kernels.launch import INTERPRETED, bht, padded, precision

FEATURE_ROWS, FEATURE_WARPS = 64, 4
"""Tile of the feature maps."""


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


def features(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return phi [B, H, T, 2F] of queries or keys `x` [B, K, T, D] under the maps `w` [H, D, F].

    K divides H: each map reads the head of its group.  The result has the dtype of `x`.
    """
    batch, x_heads, tokens, head_dim = x.shape
    heads, _, feature_dim = w.shape
    phi = x.new_empty(batch, heads, tokens, 2 * feature_dim)
    rows = 16 if INTERPRETED else FEATURE_ROWS
    _feature_kernel[(triton.cdiv(tokens, rows), batch * heads)](
        x, w.contiguous(), phi, *bht(x), tokens, heads, heads // x_heads, PHI_MIN,
        D=head_dim, F=feature_dim, E=padded(feature_dim), M=rows, PRECISION=precision(x.dtype),
        num_warps=FEATURE_WARPS,
    )  # fmt: skip
    return phi
