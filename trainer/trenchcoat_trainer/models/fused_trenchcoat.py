"""RoPE and SwiGLU of a prompt as Triton kernels, one pass over memory each, where no gradient is asked for.

An exported checkpoint carries this file; it imports torch and Triton alone, and only a GPU needs it. Results
are rounded once, from fp32.
"""

from __future__ import annotations

import torch

try:  # transformers asks for what stands outside of one before it loads an export, on a CPU too
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the kernels need Triton, which torch brings for GPUs: pip install triton") from error


@triton.jit
def _rotate_head(
    x_ptr, y_ptr, sx, sy, cos_ptr, sin_ptr, sc, ss, t, ok, HALF: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Rotate some tokens of one head."""
    d = tl.arange(0, R)
    x_at, y_at = t[:, None] * sx + d[None, :], t[:, None] * sy + d[None, :]
    cos_at, sin_at = t[:, None] * sc + d[None, :], t[:, None] * ss + d[None, :]
    low = tl.load(x_ptr + x_at, mask=ok, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + x_at + HALF, mask=ok, other=0.0).to(tl.float32)
    cos_low = tl.load(cos_ptr + cos_at, mask=ok, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + cos_at + HALF, mask=ok, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_ptr + sin_at, mask=ok, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + sin_at + HALF, mask=ok, other=0.0).to(tl.float32)
    dtype = y_ptr.dtype.element_ty
    tl.store(y_ptr + y_at, (low * cos_low - high * sin_low).to(dtype), mask=ok)
    tl.store(y_ptr + y_at + HALF, (high * cos_high + low * sin_high).to(dtype), mask=ok)


@triton.jit(do_not_specialize=["tokens"])
def _rotate_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, yq_ptr, yk_ptr,
    sqb, sqh, sqt, skb, skh, skt, scb, sct, ssb, sst, syqb, syqh, syqt, sykb, sykh, sykt,
    tokens, heads, HALF: tl.constexpr, R: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Rotate M tokens of one head, of the queries' or behind them of the keys'."""
    t = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    ok = (t < tokens)[:, None] & (tl.arange(0, R) < HALF)[None, :]
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    cos_ptr += batch * scb
    sin_ptr += batch * ssb
    if head < heads:
        q_ptr += batch * sqb + head * sqh
        yq_ptr += batch * syqb + head * syqh
        _rotate_head(q_ptr, yq_ptr, sqt, syqt, cos_ptr, sin_ptr, sct, sst, t, ok, HALF, R)
    else:
        k_ptr += batch * skb + (head - heads) * skh
        yk_ptr += batch * sykb + (head - heads) * sykh
        _rotate_head(k_ptr, yk_ptr, skt, sykt, cos_ptr, sin_ptr, sct, sst, t, ok, HALF, R)


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply RoPE; results lie in memory as [B, T, heads, D].

    Args:
        q: queries, [B, H, T, D], D dense.
        k: keys, [B, K, T, D], D dense.
        cos: cosines of the angles, both halves of D, [B or 1, T, D], D dense.
        sin: sines likewise.
    """
    batch, heads, tokens, size = q.shape
    half, kv_heads = size // 2, k.shape[1]
    y_q = q.new_empty(batch, tokens, heads, size).transpose(1, 2)
    y_k = k.new_empty(batch, tokens, kv_heads, size).transpose(1, 2)
    rows, padded = 32, triton.next_power_of_2(half)
    angles = (cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1))
    angles += (sin.stride(0) if sin.shape[0] > 1 else 0, sin.stride(1))
    _rotate_kernel[(triton.cdiv(tokens, rows), heads + kv_heads, batch)](
        q, k, cos, sin, y_q, y_k, *q.stride()[:3], *k.stride()[:3], *angles, *y_q.stride()[:3],
        *y_k.stride()[:3], tokens, heads, HALF=half, R=padded, M=rows, num_warps=4,
    )  # fmt: skip
    return y_q, y_k


@triton.jit
def _swiglu_kernel(gate_ptr, up_ptr, elements, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < elements
    gate = tl.load(gate_ptr + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=ok, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(gate_ptr + at, y.to(gate_ptr.dtype.element_ty), mask=ok)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, written where `gate` was; both [..., F], dense and alike."""
    elements, block = gate.numel(), 4096
    _swiglu_kernel[(triton.cdiv(elements, block),)](gate, up, elements, BLOCK=block, num_warps=8)
    return gate
