"""Sharding within one S3 store: the store copies, on its own side, and what it says of the copies is true."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from minio import Minio
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from trenchcoat_api.artifacts import StoredObject
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import load_cria_weights, load_rest_weights
from trenchcoat_trainer.errors import CorruptObjectError, PreemptedError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.runtime.writer import ArtifactWriter
from trenchcoat_trainer.stages import shard, tokenize
from trenchcoat_trainer.store import S3Store
from trenchcoat_trainer.store.parts import MAX_COPY_BYTES, MIN_BYTES

from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer
from tests.trainer.helpers.killing import write_spec
from tests.trainer.helpers.large_teacher import peak_memory, save_sparse_teacher
from tests.trainer.helpers.trainer_samples import make_config, save_tokenizer

LAYER = "cria-00/layer-000.safetensors"


@pytest.fixture
def s3(minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch) -> MinioServer:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return minio_server


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, torch.Tensor]:
    """A teacher of two layers with matrices of 6 MiB and more among small ones, and its tensors."""
    folder = tmp_path / "teacher"
    config = make_config(hidden_size=1024, intermediate_size=3100, num_hidden_layers=2, vocab_size=300)
    config.save_pretrained(folder)
    save_tokenizer(folder)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    tensors = {
        name: torch.randn(tensor.shape).bfloat16()
        for name, tensor in model.state_dict().items()
        if not name.endswith("inv_freq")
    }
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, folder / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, folder / "model-2.safetensors")
    weight_map = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


@pytest.fixture
def spec(make_spec: Callable[..., TrenchcoatSpec], s3: MinioServer, sources, tmp_path: Path, request):
    """A spec over that teacher in another bucket of the same store."""
    store = s3.store()
    bucket = re.sub(r"[^a-z]", "-", request.node.name)[:50].strip("-")
    if not store._client.bucket_exists(bucket):
        store._client.make_bucket(bucket)
    for file in (tmp_path / "teacher").iterdir():
        store.in_bucket(bucket).write_file(f"large/{file.name}", file)
    made = make_spec(
        model={"source": f"s3://{bucket}/large"},
        data={"tokens": 640},
        store={"endpoint": s3.endpoint, "prefix": bucket},
        layersPerCria=1,
        dtype="bfloat16",
    )
    tokenize.run(open_context(made, Stage.TOKENIZE))
    return made


def stored(context: StageContext, path: str) -> StoredObject:
    return context.stored_object(context.artifacts.shard, path)


def load_all(spec: TrenchcoatSpec) -> dict[str, torch.Tensor]:
    context = open_context(spec, Stage.CRIA, cria=0)
    weights = load_rest_weights(context)
    for cria in context.crias:
        weights |= load_cria_weights(context, cria)
    return weights


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that this process reads from the store and sends to it."""
    counted: Counter[str] = Counter()
    read, send = S3Store._stream_once, Minio._upload_part
    put = Minio._put_object

    def counting_read(*arguments: Any) -> Iterator[bytes]:
        for chunk in read(*arguments):
            counted["read"] += len(chunk)
            yield chunk

    def counting_put(client: Minio, bucket: str, path: str, data: bytes, *more: Any, **named: Any) -> Any:
        counted["sent"] += len(data)
        return put(client, bucket, path, data, *more, **named)

    def counting_send(client: Minio, bucket: str, path: str, data: bytes, *more: Any, **named: Any) -> Any:
        counted["sent"] += len(data)
        return send(client, bucket, path, data, *more, **named)

    monkeypatch.setattr(S3Store, "_stream_once", counting_read)
    monkeypatch.setattr(Minio, "_put_object", counting_put)
    monkeypatch.setattr(Minio, "_upload_part", counting_send)
    return counted


def test_the_store_copies_and_the_bytes_are_the_teachers(
    spec: TrenchcoatSpec, sources: dict[str, torch.Tensor], tmp_path: Path, traffic: Counter[str]
) -> None:
    context = open_context(spec, Stage.SHARD)
    traffic.clear()
    shard.run(context)
    whole = sum(tensor.nbytes for tensor in sources.values())
    assert 0 < traffic["read"] < 0.5 * whole and 0 < traffic["sent"] < 0.5 * whole
    weights = load_all(spec)
    assert weights.keys() == sources.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in sources.items())
    checksum = stored(open_context(spec, Stage.CRIA, cria=0), LAYER).by_store
    assert checksum is not None and all(size >= MIN_BYTES for size in checksum.part_sizes[:-1])
    context.store.read_file(context.artifact.prefix + LAYER, tmp_path / "layer")
    assert len(load_file(tmp_path / "layer")) == 9
    assert not list(context.store.list(context.artifact.checkpoint_prefix))


def test_an_object_that_was_copied_is_not_copied_again(
    spec: TrenchcoatSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    stop = StopRequest()
    copy = ArtifactWriter.copy_spans

    def counting(writer: ArtifactWriter, path: str, *more: Any) -> StoredObject | None:
        done = copy(writer, path, *more)
        if done is not None:
            copied.append(path)
            stop.requested = True
        return done

    monkeypatch.setattr(shard, "PARALLEL", 1)  # one after the other: the second layer is still to come
    monkeypatch.setattr(ArtifactWriter, "copy_spans", counting)
    with pytest.raises(PreemptedError):
        shard.run(open_context(spec, Stage.SHARD, stop=stop))
    context = open_context(spec, Stage.SHARD)
    done = context.writer.recorded(LAYER)
    assert copied == [LAYER] and done is not None and done.by_store is not None
    shard.run(context)
    assert copied == [LAYER, "cria-01/layer-001.safetensors"]
    assert len(load_all(spec)) == 2 * 9 + 3


def test_without_md5s_the_bytes_come_through_here_and_are_summed(
    spec: TrenchcoatSpec, sources: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores that encrypt with keys of their own have other ETags."""
    monkeypatch.setattr(S3Store, "_upload_with_md5", lambda *_: False)
    shard.run(open_context(spec, Stage.SHARD))
    context = open_context(spec, Stage.CRIA, cria=0)
    assert stored(context, LAYER).by_store is None
    weights = load_all(spec)
    assert all(torch.equal(weights[name], tensor) for name, tensor in sources.items())


def test_the_objects_hold_the_same_bytes_as_when_they_are_not_copied(
    spec: TrenchcoatSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = open_context(spec, Stage.SHARD)
    shard.run(context)
    copied = context.store.read(context.artifact.prefix + LAYER)
    context.store.delete(context.artifact.manifest_path)
    monkeypatch.setattr(S3Store, "is_beside", lambda *_: False)
    again = open_context(spec, Stage.SHARD)
    shard.run(again)
    assert again.store.read(again.artifact.prefix + LAYER) == copied


def test_a_damaged_copy_is_found_by_the_stores_checksum(spec: TrenchcoatSpec) -> None:
    context = open_context(spec, Stage.SHARD)
    shard.run(context)
    path = context.artifact.prefix + LAYER
    content = context.store.read(path)
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, content[:-1], content + b"\0"):
        context.store.write(path, damaged)
        again = open_context(spec, Stage.CRIA, cria=0)
        with pytest.raises(CorruptObjectError, match=r"cria-00/layer-000\.safetensors"):
            load_cria_weights(again, again.crias[0])


@pytest.mark.slow
def test_memory_stays_small_however_much_is_copied(
    make_spec: Callable[..., TrenchcoatSpec], s3: MinioServer, tmp_path: Path
) -> None:
    store = s3.store()

    def peak(layer_bytes: int) -> int:
        name = f"sparse-{layer_bytes}"
        save_sparse_teacher(tmp_path / name, layer_bytes)
        for file in (tmp_path / name).iterdir():
            store.write_file(f"{name}/{file.name}", file)
        spec = make_spec(
            model={"source": f"s3://{BUCKET}/{name}"},
            data={"tokens": 640},
            layersPerCria=1,
            store={"endpoint": s3.endpoint, "prefix": name},
        )
        tokenize.run(open_context(spec, Stage.TOKENIZE))
        needed = peak_memory(["shard", "--spec", write_spec(spec, tmp_path)])
        assert stored(open_context(spec, Stage.CRIA, cria=0), LAYER).by_store is not None
        for entry in list(store.list(f"{name}/")):
            store.delete(entry.path)
        return needed

    # Each of a layer's three large tensors is copied in several parts.
    small, large = peak(60_000_000), peak(3 * (MAX_COPY_BYTES + 10_000_000))
    assert large < 150e6
    assert large - small < 0.02 * 750e6
