"""Collection on a real GPU: fused layers compute what modules do, and what is stored is what was computed."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch
from trenchcoat_trainer.checkpoints.shards import TORCH_DTYPES
from trenchcoat_trainer.checkpoints.teacher import EMBEDDING, open_teacher
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.data import TokenData, layout
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.layers.teacher import FusedTeacherLayers
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import collect, tokenize
from trenchcoat_trainer.stages.collect.copying import Hidden, copy_stream
from trenchcoat_trainer.stages.collect.through import Through

from tests.trainer.helpers.trainer_samples import make_config, make_documents, save_teacher
from tests.trainer.layers.teacher_checks import LAYERS, both, teacher_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: this machine has none"),
]

GPU = torch.device("cuda")
SEQUENCES, LENGTH, IN_OBJECT = 100, 64, 24
"""The last object has 4 sequences."""


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [21, 300])
def test_fused_layers_are_as_exact_as_modules_are(dtype: torch.dtype, bound: float, tokens: int) -> None:
    errors = teacher_errors(dtype, "cuda", tokens)
    print(errors)
    for fused, modules in zip(errors["fused"], errors["modules"], strict=True):
        assert fused < 1.2 * modules + 1e-6 and modules < bound


@pytest.mark.parametrize("kind", ["modules", "fused"])
@torch.inference_mode()
def test_a_graph_computes_what_kernels_one_by_one_do(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bit for bit, in two shapes; on the host too, where states come while later batches are computed."""
    layers = dict(zip(("modules", "fused"), both(torch.bfloat16, "cuda"), strict=True))[kind]
    sizes = (16, 16, 16, 16, 5, 16, 5, 16, 5, 5, 16)
    draw = torch.Generator().manual_seed(5)
    entering = [torch.randn(n, 700, 64, generator=draw).to(GPU, torch.bfloat16) for n in sizes]
    found = {}
    for whole in (False, True):
        watch, stream = FiniteWatch(layers.indices, GPU), copy_stream(GPU)
        through, found[whole] = Through(layers, watch, LAYERS, whole=whole), []
        for number, hidden in enumerate(entering):
            if number == len(entering) - 1:  # all that a first call sets up is there
                torch.cuda.set_sync_debug_mode("error")
            try:
                states = dict(through(hidden))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for layer, state in states.items():
                kept = Hidden(watch, stream, len(state), state)
                kept.put(0, state)
                found[whole].append((layer, state, kept))
    assert all(run.captured for _, run in through._runs.values()) and len(through._runs) == 2
    assert "cannot run as a CUDA graph" not in caplog.text
    for (layer, state, kept), (other, expected, _) in zip(found[True], found[False], strict=True):
        kept.check()
        assert layer == other and torch.equal(state, expected)
        assert torch.equal(kept.states, expected.cpu())


@torch.inference_mode()
def test_a_graph_takes_note_of_states_that_are_not_finite() -> None:
    layers = both(torch.bfloat16, "cuda")[1]
    watch = FiniteWatch(layers.indices, GPU)
    through = Through(layers, watch, LAYERS[1:], whole=True)
    hidden = torch.randn(2, 30, 64, device=GPU, dtype=torch.bfloat16)
    for _ in range(5):
        dict(through(hidden))
    watch.check()
    layers.layers[1].mlp.down_proj.weight[3, 3] = float("inf")
    dict(through(hidden))
    with pytest.raises(BadInputError, match=f"after layer {LAYERS[1]} are not finite"):
        watch.check()


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
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    batch_size: int | None,
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
    with caplog.at_level(logging.WARNING):
        collect.run(context)
    assert fused
    assert "CUDA graph" not in caplog.text  # none that could not be
    expected = computed(context)
    for boundary in (1, 2):
        found, truth = stored(context, boundary).double(), expected[2 * boundary - 1].cpu().double()
        assert found.shape == truth.shape == (SEQUENCES, LENGTH, 64)
        off = (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        assert float(off.max()) < 2e-2
