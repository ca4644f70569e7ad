"""Which of the works that may start do start now: other Trenchcoats, the gate, parallelism, GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import groupby

from trenchcoat_api.stages import Stage
from trenchcoat_api.status import WaitingReason

from trenchcoat_operator.gpus import contenders, sharing
from trenchcoat_operator.model.observed import Child, Problem
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.starting import fitting, gate
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a work that may start does not start yet."""

    waiting: WaitingReason
    message: str
    problem: Problem | None = None
    """What a person must mend."""
    place: str = ""
    """In the queue, such as 2 of 3."""
    look_at: datetime | None = None
    """When time alone makes a problem of it."""


Holds = dict[str, Hold]
"""By content key."""


@dataclass(frozen=True, slots=True)
class Release:
    """Which works start, and why the others do not."""

    start: tuple[Work, ...] = ()
    held: Mapping[str, Hold] = field(default_factory=dict)
    """By content key."""
    expecting_nodes: frozenset[str] = frozenset()
    """Content keys of works that start though no GPU is free, so that an autoscaler sees their pods."""
    needs_surroundings: bool = False
    due: tuple[str, ...] = ()
    """Other Trenchcoats for which GPUs are free now, as namespace/name."""
    misfit: Problem | None = None
    """What of the run cannot fit into its GPUs, as far as anything waits for that."""


def release(look: Look, assessments: tuple[Assessment, ...]) -> Release:
    """Choose among the works that may start."""
    ready = [assessment.work for assessment in assessments if assessment.startable]
    if not look.store_is_known:
        hold = Hold(WaitingReason.STORE, "waits until the store can be used")
        return Release(held={work.key: hold for work in ready})
    if look.graph.fault:
        return Release()
    misfit = fitting.judge(look) if ready else None
    if misfit is not None:
        hold = Hold(WaitingReason.PLAN, fitting.WAITS)
        return Release(held={work.key: hold for work in ready}, misfit=misfit)
    held = _at_the_gate(look, assessments, ready) | _made_by_others(look, ready)
    held |= _refused(look, assessments, [work for work in ready if work.key not in held])
    held |= _too_many(look, [work for work in ready if work.key not in held])
    start = [work for work in ready if work.key not in held]
    kueue = look.trenchcoat.spec.scheduling.queue_name is not None  # it decides when a Job starts
    gated = [] if kueue else [work for work in start if work.gated]
    if start and (look.observed.peers is None or (gated and look.observed.capacity is None)):
        resource = look.trenchcoat.spec.scheduling.gpu_resource
        held |= {work.key: Hold(WaitingReason.GPU, f"waits for {resource}") for work in gated}
        begun = start if look.observed.peers is not None else []
        return Release(tuple(work for work in begun if work.key not in held), held, needs_surroundings=True)
    if not gated:
        return Release(tuple(start), held)
    shared = _share(look, gated)
    held |= shared.held
    started = tuple(work for work in start if work.key not in held)
    return Release(started, held, expecting_nodes=frozenset(shared.expecting), due=shared.due)


def _at_the_gate(look: Look, assessments: tuple[Assessment, ...], ready: list[Work]) -> Holds:
    holds = {}
    stop = gate.judge(look.trenchcoat, assessments)
    if stop is not None:
        holds[Stage.STITCH] = Hold(WaitingReason.GATE, stop.message, stop)
    stop = gate.judge_export(look.trenchcoat, assessments)
    if stop is not None:
        holds[Stage.EXPORT] = Hold(WaitingReason.GATE, stop.message, stop)
    elif gate.awaits_evaluation(look.trenchcoat, assessments):
        holds[Stage.EXPORT] = Hold(WaitingReason.GATE, gate.UNMEASURED)
    return {work.key: holds[work.stage] for work in ready if work.stage in holds}


def _made_by_others(look: Look, ready: list[Work]) -> Holds:
    makers = look.observed.peers.at_work if look.observed.peers is not None else {}
    return {
        work.key: Hold(WaitingReason.SHARED, f"Trenchcoat {makers[work.key]} makes it; it will be reused")
        for work in ready
        if work.key in makers
    }


def _refused(look: Look, assessments: tuple[Assessment, ...], ready: list[Work]) -> Holds:
    """Works of a stage whose pods were refused: their Jobs are made one by one."""
    holds: Holds = {}
    for stage, group in groupby(ready, key=lambda work: work.stage):
        told = [
            item for item in assessments if item.work.stage is stage and item.waiting is WaitingReason.REFUSED
        ]
        if told:
            asked = any(not item.startable for item in told)
            first = next((item.work.key for item in told if item.startable), "")
            hold = Hold(WaitingReason.REFUSED, told[0].message)
            holds |= {work.key: hold for work in group if asked or work.key != first}
    return holds


def _too_many(look: Look, ready: list[Work]) -> Holds:
    """Crias beyond spec.scheduling.maxParallelCrias; those of a former spec that are being stopped count."""
    limit = look.trenchcoat.spec.scheduling.max_parallel_crias
    made = sum(child.stage is Stage.CRIA and child.holding for child in look.observed.children)
    crias = [work for work in ready if work.stage is Stage.CRIA]
    waiting = crias[max(0, limit - made) :]
    message = f"spec.scheduling.maxParallelCrias {limit} reached"
    return {
        work.key: Hold(WaitingReason.PARALLELISM, message, place=f"{place} of {len(waiting)}")
        for place, work in enumerate(waiting, 1)
    }


_CLAIMED = Hold(
    WaitingReason.SCHEDULER,
    "its devices are claimed, which nobody counts: those made before have their nodes first",
)


@dataclass(slots=True)
class _Share:
    """What came of the GPUs that are free."""

    held: Holds = field(default_factory=dict)
    """The works that none falls to."""
    expecting: set[str] = field(default_factory=set)
    """Content keys of those that start all the same."""
    due: tuple[str, ...] = ()
    """The other Trenchcoats for which GPUs are free now."""


def _share(look: Look, gated: list[Work]) -> _Share:
    """Share the GPUs that are free.

    One stage asks after the other, in order, and none before all works of the one before it start: what those
    take is gone by then.
    """
    capacity = look.observed.capacity
    assert capacity is not None  # noqa: S101
    taken = contenders.held_gpus(look.trenchcoat, look.observed.children)
    patience = timedelta(seconds=look.settings.gang_patience_seconds)
    pending = sum(_is_pending(child) for child in look.children)
    result = _Share()
    for stage, group in groupby(gated, key=lambda work: work.stage):
        works = list(group)
        if result.held:
            hold = Hold(WaitingReason.GPU, f"asks for GPUs once {gated[0].stage} has started")
            result.held |= {work.key: hold for work in works}
            continue
        if graph.overrides(look.trenchcoat.spec, stage).resource_claim_template_name:
            more = works[: max(0, max(look.pending_jobs, 1) - pending)]
            pending += len(more)
            result.expecting |= {work.key for work in more}
            result.held |= dict.fromkeys((work.key for work in works[len(more) :]), _CLAIMED)
            continue
        since = contenders.waiting_since(look.trenchcoat, works[0].key)
        asking = contenders.contender(look.trenchcoat, taken, stage, len(works), since)
        grant = sharing.grant(capacity, asking, look.now, patience)
        result.due = grant.due
        jobs = grant.pods // works[0].pods
        allowed = max(look.pending_jobs, 1 if grant.nowhere else 0) if grant.full else 0
        more = works[jobs:][: max(0, allowed - pending)]
        pending += len(more)
        result.expecting |= {work.key for work in more}
        result.held |= {work.key: _no_gpu(grant, pending) for work in works[jobs + len(more) :]}
        started = (jobs + len(more)) * works[0].pods
        taken += started * asking.demand.gpus
        capacity = replace(capacity, promised=(*capacity.promised, replace(asking.demand, pods=started)))
    return result


def _is_pending(child: Child) -> bool:
    """Whether a child that was made for nodes yet to be added still waits for some."""
    placed = sum(bool(pod.node) for pod in child.pods)
    return child.active and child.expects_nodes and placed < max(1, len(child.pods))


def _no_gpu(grant: sharing.Grant, pending: int) -> Hold:
    if pending:
        jobs = "1 Job waits" if pending == 1 else f"{pending} Jobs wait"
        return Hold(WaitingReason.GPU, f"{grant.reason}; {jobs} for nodes to be added", place=grant.place)
    certain = grant.never and grant.never_from is None
    problem = Problem("Unschedulable", grant.reason) if certain else None
    return Hold(WaitingReason.GPU, grant.reason, problem, grant.place, grant.never_from)
