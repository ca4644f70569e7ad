"""Which of the works that may start do start now: other Trenchcoats, the gate, parallelism, GPUs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import DISTRIBUTED, Stage
from trenchcoat_api.status import ConditionType, State, WaitingReason
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.children import pods
from trenchcoat_operator.gpus import sharing
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import Contender, Demand, Placement
from trenchcoat_operator.model.observed import Child, Observed, Problem
from trenchcoat_operator.reconcile.assessment.assess import Assessment
from trenchcoat_operator.reconcile.starting import gate
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a work that may start does not start yet."""

    waiting: WaitingReason
    message: str
    problem: Problem | None = None
    """What a person must mend."""


@dataclass(frozen=True, slots=True)
class Release:
    """Which works start, and why the others do not."""

    start: tuple[Work, ...] = ()
    held: Mapping[str, Hold] = field(default_factory=dict)
    """By content key."""
    needs_surroundings: bool = False
    due: tuple[str, ...] = ()
    """Other Trenchcoats for which GPUs are free now, as namespace/name."""


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
    count, gpus = graph.size(trenchcoat.spec, stage)
    return Contender(
        name=f"{trenchcoat.metadata.namespace}/{trenchcoat.metadata.name}",
        created_at=datetime.fromisoformat(created) if created else _EPOCH,
        held=held,
        demand=Demand(
            resource=trenchcoat.spec.scheduling.gpu_resource,
            pods=jobs * count,
            gpus=gpus,
            placement=placement(trenchcoat, stage, gpus),
        ),
        gang=stage in DISTRIBUTED,
        since=datetime.fromisoformat(since) if since else None,
    )


def active_crias(children: tuple[Child, ...]) -> int:
    """Cria Jobs that are made and not over, those of a former spec that are being stopped included."""
    return sum(child.stage is Stage.CRIA and child.holding for child in children)


def held_gpus(trenchcoat: Trenchcoat, children: tuple[Child, ...]) -> int:
    """GPUs of Jobs and PyTorchJobs that are made and not over."""
    total = 0
    for child in children:
        if child.holding:
            count, gpus = graph.size(trenchcoat.spec, child.stage)
            total += count * gpus
    return total


def release(
    trenchcoat: Trenchcoat,
    assessments: tuple[Assessment, ...],
    observed: Observed,
    settings: Settings,
    now: datetime,
) -> Release:
    """Choose among the works that may start."""
    ready = [assessment.work for assessment in assessments if assessment.startable]
    held: dict[str, Hold] = {}
    stop = gate.judge(trenchcoat, assessments)
    for work in ready:
        if work.stage is Stage.STITCH and stop is not None:
            held[work.key] = Hold(WaitingReason.GATE, stop.message, stop)
    if observed.peers is not None:
        for work in ready:
            if work.key in observed.peers.at_work:
                message = f"Trenchcoat {observed.peers.at_work[work.key]} makes it; it will be reused"
                held[work.key] = Hold(WaitingReason.SHARED, message)

    limit = trenchcoat.spec.scheduling.max_parallel_crias
    room = max(0, limit - active_crias(observed.children))
    crias = [work for work in ready if work.stage is Stage.CRIA and work.key not in held]
    for work in crias[room:]:
        held[work.key] = Hold(WaitingReason.PARALLELISM, f"spec.scheduling.maxParallelCrias {limit} reached")

    start = [work for work in ready if work.key not in held]
    kueue = trenchcoat.spec.scheduling.queue_name is not None  # it decides when a Job starts
    gated = [] if kueue else [work for work in start if work.gated]
    if start and (observed.peers is None or (gated and observed.capacity is None)):
        for work in gated:
            held[work.key] = Hold(WaitingReason.GPU, f"waits for {trenchcoat.spec.scheduling.gpu_resource}")
        begun = () if observed.peers is None else tuple(work for work in start if work not in gated)
        return Release(begun, held, needs_surroundings=True)
    if gated:
        granted, due = _granted(trenchcoat, gated, observed, settings, now, held)
        start = [work for work in start if work not in gated or work.key in granted]
        return Release(tuple(start), held, due=due)
    return Release(tuple(start), held)


def _granted(
    trenchcoat: Trenchcoat,
    gated: list[Work],
    observed: Observed,
    settings: Settings,
    now: datetime,
    held: dict[str, Hold],
) -> tuple[set[str], tuple[str, ...]]:
    """Content keys of the works that get GPUs, and who else may have some.

    The works are all of one stage; those that get none are added to `held`.
    """
    assert observed.capacity is not None  # noqa: S101
    since = _waiting_since(trenchcoat, gated[0].key)
    stage = gated[0].stage
    asking = contender(trenchcoat, held_gpus(trenchcoat, observed.children), stage, len(gated), since)
    result = sharing.grant(observed.capacity, asking, now, timedelta(seconds=settings.gang_patience_seconds))
    jobs = result.pods // gated[0].pods
    for work in gated[jobs:]:
        problem = Problem("Unschedulable", result.reason) if result.never else None
        held[work.key] = Hold(WaitingReason.GPU, result.reason, problem)
    return {work.key for work in gated[:jobs]}, result.due


def _waits_for_gpu(row: Row) -> bool:
    return row.state is State.WAITING and row.waiting_reason is WaitingReason.GPU


def _waiting_since(trenchcoat: Trenchcoat, key: str) -> str:
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
    if any(item.type is ConditionType.ACCEPTED and item.status == "False" for item in status.conditions):
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
        if graph.size(trenchcoat.spec, stage)[1] > 0:
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
