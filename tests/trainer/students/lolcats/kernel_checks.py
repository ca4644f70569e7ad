"""Checks of the Triton kernels against `naive` that run on a GPU or under Triton's interpreter."""

import functools

import torch
from attention_problems import (
    ARGUMENTS,
    distill_loss,
    hybrid_attention,
    problem,
    relative,
    transfer_loss,
    with_gradients,
)
from trenchcoat_trainer.students.lolcats import hybrid, prompt_kernel
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs

MAPS = ("w_q", "w_k", "window_factor")
STUDENT = ("q", "k", "v", *MAPS)


def poisoned(x, padding=37):
    """Return `x` [B, H, T, D] as a view of a larger tensor whose other tokens are NaN."""
    batch, heads, tokens, head_dim = x.shape
    storage = x.new_full((batch, tokens + padding, heads, head_dim), float("nan"))
    view = storage.transpose(1, 2)[:, :, :tokens]
    view.copy_(x)
    return view


def as_given(tensors, dtype):
    """Round q, k, v to `dtype` inside poisoned storage; feature maps and factors stay fp32 masters."""
    return [poisoned(t.to(dtype)) if t.ndim == 4 else t.float() for t in tensors]


def exact(tensors):
    return [t.double() for t in tensors]


def errors(tested, truth):
    """Return the relative error of every named result, infinite where one is not finite."""
    return {
        name: relative(tested[name], truth[name]) if torch.isfinite(tested[name]).all() else float("inf")
        for name in truth
    }


def losses(function, tensors, wanted, backend):
    result, gradients = with_gradients(functools.partial(function, backend=backend), tensors, wanted)
    return {"loss": result.loss, "output": result.output, **gradients}


def transfer_errors(window_size, dtype=torch.float32, drop_window=False, **shape):
    """Errors of transfer_loss: the loss, the teacher's output, the gradients of the maps."""
    tensors = as_given(problem(dtype=torch.float32, **shape), dtype)
    function = functools.partial(transfer_loss, window_size=window_size, drop_window=drop_window)
    return errors(losses(function, tensors, MAPS, "triton"), losses(function, exact(tensors), MAPS, "naive"))


def distill_errors(window_size, dtype=torch.float32, map_heads=None, wanted=STUDENT, **shape):
    """Errors of distill_loss for a student beside its teacher: also the gradients of q, k and v."""
    teacher = problem(dtype=torch.float32, seed=1, **shape)[:3]
    *change, w_q, w_k, factor = problem(dtype=torch.float32, map_heads=map_heads, **shape)
    student = [t + 0.2 * x for t, x in zip(teacher, change, strict=True)]
    tensors = as_given([*student, *teacher, w_q, w_k, factor], dtype)
    function = functools.partial(distill_loss, window_size=window_size)
    return errors(
        losses(function, tensors, wanted, "triton"), losses(function, exact(tensors), wanted, "naive")
    )


def hybrid_errors(window_size, dtype=torch.float32, wanted=ARGUMENTS, **shape):
    """Errors of hybrid_attention: its output and the gradients that are wanted."""
    tensors = as_given(problem(dtype=torch.float32, **shape), dtype)
    upstream = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(5))
    upstream = upstream.to(tensors[0].device, dtype)

    def run(tensors, backend):
        named = zip(ARGUMENTS, tensors, strict=True)
        leaves = {name: t.detach().requires_grad_(name in wanted) for name, t in named}
        y = hybrid_attention(*leaves.values(), window_size=window_size, backend=backend)
        y.backward(upstream.to(y.dtype))
        return {"y": y.detach(), **{name: leaves[name].grad for name in wanted}}

    return errors(run(tensors, "triton"), run(exact(tensors), "naive"))


def prompt_errors(window_size, dtype=torch.float32, lengths=None, **shape):
    """Errors of a prompt's kernels: the output, and what is folded; `lengths`: each sequence's own tokens."""
    tensors = as_given(problem(dtype=torch.float32, **shape), dtype)
    given, truth = (HybridInputs(*some, window_size) for some in (tensors, exact(tensors)))
    tokens = given.q.shape[2]
    own = torch.tensor(lengths or [tokens] * given.q.shape[0])
    leaving = (own // window_size - 1).clamp_min(0) * window_size
    y, folded = prompt_kernel.attend(given, leaving.to(given.q.device) if lengths else int(leaving[0]))
    seen = torch.arange(tokens, device=given.q.device)
    expected = hybrid.fold(truth.k, truth.v, truth.w_k, seen < leaving.to(seen)[:, None])
    if folded is None:
        assert int(leaving.max()) == 0
        folded = hybrid.Folded(*(torch.zeros_like(x) for x in expected))
    rows = (seen < own.to(seen)[:, None])[:, None, :, None]
    return errors(
        {"y": y * rows, **folded._asdict()},
        {"y": hybrid.attend(truth) * rows, **expected._asdict()},
    )
