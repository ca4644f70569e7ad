"""The kernels as functions that autograd knows: the losses, and the student's output alone."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

from trenchcoat_trainer.students.form import Heads
from trenchcoat_trainer.students.lolcats import hybrid
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs
from trenchcoat_trainer.students.lolcats.kernels.backward import backward
from trenchcoat_trainer.students.lolcats.kernels.features import features
from trenchcoat_trainer.students.lolcats.kernels.forward import Kept, forward
from trenchcoat_trainer.students.lolcats.kernels.launch import Mode, Problem, Rows, Wanted, dense
from trenchcoat_trainer.students.lolcats.kernels.states import States


def unsupported(q: torch.Tensor) -> str | None:
    """Say why the kernels cannot take queries like `q` [B, H, T, D], or None when they can."""
    head_dim = q.shape[-1]
    if q.dtype not in (torch.bfloat16, torch.float32):
        return f"the kernels take bfloat16 and float32, not {q.dtype}"
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 128:
        return f"the kernels take a head_dim of 16, 32, 64 or 128, not {head_dim}"
    return None


class _Distill(torch.autograd.Function):
    """(mse, xent, teacher's output) of student and teacher."""

    @staticmethod
    def forward(
        ctx: Any, window_size: int, separate: bool, dropped: bool, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        q, k, *_, w_q, w_k, _ = tensors
        x = Problem(*tensors, features(q, w_q), features(k, w_k))
        wanted = Wanted(*ctx.needs_input_grad[3:6], any(ctx.needs_input_grad[9:]))
        if dropped and (separate or wanted.student):
            raise ValueError("the window is dropped in attention transfer only")
        ctx.mode = Mode(window_size, True, separate, wanted, dropped)
        kept, losses = forward(x, ctx.mode)
        _save(ctx, x, kept)
        ctx.mark_non_differentiable(losses.taught)
        return losses.mse.sum() / q.numel(), losses.xent.mean(), losses.taught

    @staticmethod
    def backward(ctx: Any, grad_mse: torch.Tensor, grad_xent: torch.Tensor, _: Any) -> tuple[Any, ...]:
        x, kept = _saved(ctx)
        scales = torch.stack([grad_mse * (2 / x.q.numel()), grad_xent / kept.rows.rz.numel()]).float()
        d = backward(x, ctx.mode, kept, kept.y, scales)
        return None, None, None, d.q, d.k, d.v, None, None, None, d.w_q, d.w_k, d.window_factor


class _Hybrid(torch.autograd.Function):
    """The student's output alone."""

    @staticmethod
    def forward(ctx: Any, window_size: int, *tensors: torch.Tensor) -> torch.Tensor:
        q, k, v, w_q, w_k, window_factor = tensors
        x = Problem(q, k, v, q, k, v, w_q, w_k, window_factor, features(q, w_q), features(k, w_k))
        wanted = Wanted(*ctx.needs_input_grad[1:4], any(ctx.needs_input_grad[4:]))
        ctx.mode = Mode(window_size, False, False, wanted)
        kept, _ = forward(x, ctx.mode)
        _save(ctx, x, kept)
        return kept.y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
        x, kept = _saved(ctx)
        scales = torch.arange(1, -1, -1, device=g.device, dtype=torch.float32)
        kept = kept._replace(rows=kept.rows._replace(dy=torch.empty_like(kept.rows.dy)))
        d = backward(x, ctx.mode, kept, dense(g), scales)
        return None, d.q, d.k, d.v, d.w_q, d.w_k, d.window_factor


def _save(ctx: Any, x: Problem, kept: Kept) -> None:
    """Keep what `_saved` returns."""
    ctx.save_for_backward(*x, *kept.before, kept.y, kept.ratio, *kept.rows)


def _saved(ctx: Any) -> tuple[Problem, Kept]:
    tensors = iter(ctx.saved_tensors)
    x = Problem(*islice(tensors, len(Problem._fields)))
    memory, total, y, ratio, *rows = tensors
    return x, Kept(States(memory, total), y, ratio, Rows(*rows))


def distill_loss(
    x: HybridInputs, teacher: Heads, drop_window: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mse, xent, teacher's output); gradients flow to the student's arguments only."""
    separate = not (teacher.q is x.q and teacher.k is x.k and teacher.v is x.v)
    heads = (dense(x.q), dense(x.k), dense(x.v))
    of_teacher = tuple(map(dense, teacher)) if separate else heads
    maps = (x.w_q, x.w_k, x.window_factor)
    return _Distill.apply(x.window_size, separate, drop_window, *heads, *of_teacher, *maps)


def attend(x: HybridInputs, keep_parts: str = "both") -> torch.Tensor:
    """Return the student's output, [B, H, T, D]; every argument gets the gradient that it asks for.

    The kernels compute it whole; a part of it is measured by plain torch.
    """
    if keep_parts != "both":
        return hybrid.attend(x, keep_parts)
    heads = (dense(x.q), dense(x.k), dense(x.v))
    return _Hybrid.apply(x.window_size, *heads, x.w_q, x.w_k, x.window_factor)
