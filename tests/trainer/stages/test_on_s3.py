"""The first stages on a real S3 store: teacher and text in it, artifacts too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from minio import Minio
from minio.versioningconfig import ENABLED, SUSPENDED, VersioningConfig
from safetensors.torch import load_file
from trenchcoat_api.artifacts import Progress
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_cria_weights, teacher_files
from trenchcoat_trainer.cli import main
from trenchcoat_trainer.data import CriaData
from trenchcoat_trainer.errors import StoreError
from trenchcoat_trainer.runtime import progress
from trenchcoat_trainer.runtime.clock import Clock
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.progress import ProgressReporter
from trenchcoat_trainer.stages import collect, shard, tokenize
from trenchcoat_trainer.store.parts import Part, Span

from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer
from tests.trainer.helpers.killing import write_spec
from tests.trainer.helpers.trainer_samples import make_documents


@pytest.fixture
def spec(
    make_spec, minio_server: MinioServer, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> TrenchcoatSpec:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    store = minio_server.store()
    for file in teacher_folder.iterdir():
        store.write_file(f"teacher/{file.name}", file)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in make_documents(300))
    store.write("text/all.jsonl", lines.encode())
    made: TrenchcoatSpec = make_spec(
        model={"source": f"s3://{BUCKET}/teacher"},
        data={"source": f"s3://{BUCKET}/text/*.jsonl"},
        store={"endpoint": minio_server.endpoint},
    )
    return made


def test_the_stages_run_on_s3_as_in_a_folder(
    spec: TrenchcoatSpec, tmp_path: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = {}
    for stage, module in ((Stage.TOKENIZE, tokenize), (Stage.SHARD, shard), (Stage.COLLECT, collect)):
        contexts[stage] = open_context(spec, stage)
        module.run(contexts[stage])
    cria = open_context(spec, Stage.CRIA, cria=1)
    assert cria.cria is not None
    batch = next(CriaData(cria, cria.cria, lambda ids: ids, with_targets=True).batches(epoch=0, batch_size=8))
    assert batch.inputs.shape == (8, 64, 64)
    assert batch.targets is not None
    weights = load_cria_weights(cria, cria.cria)
    original: dict[str, torch.Tensor] = {}
    for file in teacher_folder.glob("*.safetensors"):
        original |= load_file(file)
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights.items())
    assert "teacher/tokenizer.json" in teacher_files(cria)
    for stage, context in contexts.items():
        listed = {
            entry.path.removeprefix(context.artifact.prefix)
            for entry in context.store.list(context.artifact.prefix)
        }
        manifest = cria.manifest(context.artifact)
        told = {"manifest.json", "progress.json", "paces.json"}
        assert listed == {item.path for item in manifest.objects} | told, stage
    assert main(["rates", str(write_spec(spec, tmp_path)), "--name", "here"]) == ExitCode.OK
    printed = capsys.readouterr()
    assert "default: here" in printed.out
    assert "of cria, stitch, adapt, evaluate, export this run tells no times" in printed.err.replace(
        "\n", " "
    )


def test_no_object_lies_below_the_name_of_another(
    spec: TrenchcoatSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MinIO keeps such objects and lists none of them: they would be there for ever."""
    written: set[str] = set()
    put = Minio.put_object

    def noting(client: Minio, bucket: str, name: str, *arguments: Any, **options: Any) -> Any:
        written.add(name)
        return put(client, bucket, name, *arguments, **options)

    monkeypatch.setattr(Minio, "put_object", noting)
    apart = spec.model_copy(update={"store": spec.store.model_copy(update={"prefix": "apart"})})
    for stage, module in ((Stage.TOKENIZE, tokenize), (Stage.SHARD, shard), (Stage.COLLECT, collect)):
        context = open_context(apart, stage)
        module.run(context)
        written |= {context.artifact.deletion_path, context.artifact.checkpoint_prefix + "state.safetensors"}
    folders = {name[:at] for name in written for at in range(len(name)) if name[at] == "/"}
    assert len(written) > 20 and not written & folders


def test_a_key_limited_to_the_prefix_that_may_delete_nothing(
    make_spec, minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a key may neither ask for the bucket nor list it; what was saved on the way stays."""
    keys = minio_server.allow("narrow", "team/run", "GetObject", "PutObject")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["secret_key"])
    narrow = make_spec(store={"endpoint": minio_server.endpoint, "prefix": "team/run"})
    for stage, module in ((Stage.TOKENIZE, tokenize), (Stage.SHARD, shard)):
        context = open_context(narrow, stage)
        module.run(context)
        assert context.store.exists(context.artifact.manifest_path)
        assert any(context.store.list(context.artifact.checkpoint_prefix))
    assert "stays, though nobody needs it: " in caplog.text and "AccessDenied" in caplog.text
    elsewhere = make_spec(store={"endpoint": minio_server.endpoint, "prefix": "team/other"})
    with pytest.raises(StoreError, match="refused the credentials"):
        open_context(elsewhere, Stage.TOKENIZE)


def test_parts_that_cannot_be_deleted_stay(
    minio_server: MinioServer, caplog: pytest.LogCaptureFixture
) -> None:
    keys = minio_server.allow("joiner", "joined", "GetObject", "PutObject")
    store = minio_server.store(**keys)
    first, second = bytes(5 << 20), bytes(6 << 20)
    store.write("joined/source", second)
    parts = [Part((first,), False), Part((Span("joined/source", 0, len(second)),), is_copied=True)]
    assert store.compose("joined/whole", parts, store, "joined/scratch-") is not None
    assert store.size("joined/whole") == len(first) + len(second)
    assert store.exists("joined/scratch-00000")
    assert "stays, though nobody needs it" in caplog.text


def test_where_versions_are_kept_progress_is_told_less_often(
    make_spec, minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    # MinIO may be slow here.
    monkeypatch.setattr(progress, "FIRST_SECONDS", progress.EVERY_SECONDS_VERSIONED)
    versions = {}
    for bucket in ("kept-versions", "no-versions", "suspended-versions"):
        client = minio_server.store()._client
        client.make_bucket(bucket)
        for status in {"kept-versions": [ENABLED], "suspended-versions": [ENABLED, SUSPENDED]}.get(
            bucket, []
        ):
            client.set_bucket_versioning(bucket, VersioningConfig(status))
        spec = make_spec(store={"endpoint": minio_server.endpoint, "bucket": bucket})
        context = open_context(spec, Stage.TOKENIZE)
        reporter = ProgressReporter(context.store, context.artifact, Clock(context.store, context.artifact))
        for step in range(1, 6):
            reporter.update("encode", step, 5, fraction=step / 5)
        path = context.artifact.progress_path
        listed = client.list_objects(bucket, prefix=path, include_version=True)
        versions[bucket] = len(list(listed))
        assert Progress.model_validate_json(context.store.read(path)).step == 5
    assert versions == {"kept-versions": 2, "no-versions": 1, "suspended-versions": 1}
