"""Who stands in the queue for GPUs, by what its own status says."""

import pytest
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_operator.gpus.contenders import contender, wishes

from tests.operator import world
from tests.operator.simulation import trenchcoat

NOW = world.NOW.isoformat()


def waiting_cria(accepted: str, reason: str) -> Trenchcoat:
    row = {"index": 0, "layers": "0-3", "state": "Waiting", "waitingReason": "Gpu", "waitingSince": NOW}
    condition = {"type": "Accepted", "status": accepted, "reason": reason, "lastTransitionTime": NOW}
    return Trenchcoat.from_object(
        {**trenchcoat().to_object(), "status": {"crias": [row], "conditions": [condition]}}
    )


@pytest.mark.parametrize(
    ("accepted", "reason", "stands"),
    [
        ("True", "Valid", True),
        ("False", "SecretNotFound", False),
        # Its Crias need no training operator: their turn comes like anybody's.
        ("False", "TrainingOperatorMissing", True),
    ],
)
def test_who_can_start_nothing_waits_for_none(accepted: str, reason: str, stands: bool) -> None:
    assert bool(wishes(waiting_cria(accepted, reason))) == stands


@pytest.mark.parametrize(
    ("evaluate", "pods", "gpus", "together"),
    [
        ({}, 1, 1, False),
        ({"gpusPerNode": 2}, 1, 2, True),
        ({"nodes": 3}, 3, 1, True),
        ({"nodes": 3, "gpusPerNode": 0}, 3, 0, False),
    ],
)
def test_an_evaluation_on_several_gpus_waits_for_all_of_them(
    evaluate: dict[str, int], pods: int, gpus: int, together: bool
) -> None:
    asking = contender(trenchcoat(evaluate=evaluate), 0, Stage.EVALUATE, 1, NOW)
    assert (asking.demand.pods, asking.demand.gpus, asking.gang) == (pods, gpus, together)
