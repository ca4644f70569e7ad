"""The Cria's steps on a real GPU: fused operations, no waiting for the GPU, agreement with the CPU."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer" / "layers"))
import fused_checks
from trenchcoat_trainer.layers import (
    Adapter,
    CriaLayers,
    Layer,
    LayerShape,
    LayerWeights,
    Rope,
    block_step,
    layerwise_step,
    transfer_step,
)
from trenchcoat_trainer.layers.prefetch import on_device
from trenchcoat_trainer.students import LossWeights, Student
from trenchcoat_trainer.students.lolcats.form import LolcatsLayer
from trenchcoat_trainer.students.window.form import WindowLayer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 256, 4, 2, 64, 3
CONFIG = LlamaConfig(
    hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
    intermediate_size=512, num_hidden_layers=LAYERS, vocab_size=16,
)  # fmt: skip
FORMS = {
    "lolcats": LolcatsLayer(
        HEADS, KV_HEADS, key_maps=HEADS, head_dim=HEAD_DIM, feature_dim=32, window_size=64
    ),
    "window": WindowLayer(HEADS, KV_HEADS, HEAD_DIM, window=64, first_tokens=4),
}
STEPS = pytest.mark.parametrize(
    ("form", "step"),
    [
        *(("lolcats", step) for step in ("transfer", "layerwise", "block")),
        *(("window", step) for step in ("layerwise", "block")),  # has nothing to train in attention transfer
    ],
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_fused_operations(dtype):
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    checks = [
        fused_checks.norm_errors("cuda", dtype, width=16384),
        fused_checks.norm_errors("cuda", dtype, width=768),
        fused_checks.first_norm_errors("cuda", dtype, width=5000),
        fused_checks.rope_errors("cuda", dtype, heads=48, kv_heads=6, head_dim=128, tokens=65),
        fused_checks.swiglu_errors("cuda", dtype, width=5001),
    ]  # fmt: skip
    for errors in checks:
        assert {name: error for name, error in errors.items() if not error < tolerance} == {}


class Cria:
    """A small Cria of random weights."""

    def __init__(self, form, device, dtype, tokens=300):
        self.attention = FORMS[form]
        generator = torch.Generator().manual_seed(0)

        def draw(*size):
            return torch.randn(*size, generator=generator)

        self.shape = LayerShape.from_config(CONFIG)
        self.layers = []
        for _ in range(LAYERS):
            layer = LayerWeights.empty(self.shape, dtype, device)
            for part in layer.parts(self.shape).values():
                part.copy_(draw(*part.shape) * HIDDEN**-0.5 if part.ndim == 2 else torch.ones(part.shape))
            self.layers.append(layer)
        self.maps = [
            {}
            if form == "window"
            else {
                "w_q": (draw(HEADS, HEAD_DIM, 32) * 0.1).to(device).requires_grad_(),
                "w_k": (draw(HEADS, HEAD_DIM, 32) * 0.1).to(device).requires_grad_(),
                "window_factor": (draw(HEADS) - 2).to(device).requires_grad_(),
            }
            for _ in range(LAYERS)
        ]
        self.adapters = [
            {"q_proj": self.adapter(draw, HEADS, device), "v_proj": self.adapter(draw, KV_HEADS, device)}
            for _ in range(LAYERS)
        ]
        self.hidden = draw(2, tokens, HIDDEN).to(device, dtype)
        self.rope = Rope.from_config(CONFIG, tokens, device)

    def adapter(self, draw, heads, device):
        a, b = draw(4, HIDDEN).mul_(0.1), draw(heads * HEAD_DIM, 4).mul_(0.1)
        return Adapter(a.to(device).requires_grad_(), b.to(device).requires_grad_(), scale=2.0)

    def leaves(self):
        maps = [x for m in self.maps for x in m.values()]
        return maps + [x for adapters in self.adapters for a in adapters.values() for x in (a.a, a.b)]

    def student(self):
        rows = zip(self.layers, self.maps, self.adapters, strict=True)
        layers = [Layer(weights, Student(self.attention, maps), adapters) for weights, maps, adapters in rows]
        return CriaLayers(self.shape, layers)

    def transfer(self):
        return transfer_step(self.student(), self.hidden, self.rope, LossWeights()).loss

    def layerwise(self):
        return layerwise_step(self.student(), self.hidden, self.rope, LossWeights()).loss

    def block(self):
        return block_step(self.student(), self.hidden, self.hidden.flip(1), self.rope)


@STEPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_the_gpu_agrees_with_the_cpu(form, step, dtype):
    tested, truth = Cria(form, "cuda", dtype), Cria(form, "cpu", torch.float64)
    loss, expected = getattr(tested, step)(), getattr(truth, step)()
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(loss.cpu().double(), expected.double(), rtol=tolerance, atol=0)
    for x, y in zip(tested.leaves(), truth.leaves(), strict=True):
        assert (x.grad is None) == (y.grad is None)
        if y.grad is not None:
            assert fused_checks.relative(x.grad, y.grad) < tolerance


@STEPS
def test_a_step_never_waits_for_the_gpu(form, step):
    cria = Cria(form, "cuda", torch.bfloat16)
    getattr(cria, step)()
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(cria, step)()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_prefetched_batches_arrive_whole():
    batches = [torch.full((1 << 22,), float(i)).pin_memory() for i in range(6)]
    sums = [x.double().mean() for x in on_device(iter(batches), "cuda")]
    assert [int(s) for s in sums] == [0, 1, 2, 3, 4, 5]
