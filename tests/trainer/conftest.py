"""Fixtures of the trainer's tests: a tiny teacher, text, and a spec over a folder store."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.opening import open_context

from tests.minio_server import MinioServer, minio_or_skip
from tests.trainer.helpers.trainer_samples import make_config, make_documents, save_teacher

# The machine's cores are shared with other processes: threads that wait for one another cost more than they
# save on such small models.
torch.set_num_threads(1)


# Stages over S3 would miss the GPUs that their specs ask for.
os.environ.setdefault("TRENCHCOAT_DEVICE", "cpu")
# Starting processes takes longer than encoding texts as short as these; what tests them asks for them.
os.environ["TRENCHCOAT_TOKENIZE_PROCESSES"] = "1"


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher on disk, in fp32, with untied embeddings; do not change it."""
    folder = tmp_path_factory.mktemp("teacher")
    save_teacher(folder, make_config())
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two JSONL files of 300 documents; do not change it."""
    folder = tmp_path_factory.mktemp("text")
    documents = make_documents(300)
    for part in range(2):
        lines = [json.dumps({"text": text}) for text in documents[part::2]]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A real MinIO."""
    with minio_or_skip(tmp_path_factory.mktemp("minio")) as server:
        yield server


SpecFactory = Callable[..., TrenchcoatSpec]


@pytest.fixture
def make_spec(teacher_folder: Path, text_folder: Path) -> SpecFactory:
    """Makes a spec over the tiny teacher and text; keyword arguments replace or extend its YAML fields."""

    def make(**changes: Any) -> TrenchcoatSpec:
        body: dict[str, Any] = {
            "model": {"source": teacher_folder.as_uri()},
            "data": {
                "source": f"{text_folder.as_uri()}/*.jsonl",
                "tokens": 6400,
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
        }
        for name, value in changes.items():
            old = body.get(name)
            body[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
        return TrenchcoatSpec.model_validate(body)

    return make


@pytest.fixture
def open_stage(tmp_path: Path) -> Callable[..., StageContext]:
    """Opens the context of a stage over a folder store below tmp_path."""

    def open_it(spec: TrenchcoatSpec, stage: Stage, **options: Any) -> StageContext:
        return open_context(spec, stage, folder=tmp_path / "store", **options)

    return open_it
