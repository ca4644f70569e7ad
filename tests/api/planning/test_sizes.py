"""Parameters and bytes, against what is published and what was measured."""

import pytest
from trenchcoat_api.planning.memory import collected_sequences, gpu_need
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, make_plan
from trenchcoat_api.planning.sizes import is_tied, layer_parameters
from trenchcoat_api.planning.storage import (
    ROLLING_BOUNDARIES,
    activation_bytes,
    artifact_bytes,
    peak_bytes,
    timeline,
    weight_bytes,
)
from trenchcoat_api.spec import CollectStrategy
from trenchcoat_api.stages import Stage

from tests.api.planning.models import model, outline, published


@pytest.mark.parametrize(
    ("name", "parameters", "tied"),
    [
        ("smollm2-135m", 134_515_008, True),
        ("llama-3.2-1b", 1_235_814_400, True),
        ("llama-3.1-8b", 8_030_261_248, False),
        ("llama-3.1-70b", 70_553_706_496, False),
        ("llama-3.1-405b", 405_853_388_800, False),
    ],
)
def test_parameters_are_those_that_are_published(name: str, parameters: int, tied: bool) -> None:
    facts = model(name).facts
    assert facts.parameters == parameters
    assert is_tied(facts) == tied


def test_the_published_run_stores_8_52_tb_at_13_boundaries() -> None:
    found = outline()
    assert (len(found.crias), found.boundaries) == (14, 13)
    assert activation_bytes(found) / 1e12 == pytest.approx(8.52, abs=0.005)
    assert activation_bytes(found, ROLLING_BOUNDARIES) / 1e12 == pytest.approx(1.31, abs=0.005)
    assert weight_bytes(found) / 1e9 == pytest.approx(812, abs=1)


@pytest.mark.parametrize(("gpus", "held"), [(1, 2), (2, 3), (24, 5)])
def test_a_rolling_405b_holds_two_boundaries_and_one_more_for_each_cria_beside_the_first(
    gpus: int, held: int
) -> None:
    found = make_plan(outline(), Given(gpus=gpus))
    both = {row.name: row for row in found.strategies}
    rolling, distributed = both[CollectStrategy.ROLLING], both[CollectStrategy.DISTRIBUTED]
    assert (distributed.boundaries, rolling.boundaries) == (13, held)
    assert rolling.activation_bytes == held * activation_bytes(outline(), 1)
    assert rolling.gpus == 1 and rolling.gpu_memory_bytes < 80e9
    assert rolling.peak_bytes < distributed.peak_bytes
    assert rolling.gpu_hours < distributed.gpu_hours, "the teacher's pass comes with the transfer"


def test_nothing_is_left_to_collect_once_the_crias_are_trained() -> None:
    """By the other strategy, it may be: then nothing was collected."""
    rows = {row.name: row for row in make_plan(outline(), Given()).stages}
    trained = set(rows[Stage.CRIA].keys)
    plan = make_plan(outline(), Given(complete=trained.__contains__))
    done = rows[Stage.COLLECT].gpu_hours + rows[Stage.CRIA].gpu_hours
    assert plan.gpu_hours_left == pytest.approx(plan.gpu_hours - done, rel=1e-3)
    most = make_plan(outline(), Given(complete=(trained - {min(trained)}).__contains__))
    assert most.gpu_hours_left - plan.gpu_hours_left > rows[Stage.COLLECT].gpu_hours


def test_a_published_cria_weighs_57_4_gb() -> None:
    assert 2 * layer_parameters(model().facts) / 1e9 == pytest.approx(6.38, abs=0.005)
    need = gpu_need(outline(), Stage.CRIA)
    assert need is not None
    assert need.parts["layers"] / 1e9 == pytest.approx(57.4, abs=0.05)


def test_weights_in_float8_come_beside_the_others() -> None:
    plain, float8 = (
        gpu_need(outline(transfer__teacherProducts=products), Stage.CRIA) for products in ("dtype", "float8")
    )
    assert plain is not None and float8 is not None
    assert float8.parts["layers in float8"] == float8.parts["layers"] // 2 == float8.total - plain.total


def test_the_collection_fills_a_gpu_by_default() -> None:
    """8 sequences of 1B, which an object has; of 405B an object has one. A CPU takes one of any."""
    for name, at_once in (("llama-3.2-1b", 8), ("llama-3.1-8b", 4), ("llama-3.1-405b", 1)):
        assert collected_sequences(outline(name)) == at_once
        assert collected_sequences(outline(name, collect__gpusPerNode=0)) == 1
        assert collected_sequences(outline(name, collect__batchSize=2)) == min(2, at_once)


def test_a_window_has_no_maps() -> None:
    both = (
        artifact_bytes(outline(), Stage.CRIA),
        artifact_bytes(outline(attention__form="window"), Stage.CRIA),
    )
    maps = 126 * (2 * 128 * 128 * 64 + 128) * 4
    assert both[0] - both[1] == pytest.approx(maps, rel=0.001)
    shared = artifact_bytes(outline(attention__keyMaps="perKeyValueHead"), Stage.CRIA)
    assert both[0] - shared == pytest.approx(126 * 120 * 128 * 64 * 4, rel=0.001)


def test_what_no_cria_reads_is_not_stored() -> None:
    found = outline(attention__form="window", criaLora__epochs=0)
    assert found.boundaries == activation_bytes(found) == 0


def test_intermediates_go_when_nothing_reads_them() -> None:
    kept, deleted = outline(), outline(retention="DeleteIntermediate")
    assert peak_bytes(kept) >= peak_bytes(deleted)
    ends = [timeline(item)[-1].held for item in (kept, deleted)]
    gone = artifact_bytes(kept, Stage.COLLECT) + artifact_bytes(kept, Stage.SHARD)
    assert ends[0] - ends[1] == gone
    crias = next(moment for moment in timeline(deleted) if moment.after is Stage.CRIA)
    assert crias.held < artifact_bytes(kept, Stage.COLLECT) < crias.peak


def test_the_shards_are_as_large_as_the_checkpoint_whatever_the_run_computes_in() -> None:
    wide = Outline.of(published(dtype="float32"), model())
    assert weight_bytes(wide) == weight_bytes(outline())
    assert artifact_bytes(wide, Stage.EXPORT) > 1.9 * weight_bytes(wide)
    stored = Outline.of(published(), model(torch_dtype="float32"))
    assert weight_bytes(stored) == pytest.approx(2 * weight_bytes(outline()), rel=1e-4)
