"""What the evaluation computes."""

from dataclasses import replace

import pytest
from trenchcoat_api.planning.evaluation import (
    MeasuredSet,
    batches,
    evaluation_sets,
    longest_share,
    passes,
    reads_of_weights,
)
from trenchcoat_api.planning.plan import Given, StagePlan, make_plan
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


def test_every_rank_reads_all_weights_and_no_number_of_them_is_faster_than_that() -> None:
    one, eight, many = evaluation(), evaluation(gpusPerNode=8), evaluation(nodes=100, gpusPerNode=10)
    assert (one.gpus, eight.gpus, many.gpus) == (1, 8, 1000)
    assert one.gpu_memory_bytes == eight.gpu_memory_bytes
    assert one.keys == eight.keys == many.keys
    reading = 4 * outline().facts.parameters * 2 / Given().rates.store.bytes_per_second
    assert one.seconds / 8 < eight.seconds < one.seconds / 2
    assert reading < many.seconds < eight.seconds
    # A rank that has no batch of a pass reads nothing in it.
    assert reads_of_weights(outline(evaluate__gpusPerNode=8)) == 8 * len(passes(outline()))
    assert reads_of_weights(outline(evaluate__nodes=100, evaluate__gpusPerNode=10)) < 1000 * len(
        passes(outline())
    )


def test_a_pod_of_several_gpus_has_as_many_processes_on_its_host() -> None:
    one, eight, nodes = evaluation(), evaluation(gpusPerNode=8), evaluation(nodes=8)
    assert one.host_memory_bytes * 4 < eight.host_memory_bytes
    assert nodes.host_memory_bytes < eight.host_memory_bytes
