"""Norm, MLP and RoPE in fewer passes, as a GPU takes them: here on the CPU; tests/gpu has the real."""

import copy

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb
from trenchcoat_api.spec import Attention, Form
from trenchcoat_trainer.models import inference_trenchcoat as inference

from tests.trainer.helpers.tiny_student import make_student, make_teacher

HIDDEN, INNER = 48, 96


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Take the device and the dtype for those of a GPU's inference."""
    monkeypatch.setattr(inference, "is_inference", lambda x: not torch.is_grad_enabled())


def randn(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


def error(x, truth):
    return float((x.double() - truth.double()).norm() / truth.double().norm())


def filled(module, dtype=torch.bfloat16):
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    return module.to(dtype)


def make_mlp(kind):
    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=4)
    return filled(kind(config))


@torch.no_grad()
def test_the_norm_is_no_further_from_the_truth_than_llamas(on_a_cpu):
    x, ours = randn(3, 50, HIDDEN), filled(inference.TrenchcoatRMSNorm(HIDDEN))
    llamas = filled(LlamaRMSNorm(HIDDEN))
    truth = ours.weight.double() * x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert ours(x).dtype == x.dtype
    assert error(ours(x), truth) <= error(llamas(x), truth) < 1e-2


@torch.no_grad()
def test_rope_is_no_further_from_the_truth_than_llamas(on_a_cpu):
    q, k = (randn(2, 50, heads, 16).transpose(1, 2) for heads in (4, 2))
    angles = torch.arange(50.0)[:, None] / 100 ** (torch.arange(8) / 8)
    cos, sin = (x.repeat(1, 2)[None].bfloat16() for x in (angles.cos(), angles.sin()))
    truths = apply_rotary_pos_emb(*(x.double() for x in (q, k, cos, sin)))
    llamas, ours = apply_rotary_pos_emb(q, k, cos, sin), inference.apply_rope(q, k, cos, sin)
    for our, llama, truth in zip(ours, llamas, truths, strict=True):
        assert our.stride() == llama.stride()
        assert error(our, truth) <= error(llama, truth) < 1e-2


@torch.no_grad()
def test_the_mlp_is_llamas_to_the_last_bit_and_leaves_its_input(on_a_cpu):
    x = randn(2, 50, HIDDEN)
    kept = x.clone()
    assert torch.equal(make_mlp(inference.TrenchcoatMLP)(x), make_mlp(LlamaMLP)(x))
    assert torch.equal(x, kept)


def test_only_a_gpu_in_half_precision_without_gradients_is_inference():
    x = torch.zeros(2, dtype=torch.bfloat16)
    with torch.no_grad():
        assert not inference.is_inference(x)
        found = {dtype: inference.is_inference(Elsewhere(dtype)) for dtype in (torch.bfloat16, torch.float32)}
    assert found == {torch.bfloat16: True, torch.float32: False}
    assert not inference.is_inference(Elsewhere(torch.bfloat16))


class Elsewhere:
    """What is asked of a tensor on a GPU."""

    is_cuda = True

    def __init__(self, dtype):
        self.dtype = dtype


@torch.no_grad()
def test_a_student_says_the_same(on_a_cpu, monkeypatch):
    attention = Attention(form=Form.WINDOW, window=8, first_tokens=2, keep_softmax_layers=[1])
    student = copy.deepcopy(make_student(make_teacher(layers=3), attention)).double()
    ids = torch.randint(3, 61, (2, 43), generator=torch.Generator().manual_seed(1))
    calls = []
    rms_norm = torch.nn.functional.rms_norm

    def counting(*arguments):
        calls.append(1)
        return rms_norm(*arguments)

    monkeypatch.setattr(inference.F, "rms_norm", counting)
    logits = student(ids, use_cache=True).logits
    assert len(calls) == 2 * 3 + 1
    monkeypatch.setattr(inference, "is_inference", lambda x: False)
    # Llama's norm is in fp32 even where weights are in float64.
    torch.testing.assert_close(logits, student(ids, use_cache=True).logits, rtol=0, atol=1e-5)
