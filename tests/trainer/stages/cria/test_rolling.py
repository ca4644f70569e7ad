"""Rolling collection: each Cria leaves the next one's inputs, the same bytes as collection writes."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from trenchcoat_api.artifacts import Artifact, Manifest
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data.layout import boundary_path
from trenchcoat_trainer.errors import BadInputError, MissingInputError, PreemptedError
from trenchcoat_trainer.program import run_stage
from trenchcoat_trainer.runtime.context import Place, StageContext
from trenchcoat_trainer.runtime.inputs import read_manifest
from trenchcoat_trainer.runtime.opening import check_inputs, open_context
from trenchcoat_trainer.runtime.stop import StopRequest
from trenchcoat_trainer.stages import collect, cria

from tests.trainer.helpers.killing import write_spec
from tests.trainer.helpers.trainer_samples import StopAfter

CRIAS = 3
Change = Callable[..., TrenchcoatSpec]


@pytest.fixture(autouse=True)
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences in an object of hidden states: neither the 4 of a step nor a divisor of all 20."""
    monkeypatch.setattr("trenchcoat_trainer.data.layout.HIDDEN_BYTES", 3 * 64 * 64 * 4)


@pytest.fixture
def bare(collected_store: Path, training_spec: TrenchcoatSpec, tmp_path: Path) -> Path:
    """A store with text and shards, and nothing collected."""
    folder = tmp_path / "rolling"
    shutil.copytree(collected_store, folder)
    shutil.rmtree(folder / "trenchcoat" / opened(training_spec, Stage.COLLECT, folder).artifact.prefix)
    return folder


def opened(spec: TrenchcoatSpec, stage: Stage, folder: Path, **options: Any) -> StageContext:
    return open_context(spec, stage, folder=folder, place=Place(), **options)


def rolling(change: Change, spec: TrenchcoatSpec, **fields: Any) -> TrenchcoatSpec:
    return change(spec, collect={"strategy": "Rolling"}, **fields)


def checksums(context: StageContext, artifact: Artifact) -> dict[str, str]:
    manifest: Manifest = read_manifest(context.store, artifact)
    return {item.path: item.checksum for item in manifest.objects}


def trained(spec: TrenchcoatSpec, folder: Path) -> list[dict[str, str]]:
    """Checksums of what each Cria leaves, all run in order."""
    results = []
    for index in range(CRIAS):
        context = opened(spec, Stage.CRIA, folder, cria=index)
        check_inputs(context)
        cria.run(context)
        results.append(checksums(context, context.artifact))
    return results


def boundaries(spec: TrenchcoatSpec, folder: Path) -> dict[str, str]:
    """Checksums of all boundaries that Crias left, each an artifact of its own."""
    context = opened(spec, Stage.CRIA, folder, cria=0)
    found: dict[str, str] = {}
    for maker in context.crias[:-1]:
        found |= checksums(context, context.artifacts.boundary(maker))
    return found


def collected(spec: TrenchcoatSpec, folder: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Checksums of all boundaries, and of all Crias, with a stage that collects."""
    context = opened(spec, Stage.COLLECT, folder)
    collect.run(context)
    return checksums(context, context.artifact), trained(spec, folder)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dtype": "bfloat16", "criaLora": {"objective": "block"}, "transfer": {"microBatchSize": 1}},
        {"attention": {"keepSoftmaxLayers": [0, 1, 3]}, "transfer": {"epochs": 1}},
        {"transfer": {"epochs": 0}},
    ],
    ids=["published", "block-bfloat16", "some-kept-softmax", "no-transfer"],
)
def test_boundaries_and_crias_are_those_of_a_collection_bit_for_bit(
    bare: Path, training_spec: TrenchcoatSpec, change: Change, tmp_path: Path, fields: dict[str, Any]
) -> None:
    shutil.copytree(bare, tmp_path / "collected")
    expected, crias = collected(change(training_spec, **fields), tmp_path / "collected")
    spec = rolling(change, training_spec, **fields)
    assert trained(spec, bare) == crias
    assert boundaries(spec, bare) == expected
    assert len(expected) in (2 * 4, 2 * 7), "of 20 sequences, 6 or 3 in an object"


def test_the_next_cria_may_begin_before_this_one_is_complete(
    bare: Path, training_spec: TrenchcoatSpec, change: Change
) -> None:
    spec = rolling(change, training_spec)
    context = opened(spec, Stage.CRIA, bare, cria=0, stop=StopAfter(7))  # an epoch has 5 steps
    following = opened(spec, Stage.CRIA, bare, cria=1)
    with pytest.raises(MissingInputError, match="collect-01 is not complete"):
        check_inputs(following)
    with pytest.raises(PreemptedError):
        cria.run(context)
    check_inputs(opened(spec, Stage.CRIA, bare, cria=1))
    assert not context.store.exists(context.artifact.manifest_path)


def test_stopped_after_every_step_it_leaves_the_same_bytes(
    bare: Path, training_spec: TrenchcoatSpec, change: Change, tmp_path: Path
) -> None:
    spec = rolling(change, training_spec)
    shutil.copytree(bare, tmp_path / "undisturbed")
    once = opened(spec, Stage.CRIA, tmp_path / "undisturbed", cria=0)
    cria.run(once)
    boundary, attempts = once.artifacts.boundary(once.crias[0]), 0
    context = opened(spec, Stage.CRIA, bare, cria=0, stop=StopAfter(0))
    while not context.store.exists(context.artifact.manifest_path):
        context = opened(spec, Stage.CRIA, bare, cria=0, stop=StopAfter(1))
        attempts += 1
        with suppress(PreemptedError):
            cria.run(context)
    assert attempts > 9, "20 steps, at most two of them at a time"
    assert checksums(context, boundary) == checksums(once, boundary)
    assert checksums(context, context.artifact) == checksums(once, once.artifact)


def test_a_boundary_that_is_gone_is_made_anew_by_the_layers_alone(
    bare: Path, training_spec: TrenchcoatSpec, change: Change, tmp_path: Path
) -> None:
    spec = rolling(change, training_spec)
    context = opened(spec, Stage.CRIA, bare, cria=0)
    cria.run(context)
    boundary = context.artifacts.boundary(context.crias[0])
    before = checksums(context, boundary)
    shutil.rmtree(bare / "trenchcoat" / boundary.prefix)
    run_stage(Stage.COLLECT, write_spec(spec, tmp_path), cria=0, folder=bare, stop=StopRequest())
    assert checksums(context, boundary) == before
    assert set(before) == {boundary_path(1, index) for index in range(7)}


def test_collect_must_be_told_which_boundary_exactly_where_it_rolls(
    bare: Path, training_spec: TrenchcoatSpec, change: Change
) -> None:
    spec = rolling(change, training_spec)
    with pytest.raises(BadInputError, match="Rolling: name a Cria with --cria"):
        opened(spec, Stage.COLLECT, bare)
    with pytest.raises(BadInputError, match="--cria is 2, the last: no Cria reads what leaves it"):
        opened(spec, Stage.COLLECT, bare, cria=2)
    with pytest.raises(BadInputError, match="Distributed: collect takes no --cria"):
        opened(training_spec, Stage.COLLECT, bare, cria=0)
