"""The kernels of the backward, one after the other, and the sums over what they leave."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from trenchcoat_trainer.students.lolcats.hybrid import PHI_MIN
from trenchcoat_trainer.students.lolcats.kernels.forward import Kept
from trenchcoat_trainer.students.lolcats.kernels.key_gradient import key_gradient_kernel
from trenchcoat_trainer.students.lolcats.kernels.launch import (
    Mode,
    Problem,
    bht,
    choose_tiles,
    sizes,
    student_constants,
)
from trenchcoat_trainer.students.lolcats.kernels.query_gradient import query_gradient_kernel
from trenchcoat_trainer.students.lolcats.kernels.states import after


class Gradients(NamedTuple):
    """Gradients of the student's arguments; None where not wanted."""

    q: torch.Tensor | None
    k: torch.Tensor | None
    v: torch.Tensor | None
    w_q: torch.Tensor | None
    w_k: torch.Tensor | None
    window_factor: torch.Tensor | None


def backward(x: Problem, mode: Mode, kept: Kept, g: torch.Tensor, scales: torch.Tensor) -> Gradients:
    """Return the gradients for dloss/dy = scales[0] * g and dloss/dXENT = scales[1] in every row.

    The student's output `kept.y` is read where no teacher's forward left its product with `g` in the rows.
    """
    wanted, rows = mode.wanted, kept.rows
    batch, heads, tokens, head_dim = x.q.shape
    kv_heads, feature_dim = x.k.shape[1], x.w_q.shape[-1]
    unused = x.q.new_empty(0)
    dz_q = dz_k = unused
    if wanted.maps:
        dz_q, dz_k = x.q.new_empty(2, batch, tokens, heads, feature_dim)
    dlog_sigma = x.q.new_empty(batch, heads, tokens, dtype=torch.float32)
    size = (batch, heads, tokens, head_dim)
    dq, dk, dv = (x.q.new_empty(size) if want else unused for want in wanted[:3])
    strides = (
        *bht(x.q), *bht(x.k), *bht(x.v), *bht(x.q_teacher), *bht(x.k_teacher), *bht(g),
        *sizes(x), head_dim**-0.5, PHI_MIN,
    )  # fmt: skip
    inputs = (x.q, x.k, x.v, x.q_teacher, x.k_teacher, x.phi_q, x.phi_k, x.window_factor)
    w_q, w_k = x.w_q.contiguous(), x.w_k.contiguous()
    if wanted.features:  # the keys' kernels read what this one leaves
        tiles = choose_tiles("query", x)
        query_gradient_kernel[(triton.cdiv(tokens, tiles.rows), batch * heads)](
            *inputs, *kept.before, kept.ratio, w_q, kept.y, g, *rows, scales, dz_q, dq, dlog_sigma,
            *bht(kept.y), *strides, QUERIES=wanted.q, MAPS=wanted.maps, **student_constants(x, mode, tiles),
        )  # fmt: skip
    if wanted.v or wanted.key_features:
        tiles = choose_tiles("key", x)
        key_gradient_kernel[(triton.cdiv(tokens, tiles.keys), batch * heads)](
            *inputs, *after(x, rows, g, scales, wanted.key_features), w_k, g, *rows, dlog_sigma, scales,
            dz_k, dk, dv, *strides, KEYS=wanted.k, VALUES=wanted.v, MAPS=wanted.maps,
            **student_constants(x, mode, tiles),
        )  # fmt: skip
    return Gradients(
        dq if wanted.q else None,
        _over_groups(dk, kv_heads) if wanted.k else None,
        _over_groups(dv, kv_heads) if wanted.v else None,
        *(_of_maps(x, mode, dz_q, dz_k, dlog_sigma) if wanted.maps else (None, None, None)),
    )


def _of_maps(
    x: Problem, mode: Mode, dz_q: torch.Tensor, dz_k: torch.Tensor, dlog_sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the gradients of w_q, w_k and the window factor, from those of q w_q, k w_k and log sigma."""
    heads, head_dim, feature_dim = x.w_q.shape
    kv_heads = x.k.shape[1]
    dw_q = _over_tokens(x.q, dz_q)
    dw_k = _over_tokens(x.k, dz_k.unflatten(2, (kv_heads, -1)).flatten(3))
    dw_k = dw_k.view(kv_heads, head_dim, -1, feature_dim).transpose(1, 2)
    dw_k = dw_k.reshape(heads, head_dim, feature_dim)
    if x.w_k.shape[0] != heads:
        dw_k = dw_k.view(x.w_k.shape[0], -1, head_dim, feature_dim).sum(1)
    dfactor = None
    if not mode.dropped:
        dfactor = dlog_sigma.sum((0, 2)) * (-x.window_factor.float()).sigmoid()
        dfactor = dfactor.to(x.window_factor.dtype)
    return dw_q.to(x.w_q.dtype), dw_k.to(x.w_k.dtype), dfactor


def _over_groups(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Sum [B, H, T, D] over the query heads of each key/value head."""
    batch, heads, tokens, head_dim = x.shape
    return x if heads == kv_heads else x.view(batch, kv_heads, -1, tokens, head_dim).sum(2)


def _over_tokens(x: torch.Tensor, dz: torch.Tensor) -> torch.Tensor:
    """Return sum_t x^T dz in fp32, [H, D, F], for x [B, H, T, D] and dz [B, T, H, F]."""
    x_HND = x.transpose(0, 1).flatten(1, 2)  # a view of what a projection leaves
    dz_HNF = dz.flatten(0, 1).transpose(0, 1)
    if x.is_cuda and x.dtype != torch.float32:
        return torch.bmm(x_HND.transpose(-1, -2), dz_HNF, out_dtype=torch.float32)
    return torch.bmm(x_HND.float().transpose(-1, -2), dz_HNF.float())
