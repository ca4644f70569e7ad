"""Attention transfer with the teacher's products in FP8, on a real GPU: beside bf16's, and as CUDA graphs."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer" / "layers"))
import fused_checks
from trenchcoat_api.spec import Attention
from trenchcoat_trainer.data import Batch, Starts
from trenchcoat_trainer.layers.float8 import product, quantise_rows
from trenchcoat_trainer.stages.cria.fused import FLOAT8_CAPABILITY, FusedCria
from trenchcoat_trainer.stages.cria.running import WholeSteps
from trenchcoat_trainer.stages.cria.transfer import TransferPhase
from trenchcoat_trainer.students import LossWeights

from tests.trainer.helpers.tiny_student import make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import make_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < FLOAT8_CAPABILITY,
        reason="needs a CUDA GPU with FP8 products (compute capability 8.9)",
    ),
]

HIDDEN, TOKENS = 256, 300


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to("cuda", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("widths", [(96, 5000), (16384, 53248)], ids=["small", "405B"])
def test_inputs_are_quantised_as_on_the_cpu(dtype, widths):
    """Where the norm or the exponential differs in its last bit, a value may be rounded the other way."""
    errors = fused_checks.float8_errors("cuda", dtype, *widths)
    assert {name: error for name, error in errors.items() if not error < 5e-3} == {}
    assert max(error for name, error in errors.items() if "rows" in name) < 1e-6


@pytest.mark.parametrize("rows", [1, 77, 1024])
@pytest.mark.parametrize("inputs", [256, 16384])
def test_a_product_is_that_of_what_the_rows_mean(rows, inputs):
    x, w = draw(rows, inputs), draw(512, inputs, seed=1)
    weight, y = quantise_rows(w), product(x, quantise_rows(w))
    meant = quantise_rows(x).dequantised().double() @ weight.dequantised().double().t()
    # bf16's rounding, and what tensor cores leave out of long sums.
    assert fused_checks.relative(y, meant) < 1e-2
    out = torch.empty_like(y)
    assert torch.equal(product(quantise_rows(x), weight, out=out), y)


def make_fused(float8):
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.05}
    attention = Attention(form="lolcats", window=64, feature_dim=32)
    cria = make_cria(make_teacher(3, **sizes), 0, 2, attention, dtype=torch.bfloat16, device="cuda")
    fused = FusedCria(cria, positions=1000)
    if float8:
        fused.quantise_teacher()
    return cria, fused


def test_losses_and_gradients_are_near_those_of_bfloat16():
    hidden, found = draw(2, TOKENS, HIDDEN), []
    for float8 in (True, False):
        cria, fused = make_fused(float8)
        parameters = cria.form_parameters()
        for parameter in parameters.values():
            parameter.requires_grad_()
        losses = fused.transfer_step(cria, hidden, scale=1.0, weights=LossWeights())
        found.append((losses, {name: p.grad for name, p in parameters.items()}))
    (losses, gradients), (plain, expected) = found
    assert not torch.equal(losses, plain)
    torch.testing.assert_close(losses, plain, rtol=1e-2, atol=0)
    errors = {name: fused_checks.relative(gradients[name], expected[name]) for name in expected}
    assert {name: error for name, error in errors.items() if not error < 0.2} == {}


def test_a_step_never_waits_for_the_gpu():
    cria, fused = make_fused(float8=True)
    hidden = draw(2, TOKENS, HIDDEN)
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            fused.transfer_step(cria, hidden, scale=1.0, weights=LossWeights())
        finally:
            torch.cuda.set_sync_debug_mode("default")


def trained(graphs):
    cria, fused = make_fused(float8=True)
    settings = {"batchSize": 6, "microBatchSize": 2}
    spec = make_spec(transfer=settings | {"teacherProducts": "float8"}, dtype="bfloat16")
    runner = WholeSteps(torch.device("cuda"), 4, moved=True, graphs=graphs)
    phase = TransferPhase(cria, spec, 9, fused.transfer_step, Starts(share=0.7, below=600), runner)
    batch = Batch(draw(6, TOKENS, HIDDEN), None)
    losses = [phase.step(batch, epoch=0, step=step) for step in range(6)]
    assert any(step.captured for _, step in runner._steps.values()) == graphs
    return losses, {key: tensor.clone() for key, tensor in phase.tensors().items()}


def test_graphs_learn_what_kernels_launched_one_by_one_do_bit_for_bit():
    (losses, found), (expected_losses, expected) = trained(graphs=True), trained(graphs=False)
    assert losses == expected_losses
    assert losses[-1] < losses[0]
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
