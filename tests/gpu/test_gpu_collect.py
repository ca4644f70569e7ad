"""Collection on a real GPU: fused layers compute what modules do, and what is stored is what was computed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES
from trenchcoat_trainer.checkpoints.teacher import EMBEDDING, open_teacher
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.data import TokenData, layout
from trenchcoat_trainer.layers.teacher import FusedTeacherLayers
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import collect, tokenize

from tests.trainer.helpers.trainer_samples import make_config, make_documents, save_teacher
from tests.trainer.layers.teacher_checks import teacher_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

GPU = torch.device("cuda")
SEQUENCES, LENGTH, IN_OBJECT = 100, 64, 24
"""The last object has 4 sequences."""


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("tokens", [21, 300])
def test_fused_layers_compute_what_modules_do(dtype: torch.dtype, bound: float, tokens: int) -> None:
    assert max(teacher_errors(dtype, "cuda", tokens)) < bound


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and text."""
    folder = tmp_path_factory.mktemp("inputs")
    save_teacher(folder / "teacher", make_config(head_dim=16, initializer_range=0.1))
    lines = [json.dumps({"text": text}) for text in make_documents(300)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def spec_of(inputs: Path, batch_size: int | None) -> TrenchcoatSpec:
    return TrenchcoatSpec.model_validate(
        {
            "model": {"source": (inputs / "teacher").as_uri()},
            "data": {
                "source": (inputs / "text.jsonl").as_uri(), "tokens": SEQUENCES * LENGTH,
                "sequenceLength": LENGTH, "heldOutTokens": 640, "heldOutPercent": 10,
            },
            "store": {
                "endpoint": "http://localhost:9000", "bucket": "gpu",
                "credentialsSecretRef": {"name": "none"},
            },
            "preset": "shipped",
            "layersPerCria": 2,
            "attention": {"window": 16, "featureDim": 8},
            "collect": {"batchSize": batch_size},
        }
    )  # fmt: skip


def stored(context: StageContext, boundary: int) -> torch.Tensor:
    """Return all states of a boundary, in order."""
    places = [layout.boundary_path(boundary, group) for group in range(-(-SEQUENCES // IN_OBJECT))]
    objects = [load(context.store.read(context.artifact.prefix + place)) for place in places]
    return torch.cat([tensors[layout.HIDDEN] for tensors in objects])


def computed(context: StageContext) -> list[torch.Tensor]:
    """Return the states after each of four layers by Hugging Face's modules."""
    teacher, dtype = open_teacher(context.spec, context.store), TORCH_DTYPES[context.spec.dtype]
    modules = TeacherLayers(teacher.config, range(4), dtype, GPU)
    for index in modules.indices:
        modules.read_layer(teacher, index)
    ids = TokenData(context).read(0, SEQUENCES).long().to(GPU)
    with torch.inference_mode():
        hidden = torch.nn.functional.embedding(ids, teacher.read_tensor(EMBEDDING, dtype).to(GPU))
        return list(modules.states(hidden))


@pytest.mark.parametrize("batch_size", [None, 5, 1])
def test_what_is_stored_is_what_the_layers_compute(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    """Objects of several batches, the last of them smaller: no batch's states end up in another's place."""
    spec = spec_of(inputs, batch_size)
    monkeypatch.setattr(layout, "HIDDEN_BYTES", IN_OBJECT * LENGTH * 64 * 2)
    tokenize.run(open_context(spec, Stage.TOKENIZE, folder=tmp_path))
    fused, states = [], FusedTeacherLayers.states
    monkeypatch.setattr(
        FusedTeacherLayers, "states", lambda layers, hidden: fused.append(1) or states(layers, hidden)
    )
    context = open_context(spec, Stage.COLLECT, folder=tmp_path)
    collect.run(context)
    assert fused
    expected = computed(context)
    for boundary in (1, 2):
        found, truth = stored(context, boundary).double(), expected[2 * boundary - 1].cpu().double()
        assert found.shape == truth.shape == (SEQUENCES, LENGTH, 64)
        off = (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        assert float(off.max()) < 2e-2
