"""What the evaluation computes."""

from dataclasses import replace

import pytest
from trenchcoat_api import texts
from trenchcoat_api.evaluation_states import SPARE_BYTES
from trenchcoat_api.planning.evaluation import (
    MeasuredSet,
    batches,
    evaluation_sets,
    longest_share,
    passes,
    reads_of_trained,
    reads_of_weights,
    share_read,
    stored_states,
)
from trenchcoat_api.planning.memory import gpu_need, host_need, reading_ahead, reads_ahead
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.plan import Given, StagePlan, make_plan
from trenchcoat_api.planning.storage import artifact_bytes, weight_bytes
from trenchcoat_api.planning.timing import Fleet, evaluation_seconds
from trenchcoat_api.planning.traffic import read_bytes
from trenchcoat_api.stages import Stage

from tests.api.planning.models import outline


def test_a_text_of_which_nothing_was_held_out_has_no_sets():
    found = replace(outline(), held_out=0)
    assert all(item.sequences > 0 for item in evaluation_sets(found))
    assert reads_of_weights(found) <= reads_of_weights(outline())


def evaluation(**settings: int) -> StagePlan:
    changes = {f"evaluate__{name}": value for name, value in settings.items()}
    rows = make_plan(outline(**changes), Given()).stages
    return next(row for row in rows if row.name is Stage.EVALUATE)


def cost(item: MeasuredSet) -> float:
    return float(item.length)


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (3, 0), (1, 8), (3, 8), (100, 50)])
def test_the_longest_share_is_that_of_batches_dealt_one_by_one(nodes: int, gpus: int) -> None:
    found, ranks = outline(evaluate__nodes=nodes, evaluate__gpusPerNode=gpus), nodes * max(1, gpus)
    for group in passes(found):
        dealt = [item.length for item in group for _ in range(batches(found, item) * item.forms)]
        shares = [sum(dealt[rank::ranks]) for rank in range(ranks)]
        assert longest_share(found, group, cost) == pytest.approx(max(shares))


def test_every_pod_reads_all_weights_and_no_number_of_them_is_faster_than_that() -> None:
    one, four, many = evaluation(), evaluation(nodes=4), evaluation(nodes=100)
    assert (one.gpus, four.gpus, many.gpus) == (1, 4, 100)
    assert one.gpu_memory_bytes == four.gpu_memory_bytes
    assert one.keys == four.keys == many.keys
    found = outline()
    reading = len(passes(found)) * weight_bytes(found) / Given().rates.store.bytes_per_second
    assert one.seconds / 4 < four.seconds < one.seconds / 2
    assert reading < many.seconds < four.seconds
    assert reads_of_weights(outline(evaluate__nodes=4)) == 4 * len(passes(found))
    # A pod that has no batch of a pass reads nothing in it.
    more = outline(evaluate__nodes=100, evaluate__gpusPerNode=10)
    assert reads_of_weights(more) < 100 * len(passes(found))


def test_the_ranks_of_a_pod_read_the_weights_once_for_all_of_them() -> None:
    one, eight = outline(), outline(evaluate__gpusPerNode=8)
    count = len(passes(one))
    assert reads_of_weights(eight) == reads_of_weights(one) == count
    assert reads_of_trained(eight) == 8 * reads_of_trained(one) == 8 * count
    for ranks, found in ((1, one), (8, eight)):
        states = len(found.crias) * stored_states(found)
        trained = ranks * artifact_bytes(found, Stage.CRIA)
        assert read_bytes(found, Stage.EVALUATE) == count * (weight_bytes(found) + trained) + states
    assert reads_of_weights(outline(evaluate__nodes=3, evaluate__gpusPerNode=8)) == 3 * count
    assert evaluation().gpu_memory_bytes == evaluation(gpusPerNode=8).gpu_memory_bytes


@pytest.mark.parametrize(
    ("layers", "gpus", "share"), [(9, 1, 1.0), (9, 8, 2 / 9), (9, 9, 1 / 9), (9, 64, 1 / 9), (6, 4, 2 / 6)]
)
def test_the_layers_of_a_cria_are_read_in_turns(layers: int, gpus: int, share: float) -> None:
    found = outline("llama-3.1-405b", layersPerCria=layers, evaluate__gpusPerNode=gpus)
    assert share_read(found) == pytest.approx(share)


def test_a_gpu_of_several_holds_the_embedding_that_another_hands_it() -> None:
    one, two = (
        gpu_need(outline("llama-3.2-1b", layersPerCria=1, evaluate__gpusPerNode=gpus), Stage.EVALUATE).total
        for gpus in (1, 2)
    )
    assert one < two


def test_a_pod_of_several_gpus_has_as_many_processes_on_its_host() -> None:
    one, eight, nodes = evaluation(), evaluation(gpusPerNode=8), evaluation(nodes=8)
    assert one.host_memory_bytes * 4 < eight.host_memory_bytes
    assert nodes.host_memory_bytes < eight.host_memory_bytes


LIMIT = "pods__evaluate__resources__memory"
ROOM = {"evaluate__gpusPerNode": 8, LIMIT: "2T"}
NO_ROOM = {"evaluate__gpusPerNode": 8, LIMIT: "100G"}


def seconds(found: Outline, reads_as_fast_by: float = 1.0) -> float:
    rates = Given().rates
    store = rates.store.model_copy(
        update={"bytes_per_second": rates.store.bytes_per_second * reads_as_fast_by}
    )
    return evaluation_seconds(found, Fleet(rates.kind(None)[1], rates.model_copy(update={"store": store}), 1))


def test_reading_counts_where_it_takes_longer_than_what_goes_on_meanwhile() -> None:
    """Four passes over 405B: the last is short, and its reading takes longer."""
    ahead, in_turn = outline(**ROOM), outline(**NO_ROOM)
    assert reads_ahead(ahead) and not reads_ahead(in_turn)
    computing = seconds(ahead, 1e9)
    assert computing == pytest.approx(seconds(in_turn, 1e9))
    reading = weight_bytes(ahead) * share_read(ahead) / Given().rates.store.bytes_per_second
    assert len(passes(ahead)) == 4 and not stored_states(ahead)
    assert seconds(in_turn) == pytest.approx(computing + 4 * reading)
    first = reading / len(ahead.crias)
    assert computing + first < seconds(ahead) < computing + reading
    # So slow a store that nothing else counts.
    assert seconds(ahead, 1e-3) == pytest.approx(4000 * reading)
    assert seconds(outline()) == pytest.approx(seconds(outline(**{LIMIT: "2T"})))


def test_weights_that_are_read_ahead_need_memory_of_the_host_and_none_of_the_gpu() -> None:
    ahead, in_turn = outline(**ROOM), outline(**NO_ROOM)
    more = host_need(ahead, Stage.EVALUATE).total - host_need(in_turn, Stage.EVALUATE).total
    # Of 9 layers the eight ranks hold one each as it is.
    assert more == ahead.layer_bytes + 8 * SPARE_BYTES
    assert gpu_need(ahead, Stage.EVALUATE) == gpu_need(in_turn, Stage.EVALUATE)
    alone = outline(**{LIMIT: "1G"})
    assert (
        reading_ahead(alone) - host_need(alone, Stage.EVALUATE).total == 8 * ahead.layer_bytes + SPARE_BYTES
    )


def test_the_least_limit_that_reads_ahead_is_the_one_that_is_told() -> None:
    needed = reading_ahead(outline())
    assert reads_ahead(outline(**{LIMIT: str(needed)}))
    short = outline(**{LIMIT: str(needed - 1)})
    assert not reads_ahead(short) and host_need(short, Stage.EVALUATE).total < needed
    (told,) = [note for note in make_plan(short, Given()).notes if "only when it is due" in note]
    assert f"of {texts.size(needed)}" in told
    for other in (outline(), outline(**{LIMIT: "1G"})):  # which is short of what it needs at all, and says so
        assert not [note for note in make_plan(other, Given()).notes if "only when it is due" in note]
