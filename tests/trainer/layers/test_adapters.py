"""Low-rank adapters of a fused projection."""

import pytest
import torch
from transformers import LlamaConfig
from trenchcoat_trainer.layers.adapters import PROJECTIONS, Adapter, add_adapters
from trenchcoat_trainer.layers.llama import LayerShape

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 24
WIDTHS = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
SHAPE = LayerShape.from_config(
    LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
        intermediate_size=16, vocab_size=16,
    )
)  # fmt: skip


def leaves(names):
    torch.manual_seed(0)
    tensors = {"normed": torch.randn(2, 5, HIDDEN), "qkv": torch.randn(2, 5, sum(WIDTHS.values()))}
    for name in names:
        tensors |= {f"{name}.a": torch.randn(3, HIDDEN), f"{name}.b": torch.randn(WIDTHS[name], 3)}
    return {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}


def run(names, add):
    tensors = leaves(names)
    adapters = {
        name: Adapter(tensors[f"{name}.a"], tensors[f"{name}.b"], 2.0, 0.25, torch.tensor([3, 4]), number)
        for number, name in enumerate(names)
    }
    out = add(tensors["qkv"] * 1, tensors["normed"], adapters)  # a leaf must not change in place
    (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
    return out.detach(), {name: tensor.grad for name, tensor in tensors.items()}


def beside(qkv, normed, adapters):
    parts = qkv.split(list(WIDTHS.values()), dim=-1)
    named = zip(PROJECTIONS, parts, strict=True)
    return torch.cat([x + adapters[name](normed) if name in adapters else x for name, x in named], dim=-1)


@pytest.mark.parametrize("names", [("q_proj", "v_proj"), ("k_proj",), PROJECTIONS], ids="-".join)
def test_they_add_what_they_return_by_themselves(names):
    out, gradients = run(names, lambda *arguments: add_adapters(*arguments, SHAPE))
    expected, theirs = run(names, beside)
    torch.testing.assert_close(out, expected)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], msg=name)


def test_it_takes_no_memory_of_its_own():
    qkv = torch.zeros(2, 5, sum(WIDTHS.values()))
    adapter = Adapter(torch.ones(3, HIDDEN), torch.ones(WIDTHS["k_proj"], 3), 1.0)
    assert (
        add_adapters(qkv, torch.ones(2, 5, HIDDEN), {"k_proj": adapter}, SHAPE).data_ptr() == qkv.data_ptr()
    )
    assert qkv.nonzero().size(0) == 10 * WIDTHS["k_proj"]


def test_dropout_without_seeds_is_refused():
    with pytest.raises(ValueError, match="seeds"):
        Adapter(torch.ones(3, HIDDEN), torch.ones(8, 3), 1.0, dropout=0.1)(torch.ones(2, 5, HIDDEN))
