"""The teacher's fused layers: Hugging Face's numbers, one copy of the weights, and who gets which."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.layers.teacher import FusedTeacherLayers, open_layers

from tests.trainer.helpers.trainer_samples import make_config
from tests.trainer.layers.teacher_checks import LAYERS, both, random_weights, teacher_errors

GPU = torch.device("cuda")
RUN = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
from tests.trainer.layers.teacher_checks import teacher_errors
torch.set_num_threads(1)
print(json.dumps(teacher_errors()))
"""


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_it_is_as_exact_as_modules_are(dtype: torch.dtype, bound: float) -> None:
    errors = teacher_errors(dtype)
    assert len(errors["fused"]) == len(LAYERS)
    for fused, modules in zip(errors["fused"], errors["modules"], strict=True):
        assert fused < 1.05 * modules < bound


@pytest.mark.slow
def test_kernels_are_as_exact_as_modules_are() -> None:
    pytest.importorskip("triton", reason="needs Triton for its interpreter")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, json.dumps([os.getcwd(), *sys.path])],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout)
    assert len(errors["fused"]) == len(LAYERS) and max(errors["fused"]) < 1e-6


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}])
def test_angles_are_those_of_the_modules_where_they_depend_on_the_length(rope) -> None:
    modules, fused = both(max_position_embeddings=16, rope_parameters=rope)
    for tokens in (40, 12, 40):
        hidden = torch.randn(2, tokens, 64)
        with torch.no_grad():
            torch.testing.assert_close(fused(hidden), modules(hidden), rtol=1e-4, atol=1e-4)


def test_the_modules_weights_are_views_of_the_fused_ones() -> None:
    _, fused = both()
    hidden = torch.randn(2, 9, 64)
    with torch.no_grad():
        before = fused(hidden)
        for weight in fused.layers[0].parameters():
            weight.zero_()
        assert not torch.equal(fused(hidden), before)
    assert torch.equal(next(iter(fused.states(hidden))), hidden)  # a layer of zeros adds nothing


def test_weights_that_are_not_the_layers_are_told() -> None:
    layers = FusedTeacherLayers(make_config(), LAYERS, torch.float32, torch.device("cpu"))
    weights = dict(random_weights(layers, torch.float32))
    own = {name: weight for name, weight in weights.items() if name.startswith("model.layers.1.")}
    first = next(iter(own))
    for wrong, message in (
        (own | {first: own[first][:1]}, rf"{first} of shape \(1, 64\) does not belong to layer 1"),
        (own | {"model.layers.1.mlp.up_proj.bias": torch.zeros(4)}, r"up_proj\.bias .* does not belong"),
        ({name: weight for name, weight in own.items() if name != first}, f"layer 1 lacks {first}"),
        (weights, r"model\.layers\.2\..* does not belong to layer 1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layers.load_layer(1, wrong.items())


def test_a_gpu_has_them_fused_and_a_cpu_not() -> None:
    assert isinstance(open_layers(make_config(), LAYERS, torch.bfloat16, GPU), FusedTeacherLayers)
    assert type(open_layers(make_config(), LAYERS, torch.bfloat16, torch.device("cpu"))) is TeacherLayers


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 48}, "head_dim must be a power of 2, not 48"),
    ],
)
def test_a_teacher_that_kernels_do_not_take_is_run_by_modules(fields, reason, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        layers = open_layers(make_config(**fields), LAYERS, torch.bfloat16, GPU)
    assert type(layers) is TeacherLayers and layers.device == GPU
    assert reason in caplog.text
