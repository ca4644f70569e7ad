"""Products of frozen weights in FP8 (e4m3), every row with a scale of its own.

A row of activations is a token's, one of a weight [out, in] an output's, so that no scale stands within a
product's sum.  What makes a product's inputs (RMSNorm, SwiGLU) leaves them in FP8: on a GPU each is a Triton
kernel, elsewhere plain torch, and the product is torch's own on both.  Nothing here has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trenchcoat_trainer.layers.fused import HAVE_TRITON, add_rms_norm, swiglu, use_triton

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of e4m3."""
SMALLEST_TOP = 1e-12
"""Of a row's largest value: a row of zeros gets a scale, too."""
SLAB = 2**26
"""Values of a matrix that plain torch quantises at once, so that its fp32 copies stay small."""
MULTIPLE = 16
"""Torch's FP8 products take sizes that are multiples of this."""

if HAVE_TRITON:
    import triton
    import triton.language as tl

    @triton.jit
    def _quantise_kernel(
        x_ptr, out_ptr, scale_ptr, width,
        LARGEST: tl.constexpr, SMALLEST_TOP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        tops = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
            tops = tl.maximum(tops, tl.abs(x))
        top = tl.maximum(tl.max(tops, 0), SMALLEST_TOP)
        tl.store(scale_ptr + row, tl.div_rn(top, LARGEST))
        factor = tl.div_rn(LARGEST, top)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + row * width + at, mask=at < width, other=0.0).to(tl.float32)
            tl.store(out_ptr + row * width + at, (x * factor).to(out_ptr.dtype.element_ty), mask=at < width)

    @triton.jit
    def _add_rms_norm_kernel(
        x_ptr, delta_ptr, w_ptr, sum_ptr, out_ptr, scale_ptr, width, eps,
        ADD: tl.constexpr, LARGEST: tl.constexpr, SMALLEST_TOP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """As `fused` has it, rounded as there before it is quantised."""
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        ok = at < width
        x = tl.load(x_ptr + row * width + at, mask=ok, other=0.0)
        if ADD:
            x = x + tl.load(delta_ptr + row * width + at, mask=ok, other=0.0)
            tl.store(sum_ptr + row * width + at, x, mask=ok)
        x32 = x.to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(x32 * x32, 0) / width + eps)
        w = tl.load(w_ptr + at, mask=ok, other=0.0)
        normed = (w * (x32 * rstd).to(x.dtype)).to(tl.float32)
        top = tl.maximum(tl.max(tl.abs(normed), 0), SMALLEST_TOP)
        tl.store(scale_ptr + row, tl.div_rn(top, LARGEST))
        normed = normed * tl.div_rn(LARGEST, top)
        tl.store(out_ptr + row * width + at, normed.to(out_ptr.dtype.element_ty), mask=ok)

    @triton.jit
    def _gated(gate_up_ptr, row, at, width):
        """silu(gate) * up as `fused` has it, rounded as there, in fp32."""
        gate = tl.load(gate_up_ptr + row * 2 * width + at, mask=at < width, other=0.0)
        up = tl.load(gate_up_ptr + row * 2 * width + width + at, mask=at < width, other=0.0)
        gate32 = gate.to(tl.float32)
        return ((gate32 / (1.0 + tl.exp(-gate32))).to(gate.dtype) * up).to(tl.float32)

    @triton.jit
    def _swiglu_kernel(
        gate_up_ptr, out_ptr, scale_ptr, width,
        LARGEST: tl.constexpr, SMALLEST_TOP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Computed twice, for a row is too long to be held: the second time from the cache."""
        row = tl.program_id(0).to(tl.int64)
        tops = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            y = _gated(gate_up_ptr, row, start + tl.arange(0, BLOCK), width)
            tops = tl.maximum(tops, tl.abs(y))
        top = tl.maximum(tl.max(tops, 0), SMALLEST_TOP)
        tl.store(scale_ptr + row, tl.div_rn(top, LARGEST))
        factor = tl.div_rn(LARGEST, top)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            y = _gated(gate_up_ptr, row, at, width) * factor
            tl.store(out_ptr + row * width + at, y.to(out_ptr.dtype.element_ty), mask=at < width)


@dataclass(frozen=True)
class Float8Rows:
    """A matrix, or rows of activations, in FP8.

    Attributes:
        values: e4m3, [..., width].
        scales: what each row's values are multiplied by, fp32, [..., 1].
    """

    values: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def empty(cls, x: torch.Tensor, width: int) -> Float8Rows:
        """Allocate rows of `width` for the leading sizes of `x`, on its device."""
        rows = x.shape[:-1]
        values = torch.empty((*rows, width), dtype=E4M3, device=x.device)
        return cls(values, torch.empty((*rows, 1), dtype=torch.float32, device=x.device))

    @property
    def shape(self) -> torch.Size:
        """Sizes of the values."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def flatten(self, start: int, end: int) -> Float8Rows:
        """Join dimensions, none of them the last, as `torch.Tensor.flatten` does."""
        return Float8Rows(self.values.flatten(start, end), self.scales.flatten(start, end))

    def split(self, rows: int) -> list[Float8Rows]:
        """Cut into so many rows each, as `torch.Tensor.split` does."""
        cut = zip(self.values.split(rows), self.scales.split(rows), strict=True)
        return [Float8Rows(*part) for part in cut]

    def dequantised(self) -> torch.Tensor:
        """Return what is meant, in fp32."""
        return self.values.float() * self.scales


Matrix = torch.Tensor | Float8Rows
"""Weights [out, in], or what is multiplied with them, [..., in]."""


def quantise_rows(x: torch.Tensor) -> Float8Rows:
    """Return `x`, [..., width], in FP8: each row scaled so that its largest value is e4m3's."""
    width = x.shape[-1]
    rows = Float8Rows.empty(x, width)
    if use_triton(x):
        _quantise_kernel[(rows.scales.numel(),)](
            x.contiguous(), rows.values, rows.scales, width,
            LARGEST=LARGEST, SMALLEST_TOP=SMALLEST_TOP, BLOCK=min(triton.next_power_of_2(width), 4096),
            num_warps=8,
        )  # fmt: skip
        return rows
    slab = max(1, SLAB // width)
    for part, values, scales in zip(
        x.flatten(0, -2).split(slab),
        rows.values.flatten(0, -2).split(slab),
        rows.scales.flatten(0, -2).split(slab),
        strict=True,
    ):
        part32 = part.float()
        top = part32.abs().amax(-1, keepdim=True).clamp_min(SMALLEST_TOP)
        scales.copy_(top / LARGEST)
        values.copy_(part32 * (LARGEST / top))
    return rows


def add_rms_norm_rows(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, Float8Rows]:
    """Do what `add_rms_norm` does, the norm in FP8."""
    if not use_triton(x):
        total, normed = add_rms_norm(x, delta, weight, eps)
        return total, quantise_rows(normed)
    width, x = x.shape[-1], x.contiguous()
    total = x if delta is None else torch.empty_like(x)
    rows, block = Float8Rows.empty(x, width), triton.next_power_of_2(width)
    _add_rms_norm_kernel[(rows.scales.numel(),)](
        x, x if delta is None else delta.contiguous(), weight, total, rows.values, rows.scales, width, eps,
        ADD=delta is not None, LARGEST=LARGEST, SMALLEST_TOP=SMALLEST_TOP, BLOCK=block,
        num_warps=min(max(block // 512, 4), 16),
    )  # fmt: skip
    return total, rows


def swiglu_rows(gate_up: torch.Tensor) -> Float8Rows:
    """Do what `swiglu` does, the result in FP8."""
    if not use_triton(gate_up):
        return quantise_rows(swiglu(gate_up))
    width = gate_up.shape[-1] // 2
    rows = Float8Rows.empty(gate_up, width)
    _swiglu_kernel[(rows.scales.numel(),)](
        gate_up.contiguous(), rows.values, rows.scales, width,
        LARGEST=LARGEST, SMALLEST_TOP=SMALLEST_TOP, BLOCK=min(triton.next_power_of_2(width), 4096),
        num_warps=8,
    )  # fmt: skip
    return rows


def product(x: Matrix, weight: Matrix, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return x weight^T, [..., out], in the format of `weight`; in FP8 the result is bf16.

    Args:
        x: [..., in]; where `weight` is in FP8 and `x` is not, it is quantised.
        weight: [out, in].
        out: where to write it; `x` has then two dimensions.
    """
    if isinstance(weight, Float8Rows):
        rows = (x if isinstance(x, Float8Rows) else quantise_rows(x)).flatten(0, -2)
        columns, scales = weight.values.t(), weight.scales.t()
        settings = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        if out is not None:
            return torch._scaled_mm(
                rows.values, columns, scale_a=rows.scales, scale_b=scales, out=out, **settings
            )
        y = torch._scaled_mm(rows.values, columns, scale_a=rows.scales, scale_b=scales, **settings)
        return y.view(*x.shape[:-1], -1)
    return F.linear(x, weight) if out is None else torch.mm(x, weight.t(), out=out)
