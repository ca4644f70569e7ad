"""Norm, MLP and RoPE in fewer passes on a real GPU: Llama's numbers within rounding, and less memory."""

import copy

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb
from trenchcoat_api.spec import Attention, Form
from trenchcoat_trainer.models import inference_trenchcoat as inference

from tests.trainer.helpers.tiny_student import make_cria, make_student, make_teacher
from tests.trainer.models import fused_model_checks
from tests.trainer.students.window.window_checks import relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]


def randn(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("hidden", [576, 2048, 4096])
@torch.no_grad()
def test_norm(hidden):
    x, norm, llamas = randn(3, 500, hidden), inference.TrenchcoatRMSNorm(hidden), LlamaRMSNorm(hidden)
    for some in (norm, llamas):
        some.to("cuda", torch.bfloat16).weight.copy_(torch.linspace(-2, 2, hidden))
    truth = norm.weight.double() * x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert relative(norm(x), truth) <= relative(llamas(x), truth) < 1e-2


@torch.no_grad()
def test_rope():
    q, k = (randn(2, 500, heads, 64).transpose(1, 2) for heads in (9, 3))
    angles = torch.arange(500.0, device="cuda")[:, None] / 1e4 ** (torch.arange(32, device="cuda") / 32)
    cos, sin = (x.repeat(1, 2)[None].bfloat16() for x in (angles.cos(), angles.sin()))
    truths = apply_rotary_pos_emb(*(x.double() for x in (q, k, cos, sin)))
    llamas, ours = apply_rotary_pos_emb(q, k, cos, sin), inference.apply_rope(q, k, cos, sin)
    for our, llama, truth in zip(ours, llamas, truths, strict=True):
        assert relative(our, truth) <= relative(llama, truth) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("tokens", [2, 33, 4096])
def test_rope_by_a_kernel(tokens, head_dim, rows, dtype):
    errors = fused_model_checks.rope_errors(tokens, head_dim, rows, "cuda", dtype)
    assert max(errors.values()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_swiglu_by_a_kernel(dtype):
    assert fused_model_checks.swiglu_errors(4099, 5000, "cuda", dtype)["y"] < 1e-2


@torch.no_grad()
def test_an_mlp_holds_two_inner_tensors_and_not_three():
    config = LlamaConfig(hidden_size=64, intermediate_size=4096, num_attention_heads=4)
    x, outputs, peaks = randn(1, 8192, 64), [], []
    for kind in (LlamaMLP, inference.TrenchcoatMLP):
        torch.manual_seed(0)
        mlp = kind(config).to("cuda", torch.bfloat16)
        mlp(x)  # what a first call sets up
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs.append(mlp(x))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert relative(outputs[1], outputs[0]) < 1e-2
    inner = 8192 * 4096 * 2
    assert peaks[0] - peaks[1] > 0.9 * inner
    assert peaks[1] < 2.2 * inner


@torch.no_grad()
def test_a_prompt_in_half_precision():
    attention = Attention(form=Form.WINDOW, window=8, first_tokens=2, keep_softmax_layers=[2])
    student = make_student(make_teacher(layers=4), attention)
    ids = torch.randint(3, 61, (2, 200), generator=torch.Generator().manual_seed(1))
    truth = copy.deepcopy(student).double()(ids, use_cache=False).logits
    model, ids = copy.deepcopy(student).to("cuda", torch.bfloat16), ids.cuda()
    assert inference.is_inference(model.lm_head.weight)
    found = model(ids, use_cache=True).logits
    with torch.enable_grad():
        llamas = model(ids, use_cache=True).logits
    assert max(relative(found, truth), relative(llamas, truth)) < 1e-1
    assert not torch.equal(found, llamas)  # other operations were called


@torch.no_grad()
def test_a_windowed_teacher_sees_what_the_cpu_lets_it_see():
    """The rival of the evaluation: by flash attention here, by masks there."""
    cria, hidden = make_cria(make_teacher(layers=2), 0, 1), torch.randn(2, 700, 32).bfloat16()
    cria.bfloat16()
    here = copy.deepcopy(cria).to("cuda")
    cria.float()
    outputs = []
    for window in (9, 100, 690, None):
        for one in (cria, here):
            one.use(softmax=True, softmax_window=window)
        expected = cria(hidden.float())
        assert relative(here(hidden.cuda()), expected) < 2e-2
        outputs.append(expected)
    assert relative(outputs[0], outputs[1]) > 0.1
