"""Hidden states of an evaluation go to a GPU only where the plan leaves room for them."""

import pytest
import torch
from trenchcoat_api.planning.memory import gpu_need
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.stages.evaluate.room import ROOM, has_room, roomy_device

from tests.api.planning.models import model, published

FREE = 77_000_000_000
"""Of a GPU of 80 GB with PyTorch's context and the head on it."""


def test_a_small_model_leaves_room():
    assert has_room(FREE, 1_000_000_000, published(layersPerCria=15), model("smollm2-135m").facts)


def test_an_eighth_of_what_is_free_and_no_more():
    small = model("smollm2-135m").facts
    assert has_room(FREE, FREE // ROOM, published(layersPerCria=15), small)
    assert not has_room(FREE, FREE // ROOM + 1, published(layersPerCria=15), small)


def test_crias_that_just_fit_leave_none():
    """43 of 70B's 80 layers take most of the GPU; fewer leave room for the same."""
    spec, facts = published(layersPerCria=43), model("llama-3.1-70b").facts
    planned = gpu_need(Outline.of(spec, model("llama-3.1-70b")), Stage.EVALUATE).total
    assert 75e9 < planned < 80e9
    assert not has_room(FREE, 2_000_000_000, spec, facts)
    assert has_room(FREE, 2_000_000_000, published(layersPerCria=20), facts)


@pytest.mark.parametrize(("device", "needed"), [("cpu", 10), ("cuda", 0)])
def test_the_host_holds_them_without_a_gpu_and_where_there_are_none(device, needed):
    facts = model("smollm2-135m").facts
    assert roomy_device(torch.device(device), needed, published(), facts) == torch.device("cpu")
