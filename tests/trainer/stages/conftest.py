"""A store in which tokenize, collect and shard are done, for the stages that train."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import collect, cria, shard, tokenize

TOKENS = 20 * 64  # 20 sequences


@pytest.fixture(scope="session")
def training_spec(teacher_folder: Path, text_folder: Path) -> TrenchcoatSpec:
    """Three Crias of the tiny teacher, of 2, 2 and 1 layers."""
    return TrenchcoatSpec.model_validate(
        {
            "model": {"source": teacher_folder.as_uri()},
            "data": {
                "source": f"{text_folder.as_uri()}/*.jsonl",
                "tokens": TOKENS,
                "sequenceLength": 64,
                "heldOutTokens": 640,
                "heldOutPercent": 10,
            },
            "store": {
                "endpoint": "http://127.0.0.1:9000",
                "bucket": "trenchcoat",
                "credentialsSecretRef": {"name": "minio"},
            },
            "preset": "shipped",
            "layersPerCria": 2,
            "dtype": "float32",
            "attention": {"window": 16, "featureDim": 8},
            "transfer": {"epochs": 2, "batchSize": 4, "microBatchSize": 4, "plateau": {"every": 2}},
            "stitch": {"batchSize": 4, "learningRate": "1e-2", "lora": {"dropout": "0"}},
            "evaluate": {"recallSamples": 4, "samples": 0, "adaptedTeacher": "never"},
            "criaLora": {"epochs": 2, "batchSize": 4, "microBatchSize": 2, "learningRate": "1e-2"},
        }
    )


@pytest.fixture(scope="session")
def collected_store(training_spec: TrenchcoatSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder store with the artifacts of tokenize, collect and shard; copy it, do not change it."""
    folder = tmp_path_factory.mktemp("collected")
    for stage in (tokenize, collect, shard):
        name = Stage(stage.__name__.rsplit(".", 1)[1])
        stage.run(open_context(training_spec, name, folder=folder, place=Place()))
    return folder


@pytest.fixture(scope="session")
def trained_store(
    training_spec: TrenchcoatSpec, collected_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder store in which all Crias are trained as well; copy it, do not change it."""
    folder = tmp_path_factory.mktemp("trained") / "store"
    shutil.copytree(collected_store, folder)
    for index in range(3):
        cria.run(open_context(training_spec, Stage.CRIA, cria=index, folder=folder, place=Place()))
    return folder


@pytest.fixture(scope="session")
def spread_spec(training_spec: TrenchcoatSpec) -> TrenchcoatSpec:
    """Crias that were never trained, and a stitch that starts at random positions."""
    untrained = {"transfer": {"epochs": 0}, "criaLora": {"epochs": 0}}
    return change(training_spec, data={"startPositions": {"share": "0.5"}}, **untrained)


@pytest.fixture(scope="session")
def spread_store(
    spread_spec: TrenchcoatSpec, collected_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder store with all Crias of `spread_spec`; copy it, do not change it."""
    folder = tmp_path_factory.mktemp("spread") / "store"
    shutil.copytree(collected_store, folder)
    for index in range(3):
        cria.run(open_context(spread_spec, Stage.CRIA, cria=index, folder=folder, place=Place()))
    return folder


@pytest.fixture(scope="session")
def stitched_store(
    training_spec: TrenchcoatSpec, trained_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder store with a stitch of random adapters, so that no test but its own waits for DeepSpeed."""
    folder = tmp_path_factory.mktemp("stitched") / "store"
    shutil.copytree(trained_store, folder)
    write_random_stitch(training_spec, folder)
    return folder


def write_random_stitch(spec: TrenchcoatSpec, folder: Path) -> None:
    """Complete the stitch with random adapters."""
    context = open_context(spec, Stage.STITCH, folder=folder, place=Place())
    generator = torch.Generator().manual_seed(0)
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
    adapters = {}
    for layer in range(5):
        for projection, (outputs, inputs) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            rank = spec.stitch.lora.rank
            adapters[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / 8
            adapters[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) / 8
    context.writer.write_tensors("adapters.safetensors", adapters)
    context.writer.finish()


@pytest.fixture
def open_training(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., StageContext]]:
    """Opens the context of a stage over a copy of the store that it needs, at tmp_path / `store`.

    `trained` names the fixture that stages after the Crias copy.
    """

    def open_it(
        spec: TrenchcoatSpec,
        stage: Stage,
        *,
        store: str = "store",
        trained: str = "trained_store",
        **options: Any,
    ) -> StageContext:
        folder = tmp_path / store
        if not folder.exists():
            source = "collected_store" if stage is Stage.CRIA else trained
            shutil.copytree(request.getfixturevalue(source), folder)
        return open_context(spec, stage, folder=folder, **options)

    yield open_it


def change(spec: TrenchcoatSpec, **fields: Any) -> TrenchcoatSpec:
    """A spec in which YAML fields of nested objects are replaced: change(spec, transfer={"epochs": 0})."""
    body = spec.model_dump(by_alias=True, mode="json")
    for name, value in fields.items():
        body[name] = body[name] | value if isinstance(value, dict) else value
    return TrenchcoatSpec.model_validate(body)


@pytest.fixture(name="change")
def change_fixture() -> Callable[..., TrenchcoatSpec]:
    """`change`, for tests."""
    return change
