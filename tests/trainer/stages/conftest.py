"""A store in which tokenize, collect and shard are done, for the stages that train."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.stages import collect, shard, tokenize
from trenchcoat_trainer.stages.context import StageContext
from trenchcoat_trainer.stages.opening import open_context

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
            "layersPerCria": 2,
            "dtype": "float32",
            "attention": {"window": 16, "featureDim": 8},
            "transfer": {"epochs": 2, "batchSize": 4, "microBatchSize": 4, "plateau": {"every": 2}},
            "criaLora": {"epochs": 2, "batchSize": 4, "microBatchSize": 2, "learningRate": "1e-2"},
        }
    )


@pytest.fixture(scope="session")
def collected_store(training_spec: TrenchcoatSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder store with the artifacts of tokenize, collect and shard; copy it, do not change it."""
    folder = tmp_path_factory.mktemp("collected")
    for stage in (tokenize, collect, shard):
        name = Stage(stage.__name__.rsplit(".", 1)[1])
        stage.run(open_context(training_spec, name, folder=folder, rank=0, world_size=1))
    return folder


@pytest.fixture
def open_training(collected_store: Path, tmp_path: Path) -> Iterator[Callable[..., StageContext]]:
    """Opens the context of a stage over a copy of the collected store below tmp_path, one per `store`."""

    def open_it(spec: TrenchcoatSpec, stage: Stage, *, store: str = "store", **options: Any) -> StageContext:
        folder = tmp_path / store
        if not folder.exists():
            shutil.copytree(collected_store, folder)
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
