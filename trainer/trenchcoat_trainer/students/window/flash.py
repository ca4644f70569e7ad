"""The window by the flash attention that torch carries, on a GPU, forward and backward.

An exported checkpoint carries this file beside ``student_attention.py``, so it must import only torch and,
for a whole prompt without gradients, the quicker ``prompt_kernel.py``.

FlashAttention-2 (arXiv 2307.08691) knows sliding windows, and not first tokens. So one call attends to the
window and another to the first tokens; their outputs y are weighed by what each says of its sum, lse = log
sum exp:

    share_window, share_first = softmax(lse_window, lse_first)
    y = share_window y_window + share_first y_first
    lse = log(exp(lse_window) + exp(lse_first))

Where a sequence begins, the first w + S queries see every key up to their own, and the window holds as much
for the first w of them; a third call attends from the few between, w to w + S - 2. Those after them see all
first tokens beyond their window.

Backward needs y and lse of the whole alone: given them, each call's gradients are what its keys add. Query w
is the first whose window has left a token behind, and the S queries from it on see them appear one after
another: a call of its own there, causal and of S by S.

Shape letters as in ``attention.py``.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch

from .blocks import Pair


def takes(q: torch.Tensor, start: Any, first_tokens: int) -> bool:
    """Say whether `attend` can be called: on a GPU of matrix units, in half precision, all rows alike.

    Args:
        q: queries, [B, H, T, D].
        start: position of the first later key at hand, or a tensor where rows differ.
        first_tokens: S.
    """
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and isinstance(start, int)
        and (start == 0 or start >= first_tokens)
        and _is_built(q.device)
    )


def kernel_for(*heads: torch.Tensor) -> Any:
    """Return the kernel that takes a whole prompt, q, k and v that `takes` took; None where `attend` must.

    It gives no gradients, and needs Triton, which torch for GPUs brings.
    """
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in heads)
    if wants_gradient or torch.compiler.is_compiling() or not _has_triton():
        return None
    from . import prompt_kernel  # imports Triton: only where it is wanted

    return prompt_kernel if prompt_kernel.takes(heads[0]) else None


def attend(q: torch.Tensor, first: Pair, rest: Pair, start: int, window: int) -> torch.Tensor:
    """Attend from the last T of `rest` to the first tokens and to the window; returns [B, H, T, D].

    Args:
        q: queries, [B, H, T, D].
        first: the first tokens, or as many as there are by the last query.
        rest: the last tokens, the queries' own at the end.
        start: position of the first of `rest`: 0, where the first tokens stand there too and T is more than
            w + S; or beyond them.
        window: w.
    """
    begin, heads = window if start == 0 else 0, (q, *rest, *first)
    if torch.is_grad_enabled() and any(x.requires_grad for x in heads):
        return _Window.apply(window, begin, *heads)  # type: ignore[no-any-return,no-untyped-call]
    return _attend(window, begin, heads, with_sum=False)[0]


def _attend(
    window: int, begin: int, heads: tuple[torch.Tensor, ...], *, with_sum: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, [B, H, T, D], and log sum exp, fp32 [B, H, T], which is the whole's only `with_sum`.

    Other arguments as those of `_Window`.
    """
    q, k, v, first_k, first_v = (_rows(x) for x in heads)
    y, lse = _forward(q, k, v, near=min(window, k.shape[1]) - 1)
    count = first_k.shape[1]
    if not count:
        return y.transpose(1, 2), lse
    late = begin + count - 1 if begin else 0  # the first query with all first tokens beyond its window
    if begin < late:
        early = slice(begin, late)
        y[:, early], lse_early = _forward(q[:, early], k[:, :late], v[:, :late], near=late)
        if with_sum:
            lse[:, :, early] = lse_early
    y_far, lse_far = _forward(q[:, late:], first_k, first_v)
    lse_near = lse[:, :, late:]
    # In the outputs' layout and dtype, for kernels that walk in order and cast nothing. No lerp: where the
    # first tokens take most, a single rounded share would say little of what is left to the window.
    shares = torch.stack([lse_near.transpose(1, 2), lse_far.transpose(1, 2)]).softmax(0).to(y.dtype)
    share_near, share_far = shares[..., None]
    y[:, late:].mul_(share_near).addcmul_(y_far, share_far)
    if with_sum:
        lse_near.copy_(torch.logaddexp(lse_near, lse_far))
    return y.transpose(1, 2), lse


class _Window(torch.autograd.Function):
    """All calls as one operation.

    Arguments: w; the first query that has left a first token behind, above 0 they appear one after another
    from it on; q, k and v of the later tokens; k and v of the first ones.
    """

    @staticmethod
    def forward(ctx: Any, window: int, begin: int, *heads: torch.Tensor) -> torch.Tensor:
        y, lse = _attend(window, begin, heads, with_sum=True)
        ctx.save_for_backward(*heads, y, lse)
        ctx.near, ctx.begin = min(window, heads[1].shape[2]) - 1, begin
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, first_k, first_v, y, lse = ctx.saved_tensors
        dq, dk, dv = _backward(dy, (q, k, v), y, lse, near=ctx.near)
        count, begin = first_k.shape[2], ctx.begin
        first_gradients = [torch.zeros_like(first_k), torch.zeros_like(first_v)]
        early = begin + count if begin else 0
        for rows, near in ((slice(begin, early), count), (slice(early, None), None)):
            own = [x[:, :, rows] for x in (dy, q, y, lse)]
            if count and own[0].shape[2]:
                dy_own, q_own, y_own, lse_own = own
                more = _backward(dy_own, (q_own, first_k, first_v), y_own, lse_own, near=near)
                for whole, part in zip((dq[:, :, rows], *first_gradients), more, strict=True):
                    whole += part
        return None, None, dq, dk, dv, *first_gradients


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, near: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output, [B, T, H, D] as q, k and v have it, and log sum exp of the logits, fp32 [B, H, T].

    `near`: the last query sees the last key and that many before it, each query before it one key less at the
    end; None: every query sees every key.
    """
    # By its overload, which a call of the packet would have to find out.
    y, lse, *_ = torch.ops.aten._flash_attention_forward.default(
        q, k, v, None, None, q.shape[1], k.shape[1], 0.0, near is not None, False, **_bounds(near)
    )
    return y, lse


def _backward(
    dy: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    y: torch.Tensor,
    lse: torch.Tensor,
    near: int | None = None,
) -> list[torch.Tensor]:
    """Return what these keys add to the gradients of q, and the gradients of k and v."""
    dy, q, k, v, y = (_rows(x) for x in (dy, *heads, y))
    lengths = (q.shape[1], k.shape[1])
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    gradients = torch.ops.aten._flash_attention_backward.default(
        dy,
        q,
        k,
        v,
        y,
        lse.contiguous(),
        None,
        None,
        *lengths,
        0.0,
        near is not None,
        *no_dropout,
        **_bounds(near),
    )
    return [x.transpose(1, 2) for x in gradients]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, heads, tokens, D] as the operator takes it, [B, tokens, heads, D]."""
    x = x.transpose(1, 2)
    return x if x.stride(-1) == 1 else x.contiguous()


def _bounds(near: int | None) -> dict[str, int]:
    return {} if near is None else {"window_size_left": near, "window_size_right": 0}


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _is_built(device: torch.device) -> bool:
    """Say whether this torch has the operator with bounds, and the GPU can run it."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
    return (
        operator is not None
        and torch.backends.cuda.is_flash_attention_available()
        and "window_size_left" in str(operator.default._schema)
    )
