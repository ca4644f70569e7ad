"""Whole steps of a Cria as CUDA graphs: the numbers of kernels launched one by one, and no waiting."""

import logging
from functools import partial

import pytest
import torch
from trenchcoat_api.spec import Attention
from trenchcoat_trainer.data import Batch, Starts
from trenchcoat_trainer.layers.dropout import seeded_dropout
from trenchcoat_trainer.runtime.graphs import Replayed
from trenchcoat_trainer.stages.cria.fused import FusedCria
from trenchcoat_trainer.stages.cria.lora import LoraPhase
from trenchcoat_trainer.stages.cria.running import MicroBatches, WholeSteps
from trenchcoat_trainer.stages.cria.transfer import TransferPhase

from tests.trainer.helpers.tiny_student import make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import make_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

HIDDEN, TOKENS, LENGTHS = 256, 300, (6, 6, 6, 6, 5, 6, 6, 5, 5)
DEVICE = torch.device("cuda")
PHASES = ("transfer", "layerwise", "block")


def phase_of(name, runner, form="lolcats"):
    settings = {"batchSize": 6, "microBatchSize": 2}
    spec = make_spec(
        transfer=settings | {"windowDropout": "0.3" if form == "lolcats" else "0"},
        criaLora=settings | {"objective": name if name != "transfer" else "layerwise"},
    )
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.05}
    attention = {
        "lolcats": Attention(window=64, feature_dim=32),
        "window": Attention(form="window", window=64),
    }
    cria = make_cria(make_teacher(3, **sizes), 0, 2, attention[form], dtype=torch.bfloat16, device="cuda")
    fused, starts = FusedCria(cria, positions=1000), Starts(share=0.7, below=600)
    if name == "transfer":
        phase = TransferPhase(cria, spec, len(LENGTHS), fused.transfer_step, starts, runner)
        return phase, phase._maps
    phase = LoraPhase(cria, spec, fused.layerwise_step, fused.block_step, starts, runner)
    with torch.no_grad():
        for number, parameter in enumerate(phase.adapters.values()):
            new = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.copy_(0.05 * new)
    return phase, phase.adapters


def trained(name, runner, form="lolcats"):
    """Losses of a few steps, some on smaller batches, what was learned, and the optimiser's state."""
    phase, parameters = phase_of(name, runner, form)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step, length in enumerate(LENGTHS):
        inputs, targets = (
            torch.randn(length, TOKENS, HIDDEN, generator=generator).to("cuda", torch.bfloat16) for _ in "it"
        )
        losses.append(phase.step(Batch(inputs, targets), epoch=0, step=step))
    tensors = {key: tensor.clone() for key, tensor in phase.tensors().items()}
    return losses, {**tensors, **{key: p.detach().clone() for key, p in parameters.items()}}


@pytest.mark.parametrize("name", PHASES)
def test_graphs_learn_what_kernels_launched_one_by_one_do_bit_for_bit(name):
    runner = WholeSteps(DEVICE, 4, moved=True)
    losses, found = trained(name, runner)
    assert any(step.captured for _, step in runner._steps.values())
    expected_losses, expected = trained(name, WholeSteps(DEVICE, 4, moved=True, graphs=False))
    assert losses == expected_losses
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert len({loss for loss in losses if loss is not None}) > 3


@pytest.mark.parametrize("name", ["layerwise", "block"])
def test_a_window_trains_as_graphs_too(name):
    """By torch's own attention, whose gradient need not repeat bit for bit."""
    runner = WholeSteps(DEVICE, 4, moved=True)
    losses, _ = trained(name, runner, "window")
    assert any(step.captured for _, step in runner._steps.values())
    expected, _ = trained(name, WholeSteps(DEVICE, 4, moved=True, graphs=False), "window")
    assert losses == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", PHASES)
def test_packed_steps_learn_what_micro_batches_do(name):
    losses, _ = trained(name, WholeSteps(DEVICE, 4, moved=True))
    expected, _ = trained(name, MicroBatches(DEVICE))
    # The first is of the same parameters: but for rounding, sequences drop what they dropped and start alike.
    assert losses[0] == pytest.approx(expected[0], rel=2e-2)
    assert [loss for loss in losses if loss] == pytest.approx([loss for loss in expected if loss], rel=0.1)


@pytest.mark.parametrize("name", PHASES)
def test_a_graphed_step_waits_for_the_gpu_once_to_read_losses(name):
    runner = WholeSteps(DEVICE, 6, moved=True)
    phase, _ = phase_of(name, runner)
    batch = Batch(*(torch.randn(6, TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16) for _ in "it"))
    for step in range(8):
        phase.step(batch, epoch=0, step=step)
    assert any(step.captured for _, step in runner._steps.values())
    phase._run = partial(without_waiting, runner)
    for step in range(8, 11):
        phase.step(batch, epoch=0, step=step)


def without_waiting(function, *arguments, **named):
    torch.cuda.set_sync_debug_mode("error")
    try:
        return function(*arguments, **named)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_cannot_be_a_graph_is_launched_kernel_by_kernel_and_says_so(caplog):
    total = torch.zeros((), device="cuda")

    def waits() -> None:
        if float(total.add_(1)) < 0:
            raise AssertionError

    step = Replayed(waits, graphs=True, name="a step that waits")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            step()
    assert float(total) == 5
    assert not step.captured
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "a step that waits cannot run as a CUDA graph"
    ]
    other = torch.zeros((), device="cuda")  # and others still can
    fine = Replayed(lambda: other.add_(1), graphs=True, name="fine")
    for _ in range(5):
        fine()
    assert fine.captured
    assert float(other) == 5
    assert torch.nn.functional.dropout(torch.ones(8, device="cuda"), 0.5).isfinite().all()


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_dropout_drops_its_share_by_sequence_and_adapter(rate):
    x = torch.ones(3, 1000, 1001, device="cuda", requires_grad=True)
    seeds = torch.tensor([5, 6, 5], device="cuda")
    y = seeded_dropout(x, seeds, 2**62 + 11, rate)
    assert float((y == 0).float().mean()) == pytest.approx(rate, rel=0.01)
    of_kernels = round(rate * 2**16) / 2**16
    assert y.max().item() == pytest.approx(1 / (1 - of_kernels))
    assert torch.equal(y[0], y[2])
    same = ((y[0] == 0) & (y[1] == 0)).float().mean()
    assert float(same) == pytest.approx(rate**2, rel=0.05)
    assert not torch.equal(y[0], seeded_dropout(x, seeds, 2**62 + 12, rate)[0])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    alone = seeded_dropout(x[1:2], seeds[1:2], 2**62 + 11, rate)
    assert torch.equal(alone[0], y[1])
