"""A prompt's window and first tokens as one Triton kernel, with nothing to put together after it.

An exported checkpoint carries this file beside ``student_attention.py``, so it must import only torch and
Triton; it is needed on a GPU alone. It computes forward, in half precision; gradients are for ``flash.py``.

Shape letters as in ``attention.py``; M queries or keys of a tile.
"""

from __future__ import annotations

import torch

try:  # transformers asks for what stands outside of one before it loads an export, on a CPU too
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the kernel needs Triton, which torch brings for GPUs: pip install triton") from error

LOG2_E = 1.4426950408889634


@triton.jit
def _rows(ptr, stride, at, tokens, D: tl.constexpr, MASKED: tl.constexpr):
    """Load the rows `at` of a head; what lies past the last token is zero."""
    at_MD = at.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    if MASKED:
        return tl.load(ptr + at_MD, mask=(at < tokens)[:, None], other=0.0)
    return tl.load(ptr + at_MD)


@triton.jit
def _tile(
    state, start, rows, q_MD, k_ptr, skt, v_ptr, svt, tokens, scale2, window, first_tokens,
    D: tl.constexpr, M: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys, some hidden by: 0 nothing, 1 the window or order, 2 the end of the first."""
    m, z, y_MD = state
    keys = start + tl.arange(0, M)
    k_MD = _rows(k_ptr, skt, keys, tokens, D, PART == 1)
    v_MD = _rows(v_ptr, svt, keys, tokens, D, PART == 1)
    s = tl.dot(q_MD, tl.trans(k_MD)) * scale2
    if PART != 0:
        seen = (keys < first_tokens)[None, :]
        if PART == 1:
            behind = rows[:, None] - keys[None, :]
            seen = (behind >= 0) & (seen | (behind < window))
        s = tl.where(seen, s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    alpha = tl.exp2(m - m_new)
    e = tl.exp2(s - m_new[:, None])
    return m_new, z * alpha + tl.sum(e, 1), tl.dot(e.to(v_MD.dtype), v_MD, y_MD * alpha[:, None])


@triton.jit(do_not_specialize=["tokens", "window", "first_tokens"])
def _prompt_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, sqb, sqh, sqt, skb, skh, skt, svb, svh, svt, syb, syh, syt,
    tokens, heads, groups, scale2, window, first_tokens,
    D: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """M rows of a head: first their own tile, in which each sees itself, then what lies before."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    q_ptr += batch * sqb + head * sqh
    y_ptr += batch * syb + head * syh
    k_ptr += batch * skb + (head // groups) * skh
    v_ptr += batch * svb + (head // groups) * svh
    rows = first + tl.arange(0, M)
    q_MD = _rows(q_ptr, sqt, rows, tokens, D, True)
    state = (tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32), tl.zeros([M, D], tl.float32))
    # One tile; as a loop it shares the others' memory, and registers suffice (Triton 3.6 and 3.7).
    for start in tl.range(first, tl.minimum(first + M, tokens), M):
        state = _tile(
            state, start, rows, q_MD, k_ptr, skt, v_ptr, svt, tokens, scale2, window, first_tokens, D, M, 1
        )
    # By tiles, where the first row's window begins, and from where on every row sees all.
    lowest = tl.maximum(first - window + 1, 0) // M * M
    whole = tl.minimum(tl.cdiv(tl.maximum(first + M - window, 0), M) * M, first)
    for start in tl.range(lowest, whole, M):
        state = _tile(
            state, start, rows, q_MD, k_ptr, skt, v_ptr, svt, tokens, scale2, window, first_tokens, D, M, 1
        )
    for start in tl.range(whole, first, M):
        state = _tile(
            state, start, rows, q_MD, k_ptr, skt, v_ptr, svt, tokens, scale2, window, first_tokens, D, M, 0
        )
    for start in tl.range(0, tl.minimum(first_tokens, lowest), M):
        state = _tile(
            state, start, rows, q_MD, k_ptr, skt, v_ptr, svt, tokens, scale2, window, first_tokens, D, M, 2
        )
    _, z, y_MD = state
    y_MD = y_MD / z[:, None]
    at_MD = rows.to(tl.int64)[:, None] * syt + tl.arange(0, D)[None, :]
    tl.store(y_ptr + at_MD, y_MD.to(y_ptr.dtype.element_ty), mask=(rows < tokens)[:, None])


def takes(q: torch.Tensor) -> bool:
    """Say whether `attend` can be called with queries like `q` [B, H, T, D]: D a power of two."""
    size = q.shape[-1]
    return size & (size - 1) == 0 and 16 <= size <= 256


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, first_tokens: int) -> torch.Tensor:
    """Attend from every token of a prompt; returns [B, H, T, D], in memory as [B, T, H, D].

    Args:
        q: queries, [B, H, T, D], in half precision.
        k: keys of the same tokens, [B, K, T, D].
        v: their values, likewise.
        window: w.
        first_tokens: S.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, tokens, size = q.shape
    y = q.new_empty(batch, tokens, heads, size).transpose(1, 2)
    rows = 64 if size <= 128 else 32  # fastest on an H200 of those tried, with these warps and stages
    strides = [stride for x in (q, k, v, y) for stride in x.stride()[:3]]
    _prompt_kernel[(triton.cdiv(tokens, rows), batch * heads)](
        q, k, v, y, *strides, tokens, heads, heads // k.shape[1], size**-0.5 * LOG2_E, min(window, tokens),
        min(first_tokens, tokens), D=size, M=rows, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y
