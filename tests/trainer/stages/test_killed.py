"""Killed (SIGKILL) at random points and started anew, again and again, a stage ends with the same bytes."""

import itertools
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.models.artifacts import ADAPTERS
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import collect, shard, tokenize

from tests.minio_server import ACCESS_KEY, SECRET_KEY, MinioServer
from tests.trainer.helpers.killing import Kill, StageRunner, choose_kills, results

KILLED = -9
SMALL_BOUNDARIES = {"trenchcoat_trainer.data.layout.HIDDEN_BYTES": 2 * 64 * 64 * 4}
"""Two sequences in an object of hidden states."""
SMALL_TOKENS = {
    "trenchcoat_trainer.data.layout.TOKEN_BYTES": 2 * 64 * 4,
    "trenchcoat_trainer.stages.tokenize.reading.BATCH_DOCUMENTS": 8,
    "trenchcoat_trainer.data.packing.SHUFFLE_TOKENS": 8 * 64,
}
STITCH_KINDS = "step|checkpoint: (half|after)|object: half|manifest: after"
"""Every attempt sets DeepSpeed up, which takes seconds."""

pytestmark = pytest.mark.slow


@pytest.fixture
def runners(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[StageRunner]]:
    """Makes two runners of one stage, each over its own copy of the store that a fixture left."""

    def make(
        spec: TrenchcoatSpec, stage: Stage, source: str, *, cria: int | None = None, **settings: Any
    ) -> list[StageRunner]:
        made = []
        for name in ("undisturbed", "killed"):
            folder = tmp_path / name
            if source == "nothing":
                folder.mkdir()
            else:
                shutil.copytree(request.getfixturevalue(source), folder)
            artifact = open_context(spec, stage, cria=cria, folder=folder).artifact
            clear(folder / spec.store.bucket / artifact.prefix)
            made.append(StageRunner(spec, artifact, folder, settings.get("settings", {})))
        return made

    return make


def clear(folder: Path) -> None:
    """Delete what an earlier stage of this name left."""
    shutil.rmtree(folder, ignore_errors=True)


def check(
    undisturbed: StageRunner,
    killed: StageRunner,
    *,
    seed: int,
    least: int,
    kinds: str = ".*",
    world_sizes: tuple[int, ...] = (1,),
    writer: Callable[[int], int] = lambda world: 0,
    same: Callable[[StageRunner, StageRunner], bool] | None = None,
) -> None:
    """Run one to the end, kill the other at many points, and compare what both leave.

    Args:
        undisturbed: runs once, in one process.
        killed: runs until it is complete; each attempt has the next of `world_sizes`, and one of its ranks
            is killed, then the others.
        seed: decides where, and which rank.
        least: kills that there must be.
        kinds: regular expression of the kinds of kills.
        world_sizes: processes of the attempts.
        writer: the rank, of so many, that writes objects and checkpoints.
        same: compares the two; bit for bit unless told otherwise.
    """
    source, worlds = random.Random(seed), itertools.cycle(world_sizes)
    codes, passed = undisturbed.run()
    assert codes == [0], (undisturbed.folder / "termination-0").read_text()
    died = []
    for kill in choose_kills(passed, seed):
        if not re.fullmatch(kinds, kill.kind):
            continue
        world = next(worlds)
        rank = writer(world) if ":" in kill.kind else source.randrange(world)
        if kill.kind.startswith("manifest"):
            rank = 0
        codes, _ = killed.run(kill, world_size=world, killed_rank=rank)
        assert codes[rank] == KILLED, (kill, codes)
        # The others may miss it, and fail by themselves, before they are killed, too.
        assert 0 not in codes, (kill, codes)
        if killed.is_complete():
            assert kill.kind in ("manifest: after", "DELETE: before", "DELETE: after"), kill
        died.append(kill)
    assert len(died) >= least, (died, passed)
    assert set(killed.run(world_size=next(worlds))[0]) == {0}
    if same is None:
        assert results(killed.manifest()) == results(undisturbed.manifest())
    else:
        assert same(killed, undisturbed)
    assert not killed.leftovers()


@pytest.mark.parametrize("journal_seconds", [0.0, 1e9])
def test_tokenize(runners, training_spec: TrenchcoatSpec, journal_seconds: float) -> None:
    """Journals saved with every object, or with checkpoints alone: a checkpoint counts on its objects."""
    settings = SMALL_TOKENS | {"trenchcoat_trainer.runtime.writer.JOURNAL_SECONDS": journal_seconds}
    check(*runners(training_spec, Stage.TOKENIZE, "nothing", settings=settings), seed=1, least=8)


@pytest.mark.parametrize("cria", [0, 1])
@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_cria(runners, training_spec: TrenchcoatSpec, change, objective: str, cria: int) -> None:
    spec = change(
        training_spec,
        criaLora={"objective": objective, "lora": {"dropout": "0.2"}},
        data={"startPositions": {"share": "0.5"}},
    )
    check(*runners(spec, Stage.CRIA, "collected_store", cria=cria), seed=2 + cria, least=12)


@pytest.mark.parametrize("world_sizes", [(1,), (2,), (3, 1, 2)])
def test_collect(runners, training_spec: TrenchcoatSpec, change, world_sizes: tuple[int, ...]) -> None:
    spec = change(training_spec, collect={"batchSize": 1})
    made = runners(spec, Stage.COLLECT, "collected_store", settings=SMALL_BOUNDARIES)
    check(*made, seed=3, least=12, world_sizes=world_sizes, writer=lambda world: world - 1)


def test_cria_of_a_rolling_collection(runners, training_spec: TrenchcoatSpec, change) -> None:
    """Killed four times before the next Cria's inputs are complete, and twice after."""
    spec = change(training_spec, collect={"strategy": "Rolling"})
    undisturbed, killed = runners(spec, Stage.CRIA, "collected_store", cria=0, settings=SMALL_BOUNDARIES)
    boundary = open_context(spec, Stage.COLLECT, cria=0, folder=killed.folder).artifact
    left = [StageRunner(spec, boundary, runner.folder, {}) for runner in (undisturbed, killed)]
    assert undisturbed.run()[0] == [0], (undisturbed.folder / "termination-0").read_text()
    collecting = (Kill("step", 2), Kill("checkpoint: half", 2), Kill("object: half", 2))
    for kill in (*collecting, Kill("manifest: not renamed", 1)):
        assert killed.run(kill)[0] == [KILLED], kill
        assert not left[1].is_complete(), kill
    for kill in (Kill("manifest: after", 1), Kill("step", 3)):
        assert killed.run(kill)[0] == [KILLED], kill
        assert left[1].is_complete() and not killed.is_complete(), kill
    assert killed.run()[0] == [0]
    assert results(killed.manifest()) == results(undisturbed.manifest())
    assert results(left[1].manifest()) == results(left[0].manifest())
    assert len(left[1].manifest().objects) == 10, "of 20 sequences, 2 in each"
    assert not killed.leftovers() and not left[1].leftovers()


def test_shard(runners, training_spec: TrenchcoatSpec) -> None:
    check(*runners(training_spec, Stage.SHARD, "collected_store"), seed=4, least=12)


def test_stitch(runners, spread_spec: TrenchcoatSpec, change) -> None:
    spec = change(spread_spec, stitch={"epochs": 2, "lora": {"dropout": "0.2"}})
    check(*runners(spec, Stage.STITCH, "spread_store"), seed=5, least=5, kinds=STITCH_KINDS)


def test_stitch_of_longer_sequences_at_the_end(runners, spread_spec: TrenchcoatSpec, change) -> None:
    """Checkpoints before the first of them, at the switch and after it."""
    long = {"share": "0.5", "multiple": 2}
    own = {"longSequences": long, "recallShare": "0.9", "lora": {"dropout": "0.2"}}
    made = runners(change(spread_spec, stitch=own), Stage.STITCH, "spread_store")
    check(*made, seed=9, least=5, kinds=STITCH_KINDS)


def test_stitch_with_another_number_of_ranks(runners, training_spec: TrenchcoatSpec) -> None:
    """Not bit for bit: ranks add their gradients in another order."""
    made = runners(training_spec, Stage.STITCH, "trained_store")
    check(*made, seed=6, least=2, kinds="step|checkpoint: half", world_sizes=(2, 1), same=alike)


def alike(left: StageRunner, right: StageRunner) -> bool:
    """Whether both stitches end with the same adapters but for rounding."""
    files = [runner.folder / runner.spec.store.bucket / runner.artifact.prefix for runner in (left, right)]
    tensors = [load_file(file / ADAPTERS) for file in files]
    return all(torch.allclose(tensors[0][name], tensors[1][name], rtol=0, atol=2e-4) for name in tensors[1])


def test_on_s3(
    training_spec: TrenchcoatSpec,
    change,
    minio_server: MinioServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    made = []
    for name in ("undisturbed", "killed"):
        spec = change(training_spec, store={"endpoint": minio_server.endpoint, "prefix": f"s3-{name}"})
        for stage, module in ((Stage.TOKENIZE, tokenize), (Stage.SHARD, shard), (Stage.COLLECT, collect)):
            module.run(open_context(spec, stage))
        (tmp_path / name).mkdir()
        artifact = open_context(spec, Stage.CRIA, cria=1).artifact
        made.append(StageRunner(spec, artifact, tmp_path / name, {}, on_s3=True))
    check(*made, seed=8, least=4)


def test_evaluate(runners, training_spec: TrenchcoatSpec, change) -> None:
    spec = change(training_spec, evaluate={"batchSize": 3})
    check(*runners(spec, Stage.EVALUATE, "stitched_store"), seed=6, least=8)


def test_export(runners, training_spec: TrenchcoatSpec, change) -> None:
    spec = change(training_spec, export={"maxShardBytes": 1_000_000})
    check(*runners(spec, Stage.EXPORT, "stitched_store"), seed=7, least=8)
