"""The options of the student's form, from the first Cria's training to a checkpoint that anyone loads."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import cria, evaluate, export

from tests.trainer.stages.conftest import write_random_stitch
from tests.trainer.stages.evaluate.test_evaluate import perplexity, stitched_student

DECODE = """
import sys
for name in ("trenchcoat_trainer", "trenchcoat_api"):
    sys.modules[name] = None  # as on a machine without this package
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.arange(2, 102).view(2, 50)
with torch.no_grad():
    full = model(ids, use_cache=False).logits
    steps = [model(ids[:, :3], use_cache=True)]
    cache = steps[0].past_key_values
    steps += [model(ids[:, n : n + 1], past_key_values=cache) for n in range(3, 50)]
    cached, plain = (
        model.generate(ids, max_new_tokens=40, do_sample=False, use_cache=use_cache, pad_token_id=1)
        for use_cache in (True, False)
    )
state = next(layer.state for layer in cache.layers if hasattr(layer, "state"))
memory = state.memory if hasattr(state, "memory") else state.keys
decoded = torch.cat([step.logits for step in steps], 1)
save_file({"full": full, "decoded": decoded, "memory": memory, "cached": cached, "plain": plain}, out)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "transfer", "state_shape"),
    [
        ({"keyMaps": "perKeyValueHead", "keepSoftmaxLayers": [1]}, {}, (2, 2, 16, 16)),
        ({}, {"windowDropout": "0.5"}, (2, 4, 16, 16)),
        (
            {
                "form": "window",
                "window": 6,
                "firstTokens": 4,
                "wide": {"layers": [1], "window": 20},
                "keepSoftmaxLayers": [3],
            },
            {},
            (2, 2, 4 + 6, 16),
        ),
    ],
    ids=["a key map for every key/value head, one softmax layer", "window dropout", "windows by layer"],
)
def test_through_training_evaluation_and_export(
    training_spec, collected_store, change, tmp_path, attention, transfer, state_shape
):
    spec = change(training_spec, attention=attention, transfer=transfer)
    folder = shutil.copytree(collected_store, tmp_path / "store")

    def run(stage, module, **options):
        context = open_context(spec, stage, folder=folder, place=Place(), **options)
        module.run(context)
        return context

    for index in range(3):
        run(Stage.CRIA, cria, cria=index)
    write_random_stitch(spec, folder)
    evaluated = run(Stage.EVALUATE, evaluate)
    measured = {
        row.name: float(row.perplexity) for row in evaluated.manifest(evaluated.artifact).facts.perplexities
    }
    student = stitched_student(evaluated)
    assert measured["stitched"] == pytest.approx(perplexity(student, evaluated), rel=1e-4)

    exported = run(Stage.EXPORT, export)
    out = tmp_path / "out.safetensors"
    process = subprocess.run(
        [sys.executable, "-c", DECODE, str(folder / "trenchcoat" / exported.artifact.prefix), str(out)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    result = load_file(out)
    with torch.no_grad():
        expected = student(torch.arange(2, 102).view(2, 50), use_cache=False).logits
    torch.testing.assert_close(result["full"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(result["decoded"], result["full"], rtol=0, atol=1e-4)
    assert result["memory"].shape == state_shape
    assert torch.equal(result["cached"], result["plain"])
    assert result["cached"].shape[1] > 60
