"""Attention transfer with the teacher's products in FP8, on the CPU: near bf16's."""

import shutil

import pytest
import torch
from transformers import LlamaConfig
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.errors import BadInputError, PreemptedError
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import collect, shard, tokenize
from trenchcoat_trainer.stages import cria as cria_stage
from trenchcoat_trainer.stages.cria.fused import FusedCria, require_float8
from trenchcoat_trainer.students import LossWeights

from tests.trainer.helpers.tiny_student import make_cria, make_teacher
from tests.trainer.helpers.trainer_samples import StopAfter
from tests.trainer.stages.conftest import change

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "initializer_range": 0.1}


def relative(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((x - truth).norm() / truth.norm())


def transferred(float8: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of a step, and gradients by name."""
    cria = make_cria(make_teacher(3, **SIZES), 0, 2, dtype=torch.bfloat16)
    fused = FusedCria(cria)
    if float8:
        fused.quantise_teacher()
    parameters = cria.form_parameters()
    for parameter in parameters.values():
        parameter.requires_grad_()
    hidden = torch.randn(2, 29, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    losses = fused.transfer_step(cria, hidden, scale=1.0, weights=LossWeights())
    return losses, {name: parameter.grad for name, parameter in parameters.items()}


def test_losses_and_gradients_are_near_those_of_bfloat16():
    (losses, gradients), (plain, expected) = transferred(True), transferred(False)
    assert not torch.equal(losses, plain)
    torch.testing.assert_close(losses, plain, rtol=0.03, atol=0)
    assert max(relative(gradients[name], expected[name]) for name in expected) < 0.2


def test_what_is_quantised_is_given_back():
    cria = make_cria(make_teacher(3, **SIZES), 0, 2, dtype=torch.bfloat16)
    fused = FusedCria(cria)
    held = fused._bytes()
    fused.quantise_teacher()
    assert 1.5 < fused._bytes() / held < 1.6
    fused.drop_quantised()
    assert fused._bytes() == held


@pytest.fixture(scope="module")
def spec(training_spec):
    """The tiny run in bf16, whose Crias learn with products in FP8."""
    transfer = {"epochs": 2, "teacherProducts": "float8"}
    return change(training_spec, dtype="bfloat16", transfer=transfer)


@pytest.fixture(scope="module")
def store(spec, tmp_path_factory):
    """A folder store with what Crias read, which transfer's products do not change."""
    folder = tmp_path_factory.mktemp("bf16")
    for stage in (tokenize, collect, shard):
        name = Stage(stage.__name__.rsplit(".", 1)[1])
        stage.run(open_context(spec, name, folder=folder, place=Place()))
    return folder


def run(spec, store, index, stops=()):
    """The stage's maps, adapters and facts, once it was stopped after each of so many steps."""
    for steps in stops:
        with pytest.raises(PreemptedError):
            stop = StopAfter(steps - 1)
            cria_stage.run(open_context(spec, Stage.CRIA, cria=index, folder=store, place=Place(), stop=stop))
    context = open_context(spec, Stage.CRIA, cria=index, folder=store, place=Place())
    cria_stage.run(context)
    maps, adapters = (
        context.read_tensors(context.artifact, name)
        for name in (cria_stage.FEATURE_MAPS, cria_stage.ADAPTERS)
    )
    return maps, adapters, context.manifest(context.artifact).facts


def test_the_stage_learns_as_well_from_the_same_boundaries(spec, store):
    plain = change(spec, transfer={"teacherProducts": "dtype"})
    maps, _, facts = run(spec, store, 1)
    expected_maps, _, expected = run(plain, store, 1)
    assert float(facts.losses["transfer"]) < float(facts.losses["transferInitial"])
    assert float(facts.losses["lora"]) < float(facts.losses["loraInitial"])
    assert facts.losses != expected.losses
    for name, loss in expected.losses.items():
        assert float(facts.losses[name]) == pytest.approx(float(loss), rel=0.05), name
    for layer, error in expected.layer_errors.items():  # both measured in bf16
        assert float(facts.layer_errors[layer]) == pytest.approx(float(error), rel=0.05)
    moved = relative(maps["layers.2.w_q"], expected_maps["layers.2.w_q"])
    assert 0 < moved < 0.5


def test_killed_at_any_step_it_ends_with_the_same_maps_and_adapters(spec, store, tmp_path):
    copies = [shutil.copytree(store, tmp_path / name) for name in ("whole", "killed")]
    maps, adapters, facts = run(spec, copies[0], 2)
    found_maps, found_adapters, found = run(spec, copies[1], 2, stops=(1, 5, 4, 3))
    assert all(torch.equal(found_maps[name], maps[name]) for name in maps)
    assert all(torch.equal(found_adapters[name], adapters[name]) for name in adapters)
    assert found.losses == facts.losses


def test_what_has_no_such_products_is_refused():
    config = LlamaConfig(hidden_size=72, num_attention_heads=4, head_dim=16, intermediate_size=96)
    with pytest.raises(BadInputError, match=r"a width of 72 is no multiple of 16: remove spec.transfer"):
        require_float8(config, torch.device("cpu"))
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96, attention_bias=True)
    with pytest.raises(BadInputError, match=r"biases are not supported.*: remove spec.transfer"):
        require_float8(config, torch.device("cpu"))
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=48, intermediate_size=96)
    with pytest.raises(BadInputError, match=r"head_dim must be a power of 2, not 48\): remove spec.transfer"):
        require_float8(config, torch.device("cpu"))
