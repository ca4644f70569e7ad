"""The decision: from one Trenchcoat and one look at the world to a plan."""

from datetime import datetime, timedelta

from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State, TrenchcoatStatus, WaitingReason

from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.model.observed import ChildKind, Observed, Problem
from trenchcoat_operator.reconcile import columns, conditions, events, rows, texts
from trenchcoat_operator.reconcile.assess import Assessment, assess
from trenchcoat_operator.reconcile.graph import Graph, build
from trenchcoat_operator.reconcile.plan import Action, Apply, Delete, ForcePod, Plan, RecordOutcome
from trenchcoat_operator.reconcile.release import Hold, Release, release
from trenchcoat_operator.settings import Settings

STORE_RETRY_SECONDS = 10.0
LOST_POD_GRACE = timedelta(seconds=30)
"""A pod that should be gone for so long is on a node that does not answer."""


def reconcile(desired: Trenchcoat, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Decide what is to be done for a Trenchcoat."""
    if desired.metadata.deletion_timestamp:
        return Plan((), desired.status, (), None)  # its children go by their owner references
    graph = build(desired.spec, observed.store.manifests)
    assessments = tuple(assess(work, desired, observed, now) for work in graph.works)
    released = _release(desired, graph, assessments, observed)
    deletions = _deletions(desired, graph, observed, settings)
    records = [
        RecordOutcome(child.kind, child.name, outcome.failure.value, outcome.message)
        for assessment in assessments
        for child, outcome in assessment.unrecorded
    ]
    actions = (
        *deletions,
        *_lost_pods(observed, now),
        *records,
        *_creations(desired, assessments, released, observed, settings),
    )
    status = _status(desired, graph, assessments, released, observed, now)
    told = (
        *events.of_conditions(desired.status.conditions, status.conditions, desired),
        *events.of_failures(assessments),
        *events.of_actions(actions, texts.timestamp(now)),
        *events.of_rows(desired.status, status),
    )
    return Plan(
        actions,
        status,
        told,
        _look_again(assessments, released, observed, settings, now),
        released.needs_capacity,
    )


def _release(
    desired: Trenchcoat, graph: Graph, assessments: tuple[Assessment, ...], observed: Observed
) -> Release:
    if observed.store.problem is not None:
        hold = Hold(WaitingReason.STORE, "waits until the store can be used")
        return Release((), {item.work.key: hold for item in assessments if item.startable}, False)
    if graph.fault:
        return Release((), {}, False)
    return release(desired, assessments, observed)


def _deletions(desired: Trenchcoat, graph: Graph, observed: Observed, settings: Settings) -> list[Action]:
    wanted = {work.key: work for work in graph.works}
    known = observed.store.problem is None  # or else what is wanted is not known
    result: list[Action] = []
    going = set()
    for child in sorted(observed.children, key=lambda child: child.name):
        if not child.owned or child.terminating:
            continue
        reason = ""
        if known and child.key not in wanted:
            reason = "the spec no longer asks for its artifact"
        elif child.active and desired.spec.suspend:
            reason = "spec.suspend is true"
        elif (
            known
            and child.active
            and not child.running
            and child.template != jobs.template_hash(desired, wanted[child.key], settings.pods)
        ):
            reason = "its pod settings changed before it ran"
        elif (
            child.kind is ChildKind.PYTORCH_JOB and child.active and any(pod.disrupted for pod in child.pods)
        ):
            # Its other pods cannot go on without the one that is gone; their ends would count as failures.
            reason = "the cluster ended a pod of it; it starts again from its checkpoint"
        if reason:
            going.add(child.name)
            result.append(Delete(child.kind, child.name, reason))
    needed = {child.spec_name for child in observed.children if child.active and child.name not in going}
    needed.add(specs.spec_name(desired))
    for name in sorted(observed.config_maps - needed):
        result.append(Delete("ConfigMap", name, "no Job reads it any more"))
    return result


def _lost_pods(observed: Observed, now: datetime) -> list[Action]:
    lost = [
        ForcePod(pod.name, pod.node)
        for child in observed.children
        for pod in child.pods
        if pod.gone_by is not None and now > pod.gone_by + LOST_POD_GRACE
    ]
    return sorted(lost, key=lambda action: action.name)


def _creations(
    desired: Trenchcoat,
    assessments: tuple[Assessment, ...],
    released: Release,
    observed: Observed,
    settings: Settings,
) -> list[Action]:
    attempts = {item.work.key: item.attempt for item in assessments}
    result: list[Action] = []
    if released.start and specs.spec_name(desired) not in observed.config_maps:
        result.append(Apply(specs.spec_config_map(desired)))
    for work in released.start:
        result.append(Apply(jobs.build(desired, work, attempts[work.key] + 1, settings.pods)))
    return result


def _problem(graph: Graph, assessments: tuple[Assessment, ...], observed: Observed) -> Problem | None:
    if observed.store.problem is not None:
        return observed.store.problem
    if graph.fault:
        return Problem("InvalidInput", graph.fault)
    for assessment in assessments:
        if assessment.problem is not None:
            name = assessment.work.artifact.name
            return Problem(assessment.problem.reason, f"{name}: {assessment.problem.message}")
    return None


def _status(
    desired: Trenchcoat,
    graph: Graph,
    assessments: tuple[Assessment, ...],
    released: Release,
    observed: Observed,
    now: datetime,
) -> TrenchcoatStatus:
    former = desired.status
    if observed.store.problem is not None and former.stages:
        stages, crias = list(former.stages), list(former.crias)  # what the store holds is not known now
    else:
        started = frozenset(work.key for work in released.start)
        stages, crias = rows.stage_rows(
            desired, assessments, dict(released.held), started, observed, graph.fault
        )
    busy = any(child.active and child.owned for child in observed.children) or bool(released.start)
    first = conditions.accepted(graph, assessments, observed)
    problem = _problem(graph, assessments, observed)
    wanted = conditions.verdicts(desired, first, stages, problem, busy=busy)
    manifests = [item.manifest for item in assessments if item.manifest is not None]
    tokenize = observed.store.manifests.get(Artifacts(desired.spec).tokenize.key)
    by_stage = {manifest.stage: manifest for manifest in manifests}
    crias_running = sum(child.stage is Stage.CRIA and child.running for child in observed.children)
    known = observed.store.problem is None
    return TrenchcoatStatus(
        observed_generation=desired.metadata.generation,
        stage=columns.stage(desired, stages, crias, stalled=problem is not None),
        crias_done=columns.crias_done(crias),
        loss=columns.loss(stages),
        progress=columns.progress(stages),
        eta=columns.eta(assessments, observed),
        max_crias_running=max(former.max_crias_running, crias_running),
        stored_bytes=sum(manifest.size for manifest in manifests) if known else former.stored_bytes,
        export_uri=next((row.uri for row in stages if row.name == Stage.EXPORT), ""),
        model=tokenize.facts.model if tokenize else (former.model if not known else None),
        data=tokenize.facts.data if tokenize else (former.data if not known else None),
        conditions=conditions.merge(former.conditions, wanted, desired.metadata.generation, now),
        stages=stages,
        crias=crias,
        perplexities=by_stage[Stage.EVALUATE].facts.perplexities
        if Stage.EVALUATE in by_stage
        else ([] if known else former.perplexities),
    )


def _look_again(
    assessments: tuple[Assessment, ...],
    released: Release,
    observed: Observed,
    settings: Settings,
    now: datetime,
) -> float | None:
    waits: list[float] = []
    if any(child.active or child.terminating for child in observed.children):
        waits.append(settings.poll_seconds)
    if released.start or any(hold.waiting is WaitingReason.GPU for hold in released.held.values()):
        waits.append(settings.poll_seconds)
    if observed.store.problem is not None:
        waits.append(STORE_RETRY_SECONDS)
    for assessment in assessments:
        if assessment.look_at is not None:
            waits.append(max(0.5, (assessment.look_at - now).total_seconds()))
        elif assessment.state in (State.STARTING, State.RUNNING):
            waits.append(settings.poll_seconds)
    return min(waits, default=None)
