"""Checks of the window that run on any device: errors against the materialised map in float64."""

import torch
from trenchcoat_trainer.students import Heads
from trenchcoat_trainer.students.window import naive, prompt_kernel
from trenchcoat_trainer.students.window.attention import WindowAttention

HEADS, KV_HEADS = 6, 2


def make_layer(window, first_tokens, head_dim=64):
    return WindowAttention(HEADS, KV_HEADS, head_dim, window, first_tokens)


def make_heads(tokens, device, dtype, *, batch=2, head_dim=64):
    """Random heads, rounded to `dtype`."""
    draws = torch.Generator().manual_seed(tokens)
    shapes = [(batch, count, tokens, head_dim) for count in (HEADS, KV_HEADS, KV_HEADS)]
    return Heads(*(torch.randn(*shape, generator=draws).to(device, dtype) for shape in shapes))


def make_visible(tokens, where, device):
    """Which tokens are no padding, bool [2, tokens]: one sequence of all, one that is padded."""
    visible = torch.ones(2, tokens, dtype=torch.bool, device=device)
    hidden = tokens // 3
    visible[1, slice(0, hidden) if where == "left" else slice(tokens - hidden, None)] = False
    return visible


def relative(x, truth):
    """The norm of the difference over the norm of the truth; infinite where `x` is not finite.

    A truth of nothing but zeros, as a single key's gradient is, counts as 1 an element.
    """
    x, truth = x.detach().double().cpu(), truth.detach().double().cpu()
    norm = truth.norm() or truth.numel() ** 0.5
    return float((x - truth).norm() / norm) if torch.isfinite(x).all() else float("inf")


def exact(heads):
    """The same numbers in float64."""
    return Heads(*(x.detach().double() for x in heads))


def attend_errors(layer, heads):
    """Errors of the full forward and of the gradients of q, k and v."""
    results = []
    for given, attend in (
        (heads, lambda some: layer.attend(some, {})),
        (exact(heads), lambda some: naive.attend(some, layer.window, layer.first_tokens)),
    ):
        leaves = Heads(*(x.clone().requires_grad_() for x in given))
        y = attend(leaves)
        upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
        results.append((y, *torch.autograd.grad((y * upstream).sum(), leaves)))
    names = ("output", "q", "k", "v")
    return {name: relative(*pair) for name, *pair in zip(names, *results, strict=True)}


@torch.no_grad()
def kernel_error(window, first_tokens, tokens, head_dim=16, device="cpu", dtype=torch.float32):
    """Error of a prompt's kernel; what lies behind the last token in memory is no number."""
    heads = make_heads(tokens, device, dtype, head_dim=head_dim)
    storage = [torch.full_like(x, torch.nan).repeat(1, 1, 2, 1) for x in heads]
    for whole, x in zip(storage, heads, strict=True):
        whole[:, :, :tokens] = x
    y = prompt_kernel.attend(*(whole[:, :, :tokens] for whole in storage), window, first_tokens)
    return {"y": relative(y, naive.attend(exact(heads), window, first_tokens))}


@torch.no_grad()
def decode(layer, heads, lengths, visible=None):
    """Decode in pieces of these lengths, and the rest one by one; returns the rows and the state."""
    state, rows, start, tokens = layer.new_state(), [], 0, heads.q.shape[2]
    for length in (*lengths, *[1] * tokens):
        stop = min(start + length, tokens)
        if stop > start:
            own = Heads(*(x[:, :, start:stop] for x in heads))
            rows.append(layer.decode(state, own, {}, None if visible is None else visible[:, start:stop]))
        start = stop
    return torch.cat(rows, 2), state


@torch.no_grad()
def decode_error(layer, heads, lengths, where=None):
    """Error of decoding by the ring, padded at the `where` side of one sequence or not at all."""
    visible = None if where is None else make_visible(heads.q.shape[2], where, heads.q.device)
    y, state = decode(layer, heads, lengths, visible)
    assert state.keys.shape[2] <= layer.window + layer.first_tokens
    truth = naive.attend(exact(heads), layer.window, layer.first_tokens, visible)
    return relative(y if visible is None else y * visible[:, None, :, None], truth)
