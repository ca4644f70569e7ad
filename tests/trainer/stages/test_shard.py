"""Sharding: the same bytes, in other objects."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import (
    load_config,
    load_cria_weights,
    load_embeddings,
    load_rest_weights,
    teacher_files,
)
from trenchcoat_trainer.errors import BadInputError, CorruptObjectError, PreemptedError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.stages import shard, tokenize

from tests.trainer.helpers.killing import write_spec
from tests.trainer.helpers.large_teacher import peak_memory, save_sparse_teacher
from tests.trainer.helpers.trainer_samples import StopAfter, make_config, save_teacher


@pytest.fixture
def spec(make_spec, open_stage) -> TrenchcoatSpec:
    made: TrenchcoatSpec = make_spec(data={"tokens": 640})
    tokenize.run(open_stage(made, Stage.TOKENIZE))
    return made


def load_all(context: StageContext) -> dict[str, torch.Tensor]:
    weights = load_rest_weights(context)
    for cria in context.crias:
        own = load_cria_weights(context, cria)
        assert {int(name.split(".")[2]) for name in own} == set(cria.layers)
        weights |= own
    return weights


def test_shards_hold_the_checkpoints_tensors(spec: TrenchcoatSpec, open_stage, teacher_folder: Path) -> None:
    shard.run(open_stage(spec, Stage.SHARD))
    context = open_stage(spec, Stage.CRIA, cria=0)
    original: dict[str, torch.Tensor] = {}
    for file in teacher_folder.glob("*.safetensors"):
        original |= load_file(file)
    weights = load_all(context)
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in original.items())
    assert torch.equal(load_embeddings(context), original["model.embed_tokens.weight"])


def test_shards_can_be_read_by_the_library(spec: TrenchcoatSpec, open_stage, tmp_path: Path) -> None:
    context = open_stage(spec, Stage.SHARD)
    shard.run(context)
    context.store.read_file(context.artifact.prefix + "cria-01/layer-003.safetensors", tmp_path / "layer")
    assert len(load_file(tmp_path / "layer")) == 9


def test_the_teachers_files_are_kept(spec: TrenchcoatSpec, open_stage, teacher_folder: Path) -> None:
    shard.run(open_stage(spec, Stage.SHARD))
    context = open_stage(spec, Stage.CRIA, cria=0)
    assert set(teacher_files(context)) == {
        f"teacher/{name}"
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    config = load_config(context)
    assert (config.num_hidden_layers, config.rope_parameters) == (5, make_config().rope_parameters)


def test_a_stopped_shard_goes_on_where_it_was(spec: TrenchcoatSpec, open_stage) -> None:
    stopped = open_stage(spec, Stage.SHARD, stop=StopAfter(20))
    with pytest.raises(PreemptedError):
        shard.run(stopped)
    context = open_stage(spec, Stage.SHARD)
    assert context.writer.recorded("rest/embeddings.safetensors")
    assert context.writer.recorded("cria-00/layer-000.safetensors")
    assert not context.writer.recorded("rest/head.safetensors")
    shard.run(context)
    assert len(load_all(open_stage(spec, Stage.CRIA, cria=0))) == 5 * 9 + 3


def test_a_damaged_shard_is_named(spec: TrenchcoatSpec, open_stage) -> None:
    context = open_stage(spec, Stage.SHARD)
    shard.run(context)
    path = context.artifact.prefix + "cria-01/layer-002.safetensors"
    for damaged in (context.store.read(path)[:-1], context.store.read(path) + b"\0"):
        context.store.write(path, damaged)
        context = open_stage(spec, Stage.CRIA, cria=1)
        with pytest.raises(CorruptObjectError, match=r"cria-01/layer-002\.safetensors"):
            load_cria_weights(context, context.cria)


def test_weights_come_in_the_specs_number_format(make_spec, open_stage) -> None:
    spec = make_spec(dtype="bfloat16", data={"tokens": 640})
    tokenize.run(open_stage(spec, Stage.TOKENIZE))
    shard.run(open_stage(spec, Stage.SHARD))
    assert {tensor.dtype for tensor in load_all(open_stage(spec, Stage.CRIA, cria=0)).values()} == {
        torch.bfloat16
    }


def test_a_file_that_the_index_promises_too_much_of_is_told(make_spec, open_stage, tmp_path: Path) -> None:
    source = tmp_path / "teacher"
    save_teacher(source, make_config())
    spec = make_spec(model={"source": source.as_uri()}, data={"tokens": 640})
    tokenize.run(open_stage(spec, Stage.TOKENIZE))
    index = json.loads((source / "model.safetensors.index.json").read_text())
    names = index["weight_map"]
    names["model.norm.weight"] = names["model.layers.0.input_layernorm.weight"]
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInputError, match=r"lacks the tensor model\.norm\.weight"):
        shard.run(open_stage(spec, Stage.SHARD))


@pytest.mark.slow
def test_memory_stays_small_for_a_checkpoint_of_any_size(make_spec, open_stage, tmp_path: Path) -> None:
    def peak(layer_bytes: int) -> int:
        folder = tmp_path / str(layer_bytes)
        assert save_sparse_teacher(folder, layer_bytes) > layer_bytes
        spec = make_spec(model={"source": folder.as_uri()}, data={"tokens": 640}, layersPerCria=1)
        tokenize.run(open_stage(spec, Stage.TOKENIZE))
        needed = peak_memory(["shard", "--spec", write_spec(spec, tmp_path), "--store", tmp_path / "store"])
        context = open_stage(spec, Stage.CRIA, cria=0)
        assert sum(item.size for item in context.manifest(context.artifacts.shard).objects) > layer_bytes
        shutil.rmtree(tmp_path / "store")
        return needed

    small, large = peak(100_000_000), peak(1_000_000_000)
    assert large < 150e6
    assert large - small < 0.01 * 900e6
