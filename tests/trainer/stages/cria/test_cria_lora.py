"""LoRA by Cria: both objectives, teacher forcing, dropout and grouping."""

import pytest
import torch
from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.models.adapters import adapted_modules
from trenchcoat_trainer.stages.cria.lora import LoraPhase, block_step, layerwise_step, teacher
from trenchcoat_trainer.stages.cria.transfer import transfer_step
from trenchcoat_trainer.students import Heads, LossWeights
from trenchcoat_trainer.students.lolcats import naive
from trenchcoat_trainer.students.lolcats.hybrid import HybridInputs

from tests.trainer.helpers.tiny_student import make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import batches, boundaries, make_spec

WEIGHTS = {"weights": LossWeights(mse=1000.0, xent=1.0)}
FAST = {"batchSize": 4, "microBatchSize": 1, "learningRate": "1e-2"}


@pytest.fixture(scope="module")
def hidden():
    return boundaries(layers=4)


def start(first: int, last: int, **settings) -> LoraPhase:
    """A phase on layers first to last of the teacher."""
    cria = make_cria(make_teacher(4), first, last)
    return LoraPhase(cria, make_spec(criaLora=FAST | settings))


def train(phase: LoraPhase, inputs, targets=None, epochs: int = 3) -> list[float]:
    steps = enumerate(batches(inputs, targets, 4, epochs))
    return [phase.step(batch, epoch=0, step=step) for step, batch in steps]


def random_adapters(phase: LoraPhase, layer: int) -> None:
    with torch.no_grad():
        for name, parameter in phase.adapters.items():
            if f".layers.{layer}." in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(3))


def no_dropout(phase: LoraPhase) -> None:
    for module in adapted_modules(phase._cria).values():
        module.lora_dropout.eval()


def test_before_training_layerwise_is_the_loss_of_attention_transfer(hidden):
    phase = start(0, 3)
    cria = make_cria(make_teacher(4), 0, 3)
    for parameter in cria.form_parameters().values():
        parameter.requires_grad_()
    expected = transfer_step(cria, hidden[0][:2], scale=1.0, **WEIGHTS)
    assert torch.equal(layerwise_step(phase._cria, hidden[0][:2], scale=1.0, seed=0, **WEIGHTS), expected)


def test_layerwise_compares_the_student_with_adapters_and_the_teacher_without(hidden):
    phase = start(1, 1, lora={"targetModules": ["q_proj", "k_proj", "v_proj"]})
    no_dropout(phase)
    random_adapters(phase, 1)
    losses = layerwise_step(phase._cria, hidden[1][:2], scale=1.0, seed=0, **WEIGHTS)
    gradients = {name: p.grad.clone() for name, p in phase.adapters.items()}

    layer = phase._cria.layers["1"]
    attention = layer.self_attn
    normed, rope = layer.input_layernorm(hidden[1][:2]), phase._cria.rope(hidden[1])
    with torch.no_grad(), teacher(phase._cria):
        of_teacher = attention.project(normed, rope)
    of_student = attention.project(normed, rope)
    maps = (attention.w_q, attention.w_k, attention.window_factor)
    mse, xent, _ = naive.distill_loss(HybridInputs(*of_student, *maps, 8), Heads(*of_teacher))
    torch.testing.assert_close(losses, (1000 * mse + xent).detach()[None], rtol=1e-5, atol=0)
    expected = torch.autograd.grad(1000 * mse + xent, list(phase.adapters.values()))
    for (name, actual), wanted in zip(gradients.items(), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()), msg=name)


def test_layerwise_is_teacher_forced(hidden):
    phase = start(0, 3)
    before = layerwise_step(phase._cria, hidden[0][:2], scale=1.0, seed=0, **WEIGHTS)
    random_adapters(phase, 1)
    after = layerwise_step(phase._cria, hidden[0][:2], scale=1.0, seed=0, **WEIGHTS)
    assert after[1] != before[1]
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_layerwise_adapters_do_not_depend_on_how_layers_are_grouped(hidden):
    whole, part = start(0, 3), start(2, 3)
    train(whole, hidden[0])
    train(part, hidden[2])
    assert all(torch.equal(whole.adapters[name], parameter) for name, parameter in part.adapters.items())
    assert any(parameter.abs().max() > 0 for name, parameter in part.adapters.items() if "lora_B" in name)


def test_block_matches_the_next_boundary(hidden):
    phase = start(1, 2, objective="block", lora={"targetModules": ["q_proj", "o_proj"], "dropout": "0"})
    loss = block_step(phase._cria, hidden[1][:3], hidden[3][:3], scale=1.0, seed=0)
    with torch.no_grad():
        output, target = phase._cria(hidden[1][:3]), hidden[3][:3]
    shares = (output - target).square().sum(-1) / target.square().sum(-1)
    torch.testing.assert_close(loss, shares.mean())
    losses = train(phase, hidden[1], hidden[3], epochs=8)
    assert losses[-1] < 0.9 * losses[0]


def test_block_without_a_stored_boundary_runs_the_teachers_layers(hidden):
    phase = start(2, 3, objective="block")
    random_adapters(phase, 3)
    stored = block_step(phase._cria, hidden[2][:2], hidden[4][:2], scale=1.0, seed=0)
    computed = block_step(phase._cria, hidden[2][:2], None, scale=1.0, seed=0)
    torch.testing.assert_close(computed, stored, rtol=1e-4, atol=0)
    assert all(parameter.requires_grad for parameter in phase.adapters.values())


@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_dropout_is_a_function_of_seed_epoch_and_step(hidden, objective):
    def loss(epoch: int, step: int) -> float:
        phase = start(0, 0, objective=objective, lora={"dropout": "0.5"})
        random_adapters(phase, 0)
        torch.manual_seed(step)  # what the global generator did before must not matter
        return phase.step(Batch(hidden[0][:2], hidden[1][:2]), epoch=epoch, step=step)

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3
