"""What stands between a Llama layer's matrix products, one memory pass each: RMSNorm, RoPE, SwiGLU.

On a GPU each is a Triton kernel forward and backward; elsewhere plain torch.  Weights are frozen, so only
activations get gradients.  Results are rounded where Hugging Face's Llama rounds them, RoPE excepted, which
is computed in fp32 and rounded once.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

HAVE_TRITON = importlib.util.find_spec("triton") is not None

INTERPRETED = False
"""True when Triton's interpreter runs the kernels on the CPU (TRITON_INTERPRET=1 at import)."""

if HAVE_TRITON:
    import triton
    import triton.language as tl

    INTERPRETED = bool(triton.knobs.runtime.interpret)

    @triton.jit
    def _add_rms_norm_kernel(
        x_ptr, delta_ptr, w_ptr, sum_ptr, out_ptr, rstd_ptr, width, eps,
        ADD: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
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
        tl.store(out_ptr + row * width + at, w * (x32 * rstd).to(x.dtype), mask=ok)
        tl.store(rstd_ptr + row, rstd)

    @triton.jit
    def _rms_norm_gradient_kernel(
        x_ptr, w_ptr, rstd_ptr, dout_ptr, dsum_ptr, dx_ptr, width, ADD: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        ok = at < width
        x = tl.load(x_ptr + row * width + at, mask=ok, other=0.0).to(tl.float32)
        g = tl.load(dout_ptr + row * width + at, mask=ok, other=0.0).to(tl.float32)
        g = g * tl.load(w_ptr + at, mask=ok, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        dx = rstd * (g - x * (rstd * rstd * tl.sum(g * x, 0) / width))
        if ADD:
            dx += tl.load(dsum_ptr + row * width + at, mask=ok, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * width + at, dx.to(dx_ptr.dtype.element_ty), mask=ok)

    @triton.jit
    def _rope_kernel(
        x_ptr, sxb, sxt, sxh, y_ptr, syb, syt, syh, cos_ptr, sin_ptr, sab, tokens, sign,
        HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr,
    ):  # fmt: skip
        """Rotate the heads of one token: y = x cos + rotate_half(x) sin * sign; without TURN copy them."""
        token = tl.program_id(0)
        batch, time = (token // tokens).to(tl.int64), token % tokens
        h, d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HALF)
        ok = (h < HEADS)[:, None]
        from_ = x_ptr + batch * sxb + time.to(tl.int64) * sxt + h[:, None] * sxh + d[None, :]
        to = y_ptr + batch * syb + time.to(tl.int64) * syt + h[:, None] * syh + d[None, :]
        low, high = tl.load(from_, mask=ok, other=0.0), tl.load(from_ + HALF, mask=ok, other=0.0)
        if TURN:
            angle = batch * sab + time * HALF + d
            cos = tl.load(cos_ptr + angle)[None, :]
            sin = tl.load(sin_ptr + angle)[None, :] * sign
            low, high = low.to(tl.float32), high.to(tl.float32)
            low, high = low * cos - high * sin, high * cos + low * sin
        tl.store(to, low.to(y_ptr.dtype.element_ty), mask=ok)
        tl.store(to + HALF, high.to(y_ptr.dtype.element_ty), mask=ok)

    @triton.jit
    def _swiglu_kernel(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        ok = at < width
        gate = tl.load(gate_up_ptr + row * 2 * width + at, mask=ok, other=0.0)
        up = tl.load(gate_up_ptr + row * 2 * width + width + at, mask=ok, other=0.0)
        gate32 = gate.to(tl.float32)
        silu = (gate32 / (1.0 + tl.exp(-gate32))).to(gate.dtype)
        tl.store(out_ptr + row * width + at, silu * up, mask=ok)

    @triton.jit
    def _swiglu_gradient_kernel(gate_up_ptr, dout_ptr, dgate_up_ptr, width, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        ok = at < width
        gate = tl.load(gate_up_ptr + row * 2 * width + at, mask=ok, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + row * 2 * width + width + at, mask=ok, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + row * width + at, mask=ok, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        dgate = dout * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        to = dgate_up_ptr + row * 2 * width + at
        tl.store(to, dgate.to(dgate_up_ptr.dtype.element_ty), mask=ok)
        tl.store(to + width, (dout * gate * sigmoid).to(dgate_up_ptr.dtype.element_ty), mask=ok)


def use_triton(x: torch.Tensor) -> bool:
    """Whether kernels compute on `x`."""
    return HAVE_TRITON and (x.is_cuda or INTERPRETED) and x.dtype != torch.float64


class _AddRMSNorm(torch.autograd.Function):
    """(x + delta, norm of it), or (x, norm of x) without delta."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = x.shape[-1]
        x = x.contiguous()
        total = x if delta is None else torch.empty_like(x)
        out = torch.empty_like(x)
        rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
        block = triton.next_power_of_2(width)
        _add_rms_norm_kernel[(rstd.numel(),)](
            x, x if delta is None else delta.contiguous(), weight, total, out, rstd, width, eps,
            ADD=delta is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        ctx.save_for_backward(total, weight, rstd)
        ctx.add = delta is not None
        return total, out

    @staticmethod
    def backward(ctx: Any, dtotal: torch.Tensor, dout: torch.Tensor) -> tuple[Any, ...]:
        total, weight, rstd = ctx.saved_tensors
        dx, block = torch.empty_like(total), triton.next_power_of_2(total.shape[-1])
        _rms_norm_gradient_kernel[(rstd.numel(),)](
            total, weight, rstd, dout.contiguous(), dtotal.contiguous(), dx, total.shape[-1],
            ADD=True, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        return dx, dx if ctx.add else None, None, None


def _warps(block: int) -> int:
    return min(max(block // 512, 4), 16)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the residual stream ``x + delta`` and its RMSNorm; `delta` may be None.

    Args:
        x: residual stream, [..., hidden].
        delta: what the layer adds to it, shaped like `x`.
        weight: the norm's weight, [hidden].
        eps: added to the mean square.
    """
    if use_triton(x):
        total, out = _AddRMSNorm.apply(x, delta, weight, eps)
        return (x if delta is None and not x.requires_grad else total), out
    total = x if delta is None else x + delta
    x32 = total.float() if total.dtype != torch.float64 else total
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return total, weight * normed.to(total.dtype)


class _Rope(torch.autograd.Function):
    """Split a fused projection into rotated queries and keys and plain values; None of what is not wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        heads: tuple[int, int, int],
        wanted: tuple[bool, bool, bool],
    ) -> tuple[torch.Tensor | None, ...]:
        batch, tokens, width = qkv.shape
        head_dim = width // sum(heads)
        parts = qkv.view(batch, tokens, sum(heads), head_dim).split(heads, dim=2)
        found: list[torch.Tensor | None] = []
        for x, want, sign in zip(parts, wanted, (1.0, 1.0, None), strict=True):
            y = qkv.new_empty(x.shape) if want else None
            if y is not None:
                _rotate(x, y, cos, sin, sign)
            found.append(None if y is None else y.transpose(1, 2))
        ctx.save_for_backward(cos, sin)
        ctx.set_materialize_grads(False)
        ctx.heads, ctx.size = heads, (batch, tokens, sum(heads), head_dim)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        dtype = next(d.dtype for d in gradients if d is not None)
        dqkv = torch.empty(ctx.size, dtype=dtype, device=cos.device)
        parts = dqkv.split(ctx.heads, dim=2)
        for d, part, sign in zip(gradients, parts, (-1.0, -1.0, None), strict=True):
            if d is None:
                part.zero_()
            else:
                _rotate(d.transpose(1, 2), part, cos, sin, sign)
        return dqkv.flatten(2), None, None, None, None


def _rotate(
    x: torch.Tensor, y: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float | None
) -> None:
    """Write the rotation of `x` [B, T, H, D] into `y`; sign -1 undoes it, None copies."""
    batch, tokens, heads, head_dim = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    block = min(triton.next_power_of_2(heads), 32)
    _rope_kernel[(batch * tokens, triton.cdiv(heads, block))](
        x, x.stride(0), x.stride(1), x.stride(2), y, y.stride(0), y.stride(1), y.stride(2), cos, sin,
        cos.stride(0) if cos.ndim == 3 else 0, tokens, 1.0 if sign is None else sign,
        HALF=head_dim // 2, HEADS=heads, BLOCK=block, TURN=sign is not None, num_warps=4,
    )  # fmt: skip


ALL = (True, True, True)
"""Queries, keys and values."""


def split_and_rotate(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    wanted: tuple[bool, bool, bool] = ALL,
) -> tuple[Any, Any, Any]:
    """Return q, k (after RoPE) and v, [B, heads or kv_heads, T, D], from the fused projection: copies all.

    Args:
        qkv: queries, keys and values of all heads side by side, [B, T, (heads + 2 kv_heads) * D].
        cos: cosines of the positions' angles, fp32, [T, D / 2], or [B, T, D / 2] where sequences differ;
            rows lie one behind the other.
        sin: sines, likewise.
        heads: number of query heads.
        kv_heads: number of key/value heads.
        wanted: which of the three; None is returned for the others.
    """
    groups = (heads, kv_heads, kv_heads)
    if use_triton(qkv):
        return _Rope.apply(qkv.contiguous(), cos, sin, groups, wanted)
    parts = qkv.unflatten(-1, (sum(groups), -1)).transpose(1, 2).split(groups, dim=1)
    q, k, v = (part if want else None for part, want in zip(parts, wanted, strict=True))
    return (
        None if q is None else _rotate_plain(q, cos, sin),
        None if k is None else _rotate_plain(k, cos, sin),
        None if v is None else v.clone(),
    )


def _rotate_plain(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [B, H, T, D] in at least fp32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    low, high = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up from the fused projection."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        grid = (out.numel() // width, triton.cdiv(width, 2048))
        _swiglu_kernel[grid](gate_up, out, width, BLOCK=2048, num_warps=8)
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        width = dout.shape[-1]
        dgate_up = torch.empty_like(gate_up)
        grid = (dout.numel() // width, triton.cdiv(width, 2048))
        _swiglu_gradient_kernel[grid](gate_up, dout.contiguous(), dgate_up, width, BLOCK=2048, num_warps=8)
        return dgate_up


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, [..., F], from both side by side, [..., 2F]."""
    if use_triton(gate_up):
        return _SwiGLU.apply(gate_up.contiguous())
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
