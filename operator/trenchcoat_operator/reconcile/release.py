"""Which of the works that may start do start now: parallelism, GPUs, fairness."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.children import pods
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import Contender, Demand
from trenchcoat_operator.model.observed import Child, Observed
from trenchcoat_operator.reconcile import capacity, graph
from trenchcoat_operator.reconcile.assess import Assessment
from trenchcoat_operator.reconcile.graph import Work

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a work that may start does not start yet."""

    waiting: WaitingReason
    message: str


@dataclass(frozen=True, slots=True)
class Release:
    """Which works start, and why the others do not."""

    start: tuple[Work, ...]
    held: Mapping[str, Hold]
    """By content key."""
    needs_capacity: bool


def demand(trenchcoat: Trenchcoat, stage: Stage, jobs: int) -> Demand:
    """What a stage's Jobs of one GPU each ask of the nodes."""
    spec = trenchcoat.spec
    return Demand(
        resource=spec.scheduling.gpu_resource,
        pods=jobs,
        gpus=1,
        node_selector=graph.overrides(spec, stage).node_selector,
        tolerations=views.tolerations({"tolerations": pods.tolerations(spec, stage, gpus=1)}),
    )


def contender(trenchcoat: Trenchcoat, running: int, stage: Stage, jobs: int) -> Contender:
    """A Trenchcoat as it stands in the queue for GPUs."""
    created = trenchcoat.metadata.creation_timestamp
    return Contender(
        name=f"{trenchcoat.metadata.namespace}/{trenchcoat.metadata.name}",
        created_at=datetime.fromisoformat(created) if created else _EPOCH,
        running=running,
        demand=demand(trenchcoat, stage, jobs),
    )


def active_crias(children: tuple[Child, ...]) -> int:
    """Cria Jobs that are made and not over, those of a former spec that are being stopped included."""
    return sum(child.stage is Stage.CRIA and child.active for child in children)


def gpu_jobs(children: tuple[Child, ...]) -> int:
    """One-GPU Jobs that are made and not over."""
    return sum(child.stage in (Stage.CRIA, Stage.EVALUATE) and child.active for child in children)


def release(trenchcoat: Trenchcoat, assessments: tuple[Assessment, ...], observed: Observed) -> Release:
    """Choose among the works that may start."""
    ready = [assessment.work for assessment in assessments if assessment.startable]
    gated = [work for work in ready if work.gated]
    start = [work for work in ready if not work.gated]
    held: dict[str, Hold] = {}

    limit = trenchcoat.spec.scheduling.max_parallel_crias
    room = max(0, limit - active_crias(observed.children))
    crias = [work for work in gated if work.stage is Stage.CRIA]
    for work in crias[room:]:
        held[work.key] = Hold(WaitingReason.PARALLELISM, f"spec.scheduling.maxParallelCrias {limit} reached")
    gated = [work for work in gated if work.key not in held]

    if trenchcoat.spec.scheduling.queue_name:  # Kueue decides when a Job starts
        return Release((*start, *gated), held, needs_capacity=False)
    if gated and observed.capacity is None:
        for work in gated:
            held[work.key] = Hold(WaitingReason.GPU, f"waits for {trenchcoat.spec.scheduling.gpu_resource}")
        return Release(tuple(start), held, needs_capacity=True)
    if gated and observed.capacity is not None:
        asking = contender(trenchcoat, gpu_jobs(observed.children), gated[0].stage, len(gated))
        granted = capacity.grant(observed.capacity, asking)
        start += gated[: granted.jobs]
        for work in gated[granted.jobs :]:
            held[work.key] = Hold(WaitingReason.GPU, granted.reason)
    return Release(tuple(start), held, needs_capacity=False)


def waiting_jobs(trenchcoat: Trenchcoat, running_crias: int) -> tuple[Stage, int] | None:
    """What another Trenchcoat waits for by its own status: the stage and how many one-GPU Jobs."""
    status = trenchcoat.status
    if trenchcoat.spec.suspend or trenchcoat.metadata.deletion_timestamp:
        return None
    crias = sum(
        cria.state is State.WAITING and cria.waiting_reason is WaitingReason.GPU for cria in status.crias
    )
    if crias:
        room = trenchcoat.spec.scheduling.max_parallel_crias - running_crias
        return Stage.CRIA, max(0, min(crias, room))
    for stage in status.stages:
        if (
            stage.name == Stage.EVALUATE
            and stage.state is State.WAITING
            and stage.waiting_reason is WaitingReason.GPU
        ):
            return Stage.EVALUATE, 1
    return None
