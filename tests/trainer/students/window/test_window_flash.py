"""The arithmetic around calls of flash attention, with exact ones in their place; tests/gpu has the real."""

import pytest
import torch
from trenchcoat_trainer.students import Heads
from trenchcoat_trainer.students.window import attention, flash, naive

from tests.trainer.students.window.window_checks import (
    attend_errors,
    decode_error,
    make_heads,
    make_layer,
    relative,
)


def logits_of(q, k, near):
    """Scaled products of queries and keys, the last of both at the same place; -inf where a key is hidden."""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) / q.shape[-1] ** 0.5
    if near is None:
        return logits
    own = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
    before = own - torch.arange(k.shape[2])
    return logits.masked_fill((before < 0) | (before > near), -torch.inf)


def forward(q, k, v, near=None):
    """All but the sums with tokens before heads."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    logits = logits_of(q, k, near)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return (logits.softmax(-1) @ v).transpose(1, 2), logits.logsumexp(-1)


def backward(dy, heads, y, lse, near=None):
    """Softmax's gradients by the given output and sum, which may be of more keys than these."""
    q, k, v = heads
    groups, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    k_all, v_all = (x.repeat_interleave(groups, 1) for x in (k, v))
    share = (logits_of(q, k, near) - lse[..., None]).exp()
    d_logits = share * (dy @ v_all.transpose(-1, -2) - (dy * y).sum(-1, keepdim=True)) * scale
    dk, dv = d_logits.transpose(-1, -2) @ q, share.transpose(-1, -2) @ dy
    return [d_logits @ k_all, *(x.unflatten(1, (-1, groups)).sum(2) for x in (dk, dv))]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How often the operator would have been called."""
    counted = []

    def counting(*arguments, **options):
        counted.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(flash, "_forward", counting)
    monkeypatch.setattr(flash, "_backward", backward)

    def takes(q, start, first_tokens):  # but for the device and the dtype
        return isinstance(start, int) and (start == 0 or start >= first_tokens)

    monkeypatch.setattr(attention, "takes", takes)
    return counted


@pytest.mark.parametrize("tokens", [9, 13, 14, 60])
@pytest.mark.parametrize(("window", "first_tokens"), [(8, 4), (8, 0), (1, 4), (3, 6), (12, 1)])
def test_output_and_gradients(window, first_tokens, tokens, calls):
    heads = Heads(*(x.double() for x in make_heads(tokens, "cpu", torch.float64, head_dim=8)))
    errors = attend_errors(make_layer(window, first_tokens, 8), heads)
    assert max(errors.values()) < 1e-12, errors
    if tokens > window + first_tokens:
        assert len(calls) == min(first_tokens, 2) + 1  # a single first token needs no call for those between
    frozen = make_layer(window, first_tokens, 8).attend(heads, {})
    assert relative(frozen, naive.attend(heads, window, first_tokens)) < 1e-12


@pytest.mark.parametrize("lengths", [(30,), (13, 20), (2, 20, 20), (20, 1, 1, 15)])
def test_a_prompt_in_pieces(lengths, calls):
    layer, heads = make_layer(8, 4, 8), make_heads(60, "cpu", torch.float64, head_dim=8)
    assert decode_error(layer, heads, lengths) < 1e-12
    assert calls
