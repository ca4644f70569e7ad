"""The losses of attention transfer in memory linear in the number of tokens: plain torch, any device.

The hybrid is itself a softmax over s': s' = s - m + log sigma in the window and s' = log u,
u = phi_q . phi_k, below it.  So with p the student's and a the teacher's attention,

    XENT = log Z - sum_below a log u - sum_window a (s - m) - log sigma sum_window a,
    dloss/ds' = p (g . v_k - g . y) + b (p - a),    g = dloss/dy,  b = dloss/dXENT of the row,

and both follow from one block of query rows at a time, whose window is the block before it and itself.
Between forward and backward only Z, the outputs and the teacher's log-sum-exp L are kept, and attention and u
themselves of sequences so short that they fit.  Below the window ds' / u carries on to the feature maps; in
the window ds' is the gradient of s, less its row sum at the row's maximum (the student subtracts m from the
window only), and that sum is the gradient of log sigma.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from trenchcoat_trainer.students.form import Heads
from trenchcoat_trainer.students.lolcats.hybrid import (
    HybridInputs,
    accumulation_dtype,
    attend,
    feature_map,
    per_head,
)

__all__ = ["attend", "distill_loss"]

KEPT_BYTES = 2**26
"""What backward would compute again, a and u of all rows, is kept in place of that, up to so much."""


class _Block(NamedTuple):
    """Positions of one block of rows, of the keys in its window, and of the keys below that."""

    rows: slice
    window: slice
    below: slice
    above: torch.Tensor
    """True where a key of the window lies after the row, [rows, window]."""
    hiding: torch.Tensor
    """-inf there, else 0: added to scores, which is quicker than to fill them in, and gives the same."""


class _Inputs(NamedTuple):
    """What the losses are a function of; all that has tokens [B, H, T, ...] with keys repeated, or flat."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_teacher: torch.Tensor
    k_teacher: torch.Tensor
    v_teacher: torch.Tensor
    phi_q: torch.Tensor
    phi_k: torch.Tensor
    window_factor: torch.Tensor

    def flat(self) -> _Inputs:
        """Return the same in the dtype that is computed in, batch and heads in one dimension, contiguous.

        So products over blocks take views, where they would else copy. What is one tensor twice stays one.
        """
        dtype = self.phi_q.dtype
        flat = {id(tensor): tensor.to(dtype).flatten(0, 1).contiguous() for tensor in self[:-1]}
        return _Inputs(*(flat[id(tensor)] for tensor in self[:-1]), self.window_factor)

    def scores(self, block: _Block, teacher: bool) -> torch.Tensor:
        """Return s of the block, over all keys for the teacher and over the window for the student."""
        q, k = (self.q_teacher, self.k_teacher) if teacher else (self.q, self.k)
        keys = slice(0, block.rows.stop) if teacher else block.window
        dtype = self.phi_q.dtype
        s = q[..., block.rows, :].to(dtype) @ k[..., keys, :].to(dtype).mT
        s *= q.shape[-1] ** -0.5
        in_window = s[..., block.window] if teacher else s
        in_window += block.hiding
        return s

    def sigma(self) -> torch.Tensor:
        """Return sigmoid of the window factor, [H, 1, 1]."""
        return self.window_factor.to(self.phi_q.dtype).sigmoid()[:, None, None]


def _blocks(q: torch.Tensor, window_size: int) -> Iterator[_Block]:
    tokens = q.shape[-2]
    place = torch.arange(2 * window_size, device=q.device)
    # Of every block: the first has no key before it, the last may have fewer rows.
    above = place > place[:window_size, None] + window_size
    hiding = torch.zeros_like(above, dtype=accumulation_dtype(q.dtype)).masked_fill_(above, float("-inf"))
    for start in range(0, tokens, window_size):
        stop = min(start + window_size, tokens)
        first = max(start - window_size, 0)
        own = (slice(0, stop - start), slice(first - start + window_size, stop - start + window_size))
        yield _Block(slice(start, stop), slice(first, stop), slice(0, first), above[own], hiding[own])


class _Weights(NamedTuple):
    """Of one block's rows, what forward and backward both need, [N, rows, keys]."""

    a: torch.Tensor
    """The teacher's attention, over all keys up to the block's last."""
    s: torch.Tensor
    """The student's scores in the window, less the row's maximum, m."""
    e: torch.Tensor
    """exp of these."""
    u: torch.Tensor
    """phi_q . phi_k, over the keys below the window."""
    log_total: torch.Tensor
    """The teacher's log-sum-exp, [N, rows, 1]."""

    @classmethod
    def of(
        cls, x: _Inputs, block: _Block, same_scores: bool, log_total: torch.Tensor | None = None
    ) -> _Weights:
        """Compute them; the log-sum-exp only where it is not known yet."""
        a = x.scores(block, teacher=True)
        s = a[..., block.window] if same_scores else x.scores(block, teacher=False)
        s = s - s.amax(-1, keepdim=True)
        if log_total is None:
            most = a.amax(-1, keepdim=True)
            log_total = (a - most).exp_().sum(-1, keepdim=True).log_().add_(most)
        u = torch.bmm(x.phi_q[:, block.rows], x.phi_k[:, block.below].mT)
        return cls(a.sub_(log_total).exp_(), s, s.exp(), u, log_total)


class _Distill(torch.autograd.Function):
    """(mse, xent, teacher's output) with the analytic gradient, block by block."""

    @staticmethod
    def forward(
        ctx: Any, window_size: int, same_scores: bool, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        inputs = _Inputs(*tensors)
        x, sigma, log_sigma = inputs.flat(), *_sigma_and_log(inputs)
        heads = inputs.q.shape[:2]
        mse, xent = x.q.new_zeros(2)
        # Of a and u together every row has about as many as there are tokens.
        keeps = x.q[..., 0].nbytes * x.q.shape[1] <= KEPT_BYTES
        ctx.kept = []
        # Made before any block's: what stays between theirs, each larger than the one before, would keep an
        # allocator from using their memory again, which then grows as a whole map does.
        found = (torch.empty_like(x.q), torch.empty_like(x.q), *x.q.new_empty(2, *x.q.shape[:2], 1))
        for block in _blocks(x.q, window_size):
            rows, window, below, above, _ = block
            weights = _Weights.of(x, block, same_scores)
            if keeps:
                ctx.kept.append(weights)
            a, s, e, u, log_total = weights
            output = torch.bmm(a, x.v_teacher[:, : rows.stop])
            z = (sigma * e.sum(-1, keepdim=True)).add_(u.sum(-1, keepdim=True))
            y = (sigma * torch.bmm(e, x.v[:, window])).add_(torch.bmm(u, x.v[:, below])).div_(z)
            for of_all, own in zip(found, (y, output, log_total, z), strict=True):
                of_all[:, rows] = own
            difference = torch.empty_like(inputs.q[:, :, rows], dtype=y.dtype)
            torch.sub(y.unflatten(0, heads), output.unflatten(0, heads), out=difference)
            mse += difference.square_().sum()
            xent += z.log().sum() - u.log().mul_(a[..., below]).sum()
            xent -= (s + log_sigma).masked_fill_(above, 0.0).mul_(a[..., window]).sum()
        ctx.window_size, ctx.same_scores = window_size, same_scores
        y, output, log_total, z = found
        ctx.save_for_backward(*tensors, y, output, log_total, z)
        teacher = torch.empty_like(inputs.q).copy_(output.unflatten(0, heads))
        ctx.mark_non_differentiable(teacher)
        return mse / y.numel(), xent / z.numel(), teacher

    @staticmethod
    def backward(ctx: Any, grad_mse: torch.Tensor, grad_xent: torch.Tensor, _: Any) -> tuple[Any, ...]:
        *tensors, y, output, log_total, z = ctx.saved_tensors
        inputs = _Inputs(*tensors)
        x, heads, scale = inputs.flat(), inputs.q.shape[:2], y.shape[-1] ** -0.5
        wants_q, wants_k, wants_v = ctx.needs_input_grad[2:5]
        dk, dv = (torch.zeros_like(x.k) if want else None for want in (wants_k, wants_v))
        dq, dphi_q = torch.empty_like(x.q) if wants_q else None, torch.empty_like(x.phi_q)
        dphi_k = torch.zeros_like(x.phi_k)
        dlog_sigma = torch.zeros_like(inputs.window_factor, dtype=y.dtype)
        b = grad_xent / z.numel()
        g = (y - output).mul_(grad_mse * 2 / y.numel())
        gy = (g * y).sum(-1, keepdim=True)
        of_rows = (g, gy, b - gy, z, _sigma_and_log(inputs)[0] / z, g / z, x.q, x.phi_q)
        parts = zip(*(tensor.split(ctx.window_size, dim=1) for tensor in of_rows), strict=True)
        for index, (block, part) in enumerate(zip(_blocks(y, ctx.window_size), parts, strict=True)):
            rows, window, below = block[:3]
            g, gy, b_gy, z, sigma_z, g_z, q, phi_q = part
            if ctx.kept:
                a, s, e, u, _ = ctx.kept[index]
            else:
                a, s, e, u, _ = _Weights.of(x, block, ctx.same_scores, log_total[:, rows])

            du = torch.bmm(g, x.v[:, below].mT).add_(b_gy).div_(z)
            du -= a[..., below].div(u).mul_(b)
            dphi_q[:, rows] = torch.bmm(du, x.phi_k[:, below])
            dphi_k[:, below].add_(torch.bmm(du.mT, phi_q))

            p = e * sigma_z
            ds = torch.bmm(g, x.v[:, window].mT).sub_(gy).add_(b).mul_(p)
            ds -= a[..., window] * b
            row_sum = ds.sum(-1, keepdim=True)
            dlog_sigma += row_sum.view(*heads, -1).sum((0, 2))
            if dv is not None:
                dv[:, below].add_(torch.bmm(u.mT, g_z))
                dv[:, window].add_(torch.bmm(p.mT, g))
            if wants_q or wants_k:
                ds.scatter_add_(-1, s.argmax(-1, keepdim=True), -row_sum)
            if dq is not None:
                dq[:, rows] = torch.bmm(ds, x.k[:, window]).mul_(scale)
            if dk is not None:
                dk[:, window].add_(torch.bmm(ds.mT, q).mul_(scale))
        dfactor = dlog_sigma * (-inputs.window_factor.to(y.dtype)).sigmoid()
        of_heads = [None if d is None else d.to(inputs.q.dtype).unflatten(0, heads) for d in (dq, dk, dv)]
        of_maps = [d.unflatten(0, heads) for d in (dphi_q, dphi_k)]
        return None, None, *of_heads, None, None, None, *of_maps, dfactor.to(inputs.window_factor.dtype)


def _sigma_and_log(x: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sigma and its logarithm as blocks take them, [N, 1, 1] each."""
    sigma = x.sigma()
    return sigma.repeat(len(x.q), 1, 1), sigma.log().repeat(len(x.q), 1, 1)


class _LinearDistill(torch.autograd.Function):
    """(mse, xent, teacher's output) of a student whose window is dropped: p = u / Z over every earlier key.

    Only the feature maps get a gradient.
    """

    @staticmethod
    def forward(ctx: Any, window_size: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = _Inputs(*tensors)
        v = x.v.to(x.phi_q.dtype)
        y, output = torch.empty_like(v), torch.empty_like(v)
        log_total, z = x.phi_q.new_empty(2, *x.q.shape[:3], 1)
        mse, xent = x.phi_q.new_zeros(2)
        for block in _blocks(x.q, window_size):
            rows, seen = block.rows, slice(0, block.rows.stop)
            a = x.scores(block, teacher=True)
            log_total[:, :, rows] = a.logsumexp(-1, keepdim=True)
            a.sub_(log_total[:, :, rows]).exp_()
            output[:, :, rows] = a @ v[:, :, seen]
            u = _all_weights(x, block)
            z[:, :, rows] = u.sum(-1, keepdim=True)
            y[:, :, rows] = u @ v[:, :, seen] / z[:, :, rows]
            mse += (y[:, :, rows] - output[:, :, rows]).square().sum()
            u[..., block.window].masked_fill_(block.above, 1.0)  # there a is 0, and log 0 would be -inf
            xent += z[:, :, rows].log().sum() - (a * u.log_()).sum()
        ctx.window_size = window_size
        ctx.save_for_backward(*tensors, y, output, log_total, z)
        teacher = output.to(x.q.dtype)
        ctx.mark_non_differentiable(teacher)
        return mse / y.numel(), xent / z.numel(), teacher

    @staticmethod
    def backward(ctx: Any, grad_mse: torch.Tensor, grad_xent: torch.Tensor, _: Any) -> tuple[Any, ...]:
        *tensors, y, output, log_total, z = ctx.saved_tensors
        x = _Inputs(*tensors)
        v = x.v.to(y.dtype)
        dphi_q, dphi_k = torch.zeros_like(x.phi_q), torch.zeros_like(x.phi_k)
        b = grad_xent / z.numel()
        for block in _blocks(y, ctx.window_size):
            rows, seen = block.rows, slice(0, block.rows.stop)
            g = (y[:, :, rows] - output[:, :, rows]) * (grad_mse * 2 / y.numel())
            gy = (g * y[:, :, rows]).sum(-1, keepdim=True)
            a = x.scores(block, teacher=True).sub_(log_total[:, :, rows]).exp_()
            u = _all_weights(x, block)
            u[..., block.window].masked_fill_(block.above, 1.0)
            du = (g @ v[:, :, seen].transpose(-1, -2)).add_(b - gy).div_(z[:, :, rows])
            du -= a.div_(u).mul_(b)
            du[..., block.window].masked_fill_(block.above, 0.0)
            dphi_q[:, :, rows] = du @ x.phi_k[:, :, seen]
            dphi_k[:, :, seen] += du.transpose(-1, -2) @ x.phi_q[:, :, rows]
        return (None, *[None] * 6, dphi_q, dphi_k, None)


def _all_weights(x: _Inputs, block: _Block) -> torch.Tensor:
    """Return u of the block's rows and every key up to the last of them, 0 after the row's own."""
    u = x.phi_q[:, :, block.rows] @ x.phi_k[:, :, : block.rows.stop].transpose(-1, -2)
    u[..., block.window].masked_fill_(block.above, 0.0)
    return u


def distill_loss(
    x: HybridInputs, teacher: Heads, drop_window: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mse, xent, teacher's output); gradients flow to the student's arguments only."""
    q, k, v, w_q, w_k, window_factor, window_size = x
    heads = q.shape[1]
    same_scores = teacher.q is q and teacher.k is k
    k, v, k_teacher, v_teacher = (per_head(t, heads, 1) for t in (k, v, teacher.k, teacher.v))
    dtype = accumulation_dtype(q.dtype)
    phi_q = feature_map(q, w_q.to(dtype))
    phi_k = feature_map(k, per_head(w_k, heads, 0).to(dtype))
    tensors = _Inputs(q, k, v, teacher.q, k_teacher, v_teacher, phi_q, phi_k, window_factor)
    if drop_window:
        return _LinearDistill.apply(window_size, *tensors)
    return _Distill.apply(window_size, same_scores, *tensors)
