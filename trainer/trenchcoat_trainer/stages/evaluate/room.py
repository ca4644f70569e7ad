"""Where hidden states in memory are held: on a GPU that has room for them beside all that comes there."""

import torch
from trenchcoat_api.artifacts import ModelFacts
from trenchcoat_api.planning.memory import gpu_need
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage

ROOM = 8
"""A GPU holds states that take no more than this part of what is free before any Cria is there."""


def roomy_device(device: torch.device, needed: int, spec: TrenchcoatSpec, model: ModelFacts) -> torch.device:
    """Return where states in memory are held: the device, if it is a GPU with room, or else the CPU.

    Args:
        device: the stage's.
        needed: bytes of the states and of the embeddings that they begin as; 0 where no states are held.
        spec: says, with the model's facts, what else the stage takes of a GPU.
        model: the teacher's.
    """
    if device.type == "cuda" and needed:
        free, _ = torch.cuda.mem_get_info(device)
        if has_room(free, needed, spec, model):
            return device
    return torch.device("cpu")


def has_room(free: int, needed: int, spec: TrenchcoatSpec, model: ModelFacts) -> bool:
    """Whether so many bytes that are free suffice for what is needed, and for what the plan counts besides.

    Some of that is there already; so little does not matter but to Crias that just fit.
    """
    planned = gpu_need(Outline.of(spec, PlannedModel.of_facts(model, spec)), Stage.EVALUATE)
    return free >= max(ROOM * needed, needed + (planned.total if planned else 0))
