"""The steps over fused weights are those over modules, and share one copy of the weights with them."""

import pytest
import torch
from trenchcoat_trainer.models.adapters import adapted_modules
from trenchcoat_trainer.stages.cria import fused as fused_module
from trenchcoat_trainer.stages.cria.fused import FusedCria
from trenchcoat_trainer.stages.cria.lora import LoraPhase, block_step, layerwise_step
from trenchcoat_trainer.stages.cria.transfer import transfer_step
from trenchcoat_trainer.students import LossWeights

from tests.trainer.helpers.tiny_student import ATTENTION, make_cria, make_teacher
from tests.trainer.stages.cria.cria_training import boundaries, make_spec

WEIGHTS = {"weights": LossWeights(mse=1000.0, xent=1.0)}
KEEP_ONE = ATTENTION.model_copy(update={"keep_softmax_layers": [1]})


@pytest.fixture(scope="module")
def hidden():
    return boundaries(layers=3)[0][:2]


def assert_same(actual, expected) -> None:
    for name, parameter in expected.items():
        limit = 1e-4 * float(parameter.grad.abs().max())
        torch.testing.assert_close(actual[name].grad, parameter.grad, rtol=1e-3, atol=limit, msg=name)


@pytest.mark.parametrize("attention", [ATTENTION, KEEP_ONE], ids=["all hybrid", "one softmax layer"])
def test_transfer(hidden, attention):
    cria, plain = (make_cria(make_teacher(3), 0, 2, attention) for _ in range(2))
    fused = FusedCria(cria)
    for model in (cria, plain):
        for parameter in model.form_parameters().values():
            parameter.requires_grad_()
    losses = fused.transfer_step(cria, hidden, scale=0.5, **WEIGHTS)
    torch.testing.assert_close(losses, transfer_step(plain, hidden, scale=0.5, **WEIGHTS), rtol=1e-5, atol=0)
    assert_same(cria.form_parameters(), plain.form_parameters())
    with torch.no_grad():
        torch.testing.assert_close(cria(hidden), plain(hidden), rtol=0, atol=1e-5)


def test_weights_are_not_held_twice():
    cria = make_cria(make_teacher(3), 0, 0)
    fused = FusedCria(cria)
    layer = cria.layers["0"]
    assert layer.self_attn.k_proj.weight.untyped_storage().data_ptr() == fused._weights[0].qkv.data_ptr()
    assert layer.mlp.up_proj.weight.untyped_storage().data_ptr() == fused._weights[0].gate_up.data_ptr()


def phases(dropout: str) -> list[LoraPhase]:
    lora = {"dropout": dropout, "targetModules": ["q_proj", "k_proj"]}
    spec = make_spec(criaLora={"lora": lora})
    made = []
    for _ in range(2):
        cria = make_cria(make_teacher(3), 0, 2, KEEP_ONE)
        fused = FusedCria(cria)
        made.append(LoraPhase(cria, spec, fused.layerwise_step))
        made[-1].fused = fused
        with torch.no_grad():
            for number, parameter in enumerate(made[-1].adapters.values()):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return made


def test_layerwise(hidden):
    phase, plain = phases(dropout="0")
    losses = phase.fused.layerwise_step(phase._cria, hidden, scale=0.5, seed=0, **WEIGHTS)
    expected = layerwise_step(plain._cria, hidden, scale=0.5, seed=0, **WEIGHTS)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    hybrid = {name: p for name, p in plain.adapters.items() if ".layers.1." not in name}
    assert_same(phase.adapters, hybrid)


@pytest.mark.parametrize("is_stored", [True, False], ids=["stored boundary", "last Cria"])
@pytest.mark.parametrize("limit", [fused_module.GRAPH_LIMIT, 0.0], ids=["held", "computed twice"])
def test_block(hidden, is_stored, limit, monkeypatch):
    monkeypatch.setattr(fused_module, "GRAPH_LIMIT", limit)
    phase, plain = phases(dropout="0")
    target = boundaries(layers=3)[1][:2] if is_stored else None
    loss = phase.fused.block_step(phase._cria, hidden, target, scale=0.5, seed=0)
    expected = block_step(plain._cria, hidden, target, scale=0.5, seed=0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same(phase.adapters, plain.adapters)


def test_layerwise_dropout_follows_the_seed(hidden):
    phase, _ = phases(dropout="0.5")
    assert next(iter(adapted_modules(phase._cria).values())).lora_dropout["default"].training

    def losses(seed: int) -> list[float]:
        return phase.fused.layerwise_step(phase._cria, hidden, scale=1.0, seed=seed, **WEIGHTS).tolist()

    assert losses(0) == losses(0) != losses(1)
