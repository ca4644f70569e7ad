"""What cannot fit is refused, and the remedy that is named mends it."""

import re

import pytest
from trenchcoat_api.planning.fit import misfits
from trenchcoat_api.stages import Stage

from tests.api.planning.models import outline

H100, H200 = 80_000_000_000, 141_000_000_000


def refused(memory: int, name: str = "llama-3.1-405b", **changes: object) -> dict[Stage, str]:
    found = misfits(outline(name, **changes), lambda stage: memory)
    return {item.stage: str(item) for item in found}


GANGS = {"collect__nodes": 3, "collect__gpusPerNode": 8, "stitch__nodes": 3, "stitch__gpusPerNode": 8}


def test_the_published_run_fits_80_gb() -> None:
    assert refused(H100, **GANGS) == {}


@pytest.mark.parametrize("memory", [H100, H200])
def test_a_cria_of_30_layers_of_405b_is_refused(memory: int) -> None:
    found = refused(memory, layersPerCria=30, **GANGS)
    assert set(found) == {Stage.CRIA, Stage.EVALUATE}
    assert "191.3 GB for layers" in found[Stage.CRIA]
    most = int(re.search(r"spec.layersPerCria to at most (\d+)", found[Stage.CRIA])[1])  # type: ignore[index]
    assert Stage.CRIA not in refused(memory, layersPerCria=most, **GANGS)
    assert Stage.CRIA in refused(memory, layersPerCria=most + 1, **GANGS)


def test_float8_takes_a_larger_gpu_or_a_smaller_cria() -> None:
    float8 = GANGS | {"transfer__teacherProducts": "float8"}
    assert refused(H200, **float8) == {}
    found = refused(H100, **float8)
    assert set(found) == {Stage.CRIA}
    remedy = r"spec.layersPerCria to at most (\d+).*; or remove spec.transfer.teacherProducts"
    most = int(re.search(remedy, found[Stage.CRIA])[1])  # type: ignore[index]
    assert refused(H100, **float8, layersPerCria=most) == {}


def test_too_few_nodes() -> None:
    found = refused(H100, collect__gpusPerNode=8, stitch__gpusPerNode=8)
    assert set(found) == {Stage.COLLECT, Stage.STITCH, Stage.ADAPT}
    assert "adaptedTeacher to never" in found[Stage.ADAPT]
    for stage, part in ((Stage.COLLECT, "collect"), (Stage.STITCH, "stitch")):
        nodes = int(re.search(rf"spec.{part}.nodes to at least (\d+) of 8 GPUs", found[stage])[1])  # type: ignore[index]
        assert stage not in refused(H100, **GANGS | {f"{part}__nodes": nodes})
        assert stage in refused(H100, **GANGS | {f"{part}__nodes": nodes - 1})


def test_too_large_a_micro_batch() -> None:
    batches = {"transfer__microBatchSize": 8, "transfer__batchSize": 8, "data__sequenceLength": 16384}
    found = refused(H100, **GANGS, **batches, evaluate__lengthMultiples=[], evaluate__batchSize=1)
    assert found[Stage.CRIA].endswith(
        "set spec.transfer.microBatchSize and spec.criaLora.microBatchSize to 1"
    )


def test_a_gpu_that_holds_no_layer() -> None:
    found = refused(8_000_000_000, layersPerCria=1, **GANGS)
    assert "take larger GPUs" in found[Stage.CRIA]


def test_what_is_not_known_is_not_refused() -> None:
    assert misfits(outline(layersPerCria=30), lambda stage: None) == []


def test_where_collection_rolls_it_needs_no_more_than_one_cria() -> None:
    """A boundary that is missing is one of the operator's Jobs, whatever the plan's stages are."""
    rolling = outline("llama-3.1-405b", **GANGS, collect__strategy="Rolling")
    assert misfits(rolling, lambda stage: H100, [Stage.COLLECT, Stage.CRIA]) == []
    (found,) = misfits(rolling, lambda stage: 50_000_000_000, [Stage.COLLECT])
    most = int(re.search(r"spec.layersPerCria to at most (\d+)", found.remedy)[1])  # type: ignore[index]
    smaller = outline("llama-3.1-405b", **GANGS, collect__strategy="Rolling", layersPerCria=most)
    assert misfits(smaller, lambda stage: 50_000_000_000, [Stage.COLLECT]) == []


def test_stages_without_gpus_need_none() -> None:
    found = refused(H100, collect__gpusPerNode=0, stitch__gpusPerNode=0)
    assert Stage.COLLECT not in found and Stage.STITCH not in found
