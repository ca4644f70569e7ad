"""The kernels as functions that autograd knows: the losses, and the student's output alone."""

from __future__ import annotations

from typing import Any

import torch

from trenchcoat_trainer.students.form import Heads
from trenchcoat_trainer.students.lolcats import hybrid
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs
from trenchcoat_trainer.students.lolcats.kernels.backward import backward
from trenchcoat_trainer.students.lolcats.kernels.features import features
from trenchcoat_trainer.students.lolcats.kernels.forward import Forward, forward
from trenchcoat_trainer.students.lolcats.kernels.launch import Mode, Problem, Rows, Wanted, dense
from trenchcoat_trainer.students.lolcats.kernels.states import States, before


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
        q, k, v, *_, w_q, w_k, _ = tensors
        x = Problem(*tensors, features(q, w_q), features(k, w_k))
        wanted = Wanted(*ctx.needs_input_grad[3:6], any(ctx.needs_input_grad[9:]))
        if dropped and (separate or wanted.student):
            raise ValueError("the window is dropped in attention transfer only")
        ctx.mode = Mode(window_size, True, separate, wanted, dropped)
        memory = before(x.phi_k, v)
        result = forward(x, memory, ctx.mode)
        ctx.save_for_backward(*x, *memory, result.y, result.ratio, *result.rows)
        ctx.mark_non_differentiable(result.taught)
        return result.mse.sum() / q.numel(), result.xent.mean(), result.taught

    @staticmethod
    def backward(ctx: Any, grad_mse: torch.Tensor, grad_xent: torch.Tensor, _: Any) -> tuple[Any, ...]:
        x, memory, result = _saved(ctx.saved_tensors)
        scales = torch.stack([grad_mse * (2 / x.q.numel()), grad_xent / result.rows.rz.numel()]).float()
        d = backward(x, memory, ctx.mode, result, result.y, scales)
        return None, None, None, d.q, d.k, d.v, None, None, None, d.w_q, d.w_k, d.window_factor


class _Hybrid(torch.autograd.Function):
    """The student's output alone."""

    @staticmethod
    def forward(ctx: Any, window_size: int, *tensors: torch.Tensor) -> torch.Tensor:
        q, k, v, w_q, w_k, window_factor = tensors
        x = Problem(q, k, v, q, k, v, w_q, w_k, window_factor, features(q, w_q), features(k, w_k))
        wanted = Wanted(*ctx.needs_input_grad[1:4], any(ctx.needs_input_grad[4:]))
        ctx.mode = Mode(window_size, False, False, wanted)
        memory = before(x.phi_k, v)
        result = forward(x, memory, ctx.mode)
        ctx.save_for_backward(*x, *memory, result.y, result.ratio, *result.rows)
        return result.taught

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
        x, memory, result = _saved(ctx.saved_tensors)
        scales = torch.arange(1, -1, -1, device=g.device, dtype=torch.float32)
        rows = result.rows._replace(dy=torch.empty_like(result.rows.dy))
        d = backward(x, memory, ctx.mode, result._replace(rows=rows), dense(g), scales)
        return None, d.q, d.k, d.v, d.w_q, d.w_k, d.window_factor


def _saved(tensors: tuple[torch.Tensor, ...]) -> tuple[Problem, States, Forward]:
    """Return what a forward has saved: neither losses nor the teacher's output."""
    problem, rest = Problem(*tensors[: len(Problem._fields)]), tensors[len(Problem._fields) :]
    memory, total, y, ratio, *rows = rest
    unused = y.new_empty(0)
    result = Forward(y, y, ratio, Rows(*rows), unused, unused)
    return problem, States(memory, total), result


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
