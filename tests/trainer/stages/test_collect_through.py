"""Batches through a rank's layers: whole ones, which take one another's place, give what loose ones do."""

import pytest
import torch
from trenchcoat_trainer.checkpoints.finite_watch import FiniteWatch
from trenchcoat_trainer.checkpoints.teacher_layers import TeacherLayers
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.stages.collect.through import Through

from tests.trainer.layers.teacher_checks import LAYERS, both

CPU = torch.device("cpu")


def made(layers: TeacherLayers, *, whole: bool) -> Through:
    return Through(layers, FiniteWatch(layers.indices, CPU), LAYERS[1:], whole=whole)


@torch.no_grad()
def test_whole_batches_give_what_loose_ones_do_in_whatever_order_shapes_come() -> None:
    """All states are looked at in the end; what a graph writes over is seen on a GPU alone."""
    layers, _ = both()
    sizes = (3, 3, 2, 3, 2, 3)
    entering = [
        torch.randn(size, 9, 64, generator=torch.Generator().manual_seed(n)) for n, size in enumerate(sizes)
    ]
    kept = [hidden.clone() for hidden in entering]
    loose, whole = made(layers, whole=False), made(layers, whole=True)
    expected = [dict(loose(hidden)) for hidden in entering]
    found = [dict(whole(hidden)) for hidden in entering]
    for mine, theirs, states in zip(found, expected, (list(layers.states(x)) for x in entering), strict=True):
        assert list(mine) == list(theirs) == [LAYERS[1]]
        assert torch.equal(mine[LAYERS[1]], theirs[LAYERS[1]])
        assert torch.equal(mine[LAYERS[1]], states[1])
    assert all(map(torch.equal, entering, kept))


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_states_that_are_not_finite_are_noted_wherever_they_arise(whole: bool) -> None:
    layers, _ = both()
    watch = FiniteWatch(layers.indices, CPU)
    through = Through(layers, watch, LAYERS, whole=whole)
    hidden = torch.randn(2, 9, 64)
    for _ in through(hidden):
        pass
    watch.check()
    hidden[1, 3, 5] = float("-inf")
    for _ in through(hidden):
        pass
    with pytest.raises(BadInputError, match="that enter layer 1 are not finite"):
        watch.check()


@pytest.mark.parametrize("whole", [False, True])
def test_a_rank_without_layers_passes_batches_on(whole: bool) -> None:
    layers = TeacherLayers(both()[0].layers[0].self_attn.config, [], torch.float32)
    assert list(made(layers, whole=whole)(torch.randn(2, 9, 64))) == []
