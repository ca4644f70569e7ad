"""Trenchcoats as they stand in the queue for GPUs: what they hold, and what they wait for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stage_size import stage_size
from trenchcoat_api.stages import GANGS, Stage
from trenchcoat_api.status import TRAINING_OPERATOR_MISSING, ConditionType, State, WaitingReason
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.children import pods
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import Contender, Demand, Placement
from trenchcoat_operator.model.observed import Child
from trenchcoat_operator.works import graph

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def placement(trenchcoat: Trenchcoat, stage: Stage, gpus: int) -> Placement:
    """Where the pods of a stage may run."""
    wanted = graph.overrides(trenchcoat.spec, stage)
    return views.placement(
        {
            "nodeSelector": wanted.node_selector,
            "affinity": wanted.affinity,
            "tolerations": pods.tolerations(trenchcoat.spec, stage, gpus),
        }
    )


def contender(trenchcoat: Trenchcoat, held: int, stage: Stage, jobs: int, since: str) -> Contender:
    """A Trenchcoat as it stands in the queue for GPUs.

    Args:
        trenchcoat: The Trenchcoat.
        held: GPUs of its Jobs that are made and not over.
        stage: The stage that waits.
        jobs: How many of its Jobs wait.
        since: Since when the first of them waits, as it stands in the status.
    """
    created = trenchcoat.metadata.creation_timestamp
    size = stage_size(trenchcoat.spec, stage)
    return Contender(
        name=f"{trenchcoat.metadata.namespace}/{trenchcoat.metadata.name}",
        created_at=datetime.fromisoformat(created) if created else _EPOCH,
        held=held,
        demand=Demand(
            resource=trenchcoat.spec.scheduling.gpu_resource,
            pods=jobs * size.nodes,
            gpus=size.gpus_per_node,
            placement=placement(trenchcoat, stage, size.gpus_per_node),
        ),
        gang=stage in GANGS or size.gpus > 1,  # one pod of several GPUs would starve beside smaller ones
        since=datetime.fromisoformat(since) if since else None,
    )


def held_gpus(trenchcoat: Trenchcoat, children: tuple[Child, ...]) -> int:
    """GPUs of Jobs and PyTorchJobs that are made and not over."""
    return sum(stage_size(trenchcoat.spec, child.stage).gpus for child in children if child.holding)


def _waits_for_gpu(row: Row) -> bool:
    return row.state is State.WAITING and row.waiting_reason is WaitingReason.GPU


def waiting_since(trenchcoat: Trenchcoat, key: str) -> str:
    """Since when an artifact waits for GPUs, as it stands in the status; empty if it does not."""
    rows: list[Row] = [*trenchcoat.status.stages, *trenchcoat.status.crias]
    return next((row.waiting_since for row in rows if row.key == key and _waits_for_gpu(row)), "")


@dataclass(frozen=True, slots=True)
class Wish:
    """Jobs of one stage that a Trenchcoat waits for GPUs for, by its own status."""

    stage: Stage
    jobs: int
    limit: int
    """How many of the stage's Jobs may be there at once."""
    one: Contender
    """It, if it held nothing and one Job waited."""


def wishes(trenchcoat: Trenchcoat) -> tuple[Wish, ...]:
    """What a Trenchcoat waits for by its own status, what comes first before the rest."""
    status = trenchcoat.status
    if trenchcoat.spec.suspend or trenchcoat.metadata.deletion_timestamp:
        return ()
    if any(
        item.type is ConditionType.ACCEPTED
        and item.status == "False"
        and item.reason != TRAINING_OPERATOR_MISSING
        for item in status.conditions
    ):
        return ()  # it cannot start anything, whatever its rows said before
    result = []
    crias = [cria for cria in status.crias if _waits_for_gpu(cria)]
    if crias:
        one = contender(trenchcoat, 0, Stage.CRIA, 1, crias[0].waiting_since)
        result.append(Wish(Stage.CRIA, len(crias), trenchcoat.spec.scheduling.max_parallel_crias, one))
    for row in status.stages:
        if row.name == Stage.CRIA or not _waits_for_gpu(row):
            continue
        stage = Stage(row.name)
        if stage_size(trenchcoat.spec, stage).gpus > 0:
            result.append(Wish(stage, 1, 1, contender(trenchcoat, 0, stage, 1, row.waiting_since)))
    return tuple(result)


def waiting(wishes: Iterable[Wish], held: Mapping[Stage, int], gpus: int) -> Contender | None:
    """A Trenchcoat as it stands in the queue for GPUs; None when it waits for none.

    Args:
        wishes: What it waits for.
        held: Its Jobs that are made and not over, by stage; its status may not tell of the last of them.
        gpus: Their GPUs.
    """
    for wish in wishes:
        jobs = min(wish.jobs, wish.limit - held.get(wish.stage, 0))
        if jobs > 0:
            demand = replace(wish.one.demand, pods=jobs * wish.one.demand.pods)
            return replace(wish.one, held=gpus, demand=demand)
    return None
