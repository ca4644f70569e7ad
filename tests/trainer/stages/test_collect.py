"""Collection: what is stored is exactly what the teacher computes, however it is spread and interrupted."""

import json
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from trenchcoat_api.artifacts import Manifest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.checkpoints.shards import (
    TORCH_DTYPES,
    load_config,
    load_cria_weights,
    load_rest_weights,
)
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.data import CriaData, TokenData, layout
from trenchcoat_trainer.errors import BadInputError, PreemptedError
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.runtime.ports import free_port
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.stages import collect, shard, tokenize
from trenchcoat_trainer.stages.collect.pipeline import Pipeline, split_layers

from tests.trainer.helpers.trainer_samples import StopAfter, make_config, save_teacher

BATCH = 4
SEQUENCES_PER_OBJECT = 10
BATCHES_PER_OBJECT = 3
LAST_GROUP = 9


def hidden_bytes(spec: TrenchcoatSpec) -> int:
    item = layout.ITEM_BYTES[spec.dtype]
    return SEQUENCES_PER_OBJECT * spec.data.sequence_length * 64 * item


def run_rank(
    spec: TrenchcoatSpec, folder: Path, rank: int, world_size: int, port: int, stop: StopRequest
) -> None:
    """One process of a collection; in a child process."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    layout.HIDDEN_BYTES = hidden_bytes(spec)
    context = open_context(spec, Stage.COLLECT, folder=folder, place=Place(rank, world_size), stop=stop)
    try:
        collect.run(context)
    except PreemptedError as error:
        raise SystemExit(int(error.exit_code)) from error


def run_ranks(spec: TrenchcoatSpec, folder: Path, stops: list[StopRequest]) -> list[int | None]:
    """Run as many ranks as there are stops, and return their exit codes."""
    port = free_port()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["trenchcoat_trainer.stages.collect", "tests.trainer.helpers.trainer_samples"]
    )
    ranks = [
        processes.Process(target=run_rank, args=(spec, folder, rank, len(stops), port, stop))
        for rank, stop in enumerate(stops)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(600)
    return [process.exitcode for process in ranks]


def checksums(manifest: Manifest) -> dict[str, str]:
    return {item.path: item.sha256 for item in manifest.objects}


def collected(spec: TrenchcoatSpec, folder: Path) -> dict[str, str]:
    context = open_context(spec, Stage.CRIA, cria=0, folder=folder)
    return checksums(context.manifest(context.artifacts.collect))


@pytest.fixture
def spec(make_spec, monkeypatch: pytest.MonkeyPatch) -> TrenchcoatSpec:
    made: TrenchcoatSpec = make_spec(collect={"batchSize": BATCH})
    monkeypatch.setattr(layout, "HIDDEN_BYTES", hidden_bytes(made))
    return made


@pytest.fixture
def tokenized(spec: TrenchcoatSpec, tmp_path: Path) -> Path:
    """A folder store with the tokens."""
    tokenize.run(open_context(spec, Stage.TOKENIZE, folder=tmp_path / "tokenized"))
    return tmp_path / "tokenized"


@pytest.fixture
def uninterrupted(spec: TrenchcoatSpec, tokenized: Path, tmp_path: Path) -> dict[str, str]:
    """Checksums of the boundaries as one process makes them in one go."""
    folder = shutil.copytree(tokenized, tmp_path / "uninterrupted")
    collect.run(open_context(spec, Stage.COLLECT, folder=folder))
    return collected(spec, folder)


def test_objects_hold_every_sequence_of_every_inner_boundary(uninterrupted: dict[str, str]) -> None:
    assert sorted(uninterrupted) == [
        layout.boundary_path(boundary, index) for boundary in (1, 2) for index in range(10)
    ]


def test_what_is_told_as_done_counts_sequences_though_the_last_object_has_fewer(
    spec: TrenchcoatSpec, tokenized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "HIDDEN_BYTES", hidden_bytes(spec) // SEQUENCES_PER_OBJECT * 12)
    context = open_context(spec, Stage.COLLECT, folder=tokenized)
    told: list[tuple[float, int]] = []

    def note(*args: object, fraction: float, tokens: int) -> None:
        told.append((fraction, tokens))

    monkeypatch.setattr(context.progress, "update", note)
    collect.run(context)
    everything = sum(tokens for _, tokens in told)
    assert everything % (12 * spec.data.sequence_length)  # the last object has fewer
    done = 0
    for fraction, tokens in told:
        done += tokens
        assert fraction == pytest.approx(done / everything)


def test_a_cpu_computes_one_sequence_at_a_time_unless_it_is_told_otherwise(
    make_spec, tokenized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    context = open_context(spec, Stage.COLLECT, folder=tokenized)
    told: list[int] = []
    monkeypatch.setattr(context.progress, "update", lambda *args, fraction, tokens: told.append(tokens))
    collect.run(context)
    assert set(told) == {spec.data.sequence_length}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_gives_the_same_bytes(
    spec: TrenchcoatSpec, tokenized: Path, uninterrupted: dict[str, str], world_size: int
) -> None:
    assert run_ranks(spec, tokenized, [StopRequest()] * world_size) == [0] * world_size
    assert collected(spec, tokenized) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_stop_of_any_rank_stops_them_all_and_they_go_on(
    spec: TrenchcoatSpec, tokenized: Path, uninterrupted: dict[str, str], stopped: int
) -> None:
    stops: list[StopRequest] = [StopRequest(), StopRequest(), StopRequest()]
    stops[stopped] = StopAfter(12)
    assert run_ranks(spec, tokenized, stops) == [ExitCode.PREEMPTED] * 3
    context = open_context(spec, Stage.COLLECT, folder=tokenized)
    assert not context.store.exists(context.artifact.manifest_path)
    kept = [path for path in uninterrupted if context.writer.recorded(path)]
    assert 0 < len(kept) < len(uninterrupted)
    collect.run(context)
    assert collected(spec, tokenized) == uninterrupted


@pytest.mark.parametrize("looks", [1, 7, 40])
def test_a_stopped_collection_goes_on_and_gives_the_same_bytes(
    spec: TrenchcoatSpec, tokenized: Path, uninterrupted: dict[str, str], looks: int
) -> None:
    stopped = open_context(spec, Stage.COLLECT, folder=tokenized, stop=StopAfter(looks))
    with pytest.raises(PreemptedError):
        collect.run(stopped)
    context = open_context(spec, Stage.COLLECT, folder=tokenized)
    kept = [path for path in uninterrupted if context.writer.recorded(path)]
    written = record_writes(context)
    told = record_fractions(context)
    collect.run(context)
    assert collected(spec, tokenized) == uninterrupted
    assert told == sorted(told) and told[-1] == 1
    assert (told[0] > 0.3) == (looks == 40), "what the first attempt has left is done"
    assert sorted(kept + written) == sorted(uninterrupted)
    assert bool(kept) == (looks >= 7)


def test_a_crash_between_two_objects_loses_no_more_than_what_was_not_recorded(
    spec: TrenchcoatSpec, tokenized: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trenchcoat_trainer.runtime.writer.JOURNAL_SECONDS", 0.0)
    context = open_context(spec, Stage.COLLECT, folder=tokenized)
    original = context.store.write_stream

    def write_stream(path: str, chunks: Any, size: int) -> None:
        if path.endswith("boundary-02/00005.safetensors"):
            raise OSError("the disk is gone")
        original(path, chunks, size)

    monkeypatch.setattr(context.store, "write_stream", write_stream)
    with pytest.raises(OSError, match="the disk is gone"):
        collect.run(context)
    again = open_context(spec, Stage.COLLECT, folder=tokenized)
    written = record_writes(again)
    collect.run(again)
    assert collected(spec, tokenized) == uninterrupted
    assert "boundary-02/00005.safetensors" in written
    assert "boundary-01/00000.safetensors" not in written


def test_the_next_objects_are_computed_while_one_is_written(
    spec: TrenchcoatSpec, tokenized: Path, uninterrupted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write returns before a later batch is computed: without the overlap that would never come."""
    context = open_context(spec, Stage.COLLECT, folder=tokenized)
    begun = threading.Condition()
    batches = 0
    go_on, write = Pipeline.go_on, context.store.write_stream

    def counting_go_on(pipeline: Pipeline) -> bool:
        nonlocal batches
        with begun:
            batches += 1
            begun.notify_all()
        return go_on(pipeline)

    def slow_write(path: str, chunks: Any, size: int) -> None:
        group = int(path[-17:-12]) if "/boundary-" in path else LAST_GROUP
        if group < LAST_GROUP:
            with begun:
                later = (group + 1) * BATCHES_PER_OBJECT + 1
                assert begun.wait_for(lambda: batches >= later, timeout=300), path
        write(path, chunks, size)

    monkeypatch.setattr(Pipeline, "go_on", counting_go_on)
    monkeypatch.setattr(context.store, "write_stream", slow_write)
    collect.run(context)
    assert collected(spec, tokenized) == uninterrupted


def test_an_object_that_was_cut_after_it_was_recorded_is_made_anew(
    spec: TrenchcoatSpec, tokenized: Path, uninterrupted: dict[str, str]
) -> None:
    stopped = open_context(spec, Stage.COLLECT, folder=tokenized, stop=StopAfter(40))
    with pytest.raises(PreemptedError):
        collect.run(stopped)
    path = stopped.artifact.prefix + "boundary-01/00001.safetensors"
    stopped.store.write(path, stopped.store.read(path)[:-1])
    collect.run(open_context(spec, Stage.COLLECT, folder=tokenized))
    assert collected(spec, tokenized) == uninterrupted


def record_writes(context: Any) -> list[str]:
    written: list[str] = []
    original = context.writer.write_tensors

    def write_tensors(path: str, tensors: dict[str, torch.Tensor]) -> Any:
        written.append(path)
        return original(path, tensors)

    context.writer.write_tensors = write_tensors
    return written


def record_fractions(context: Any) -> list[float]:
    told: list[float] = []
    context.progress.update = lambda *args, fraction, **others: told.append(fraction)
    return told


@pytest.fixture(params=[("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)])
def teacher(
    request: pytest.FixtureRequest, make_spec, tmp_path: Path
) -> Iterator[tuple[TrenchcoatSpec, LlamaForCausalLM]]:
    """A spec, and its teacher loaded in the usual way: both number formats, tied and untied embeddings."""
    dtype, tied = request.param
    source = tmp_path / "teacher"
    save_teacher(source, make_config(tie_word_embeddings=tied))
    spec = make_spec(
        model={"source": source.as_uri()}, dtype=dtype, collect={"batchSize": BATCH}, data={"tokens": 1500}
    )
    yield (
        spec,
        AutoModelForCausalLM.from_pretrained(
            source, dtype=TORCH_DTYPES[spec.dtype], attn_implementation="sdpa"
        ),
    )


def test_cria_by_cria_gives_the_teachers_logits_bit_for_bit(
    teacher: tuple[TrenchcoatSpec, LlamaForCausalLM], tmp_path: Path
) -> None:
    spec, model = teacher
    folder = tmp_path / "store"
    for stage, module in ((Stage.TOKENIZE, tokenize), (Stage.SHARD, shard), (Stage.COLLECT, collect)):
        module.run(open_context(spec, stage, folder=folder))
    context = open_context(spec, Stage.CRIA, cria=0, folder=folder)
    config, rest = load_config(context), load_rest_weights(context)
    assert ("lm_head.weight" in rest) != config.tie_word_embeddings
    embedding = rest["model.embed_tokens.weight"]
    ids = next(TokenData(context).batches(epoch=0, batch_size=BATCH))
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        for cria in context.crias:
            layers = TeacherLayers(config, cria.layers, TORCH_DTYPES[spec.dtype])
            layers.load(load_cria_weights(context, cria))
            data = CriaData(
                context, cria, lambda batch: torch.nn.functional.embedding(batch, embedding), True
            )
            batch = next(data.batches(epoch=0, batch_size=BATCH))
            outputs = layers(batch.inputs)
            if batch.targets is not None:
                assert torch.equal(outputs, batch.targets)
        model.model.norm.load_state_dict({"weight": rest["model.norm.weight"]})
        logits = torch.nn.functional.linear(model.model.norm(outputs), rest.get("lm_head.weight", embedding))
    order = torch.cat(list(TokenData(context).batches(epoch=0, batch_size=BATCH)))
    assert torch.equal(order[:BATCH], ids)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(("layers", "ranks"), [(1, 1), (8, 3), (4, 4), (3, 8), (126, 24)])
def test_layers_are_split_evenly_and_in_order(layers: int, ranks: int) -> None:
    parts = split_layers(layers, ranks)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def spoil(folder: Path, name: str, value: float) -> None:
    """Set numbers of a teacher's tensor to a value."""
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name].view(-1)[3:].fill_(value)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", math.nan, r"tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        ("model.embed_tokens.weight", math.inf, r"tensor model\.embed_tokens\.weight"),
        # Collection runs neither the last Cria's layers nor the head.
        ("model.layers.4.self_attn.q_proj.weight", math.nan, r"tensor model\.layers\.4\.self_attn"),
        ("model.norm.weight", math.nan, r"tensor model\.norm\.weight"),
        ("lm_head.weight", -math.inf, r"tensor lm_head\.weight"),
        # Numbers, each of them, but too large to compute with.
        ("model.layers.2.mlp.down_proj.weight", 3e38, "hidden states after layer 2 are not finite"),
    ],
)
@pytest.mark.parametrize("layers_per_cria", [2, 5])
def test_a_teacher_that_is_no_number_somewhere_is_told(
    make_spec,
    open_stage,
    tmp_path: Path,
    teacher_folder: Path,
    layers_per_cria: int,
    name: str,
    value: float,
    message: str,
) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "spoilt"))
    spoil(folder, name, value)
    spec = make_spec(model={"source": folder.as_uri()}, data={"tokens": 640}, layersPerCria=layers_per_cria)
    tokenize.run(open_stage(spec, Stage.TOKENIZE))
    context = open_stage(spec, Stage.COLLECT)
    if layers_per_cria == 5 and math.isfinite(value):
        collect.run(context)  # of a single Cria nothing is run
        return
    with pytest.raises(BadInputError, match=message):
        collect.run(context)
    assert not list(context.store.list(context.artifact.prefix + "boundary"))
