"""Random attention problems for the tests of every backend."""

import torch
from trenchcoat_trainer.students import Heads, LossWeights
from trenchcoat_trainer.students.lolcats.form import LolcatsLayer

ARGUMENTS = ("q", "k", "v", "w_q", "w_k", "window_factor")


def problem(
    tokens,
    *,
    batch=1,
    heads=2,
    kv_heads=None,
    head_dim=16,
    feature_dim=8,
    dtype=torch.float64,
    seed=0,
    map_heads=None,
    device="cpu",
):
    """Return q, k, v, w_q, w_k, window_factor with scores and features far from uniform."""
    kv_heads = kv_heads or heads
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = (
        1.5 * draw(batch, heads, tokens, head_dim),
        draw(batch, kv_heads, tokens, head_dim),
        draw(batch, kv_heads, tokens, head_dim),
        draw(heads, head_dim, feature_dim) * head_dim**-0.5,
        draw(map_heads or heads, head_dim, feature_dim) * head_dim**-0.5,
        draw(heads) - 1.0,
    )
    return tuple(t.to(device, dtype) for t in tensors)


def relative(x, truth):
    """Return |x - truth| / |truth| in the 2-norm; |x| where the truth vanishes."""
    x, truth = x.detach().double().cpu(), truth.detach().double().cpu()
    norm = truth.norm()
    return float((x - truth).norm() / norm) if norm > 1e-12 else float(x.norm())


def names(tensors):
    """Name the arguments of `tensors`: the student's, with the teacher's q, k, v where there are nine."""
    if len(tensors) == len(ARGUMENTS):
        return ARGUMENTS
    return ("q", "k", "v", "q_teacher", "k_teacher", "v_teacher", "w_q", "w_k", "window_factor")


def with_gradients(function, tensors, wanted):
    """Call `function` on leaves and return its losses and the gradients of the `wanted` arguments."""
    leaves = {
        name: t.detach().clone().requires_grad_(name in wanted)
        for name, t in zip(names(tensors), tensors, strict=True)
    }
    result = function(*leaves.values())
    result.loss.backward()
    gradients = {name: x.grad for name, x in leaves.items() if name in wanted}
    return result, {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in gradients.items()}


def layer(k, w_q, w_k, window_size, backend=None):
    """Return the layer whose keys are `k` and whose feature maps are `w_q` and `w_k`."""
    heads, head_dim, feature_dim = w_q.shape
    return LolcatsLayer(heads, k.shape[1], w_k.shape[0], head_dim, feature_dim, window_size, backend)


def named(w_q, w_k, window_factor):
    return {"w_q": w_q, "w_k": w_k, "window_factor": window_factor}


def hybrid_attention(q, k, v, w_q, w_k, window_factor, *, window_size, keep_parts="both", backend=None):
    attention = layer(k, w_q, w_k, window_size, backend)
    return attention.attend(Heads(q, k, v), named(w_q, w_k, window_factor), keep_parts)


def decode_step(state, q, k, v, w_q, w_k, window_factor, *, window_size):
    return layer(k, w_q, w_k, window_size).decode(state, Heads(q, k, v), named(w_q, w_k, window_factor))


def transfer_loss(
    q, k, v, w_q, w_k, window_factor, *,
    window_size, mse_weight=1000.0, xent_weight=1.0, drop_window=False, backend=None,
):  # fmt: skip
    weights = LossWeights(mse=mse_weight, xent=xent_weight)
    return layer(k, w_q, w_k, window_size, backend).transfer_loss(
        Heads(q, k, v), named(w_q, w_k, window_factor), weights, drop_window=drop_window
    )


def distill_loss(
    q, k, v, q_teacher, k_teacher, v_teacher, w_q, w_k, window_factor, *, window_size, backend=None
):
    return layer(k, w_q, w_k, window_size, backend).distill_loss(
        Heads(q, k, v), Heads(q_teacher, k_teacher, v_teacher), named(w_q, w_k, window_factor)
    )
