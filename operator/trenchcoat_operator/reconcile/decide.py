"""The decision: from one Trenchcoat and one look at the world to a plan."""

from datetime import datetime

from trenchcoat_api import constants, texts
from trenchcoat_api.artifacts import Artifacts, ModelFacts
from trenchcoat_api.estimate import TERAFLOPS, estimate
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import EstimateStatus, State, TrenchcoatStatus, WaitingReason

from trenchcoat_operator.children import jobs, specs
from trenchcoat_operator.model.observed import Observed, Problem
from trenchcoat_operator.model.plan import Action, Apply, Plan, RecordOutcome, StoreAction
from trenchcoat_operator.reconcile.assessment.assess import Assessment, assess
from trenchcoat_operator.reconcile.starting import gate
from trenchcoat_operator.reconcile.starting.release import Hold, Release, release
from trenchcoat_operator.reconcile.stopping import children, retention
from trenchcoat_operator.reconcile.telling import columns, conditions, events, rows, usage
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.works import superseded
from trenchcoat_operator.works.graph import Graph, build, needed

STORE_RETRY_SECONDS = 10.0


def reconcile(desired: Trenchcoat, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Decide what is to be done for a Trenchcoat."""
    graph = build(desired.spec, observed.store.told)
    if desired.metadata.deletion_timestamp:
        return _part(desired, graph, observed, settings, now)
    still = needed(graph.works, observed.store.manifests, observed.store.deletions)
    assessments = tuple(
        assess(work, desired, observed, now, needed=work.key in still) for work in graph.works
    )
    released = _release(desired, graph, assessments, observed, settings, now)
    removals = children.deletions(desired, graph, observed, settings, now)
    kept, undecided = _intermediates(desired, graph, observed, still)
    records = [
        RecordOutcome(child.kind, child.name, outcome.failure.value, outcome.message)
        for assessment in assessments
        for child, outcome in assessment.unrecorded
    ]
    overdue = children.past_deadline(desired, graph, observed, now)
    actions = (
        *retention.wanted_finalizer(desired),
        *removals,
        *records,  # with a pod goes the knowledge that its node was lost
        *children.lost_pods(observed, now),
        *overdue,
        *_creations(desired, assessments, released, observed, settings),
        *kept,
    )
    going = frozenset(action.name for action in removals)
    status = _status(desired, graph, assessments, released, observed, now, going)
    status = usage.account(status, desired, observed, now, last_look=bool(removals or overdue))
    told = (
        *events.of_conditions(desired.status.conditions, status.conditions, desired),
        *events.of_failures(assessments),
        *events.of_actions(actions, texts.timestamp(now)),
        *events.of_rows(desired.status, status),
    )
    stuck = observed.capacity is None and bool(children.stuck(desired, observed, now))
    return Plan(
        actions,
        status,
        told,
        _look_again(desired, status, assessments, released, observed, settings, now, hurry=bool(kept)),
        released.needs_surroundings or undecided or stuck,
        any(hold.waiting is WaitingReason.GPU for hold in released.held.values()),
        released.due,
    )


def _part(desired: Trenchcoat, graph: Graph, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Let a Trenchcoat go; without the finalizer its children go by their owner references."""
    if constants.FINALIZER not in desired.metadata.finalizers:
        return Plan((), desired.status, (), None)
    steps, told, undecided = retention.farewell(desired, graph, observed, now)
    actions = (*children.lost_pods(observed, now), *steps)
    every = (*told, *events.of_actions(actions, texts.timestamp(now)))
    hurry = any(isinstance(action, StoreAction) for action in actions)
    return Plan(actions, desired.status, every, 0.0 if hurry else settings.poll_seconds, undecided)


def _intermediates(
    desired: Trenchcoat, graph: Graph, observed: Observed, still: set[str]
) -> tuple[list[Action], bool]:
    if observed.store.problem is not None or graph.fault:
        return [], False
    return retention.intermediates(desired, graph, observed, still)


def _release(
    desired: Trenchcoat,
    graph: Graph,
    assessments: tuple[Assessment, ...],
    observed: Observed,
    settings: Settings,
    now: datetime,
) -> Release:
    if observed.store.problem is not None:
        hold = Hold(WaitingReason.STORE, "waits until the store can be used")
        return Release(held={item.work.key: hold for item in assessments if item.startable})
    if graph.fault:
        return Release()
    return release(desired, assessments, observed, settings, now)


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


def _problem(
    desired: Trenchcoat,
    graph: Graph,
    assessments: tuple[Assessment, ...],
    released: Release,
    observed: Observed,
    going: frozenset[str],
) -> Problem | None:
    if observed.store.problem is not None:
        return observed.store.problem
    if graph.fault:
        return Problem("InvalidInput", graph.fault)
    for assessment in assessments:
        # What is wrong with a Job that is taken away in this very pass is of no interest.
        taken_away = assessment.latest is not None and assessment.latest.name in going
        if assessment.problem is not None and not taken_away:
            name = assessment.work.artifact.name
            return Problem(assessment.problem.reason, f"{name}: {assessment.problem.message}")
    for assessment in assessments:
        hold = released.held.get(assessment.work.key)
        if hold is not None and hold.problem is not None:
            return Problem(hold.problem.reason, f"{assessment.work.artifact.name}: {hold.message}")
    return gate.judge(desired, assessments)


def _status(
    desired: Trenchcoat,
    graph: Graph,
    assessments: tuple[Assessment, ...],
    released: Release,
    observed: Observed,
    now: datetime,
    going: frozenset[str],
) -> TrenchcoatStatus:
    former = desired.status
    if observed.store.problem is not None and former.stages:
        stages, crias = list(former.stages), list(former.crias)  # what the store holds is not known now
    else:
        started = frozenset(work.key for work in released.start)
        stages, crias = rows.stage_rows(
            desired, assessments, dict(released.held), started, observed, graph.fault, now
        )
    at_work = [child for child in observed.children if child.active and child.owned]
    stuck = {assessment.work.key for assessment in assessments if assessment.problem is not None}
    goes_on = any(child.key not in stuck for child in at_work) or bool(released.start)
    first = conditions.accepted(graph, assessments, observed)
    problem = _problem(desired, graph, assessments, released, observed, going)
    wanted = conditions.verdicts(desired, first, stages, problem, busy=bool(at_work), goes_on=goes_on)
    manifests = [item.manifest for item in assessments if item.manifest is not None]
    tokenize = observed.store.told.get(Artifacts(desired.spec).tokenize.key)
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
        superseded=superseded.remembered(desired, graph, observed.store),
        perplexities=by_stage[Stage.EVALUATE].facts.perplexities
        if Stage.EVALUATE in by_stage
        else ([] if known else former.perplexities),
        gpu_seconds=former.gpu_seconds,
        accounted_at=former.accounted_at,
        estimate=_estimate(desired, tokenize.facts.model) if tokenize else former.estimate,
    )


def _estimate(desired: Trenchcoat, model: ModelFacts | None) -> EstimateStatus | None:
    if model is None:
        return None
    try:
        needs = estimate(desired.spec, model)
    except ValueError:
        return None  # spec.layersPerCria does not fit the model, which the conditions tell
    return EstimateStatus(
        tokens=needs.tokens,
        activation_bytes=needs.activation_bytes,
        weight_bytes=needs.weight_bytes,
        cria_weight_bytes=needs.cria_weight_bytes,
        collect_gpu_hours=f"{needs.gpu_hours(needs.collect_flop, TERAFLOPS):.3g}",
        cria_gpu_hours=f"{needs.gpu_hours(needs.cria_flop, TERAFLOPS):.3g}",
    )


def _look_again(
    desired: Trenchcoat,
    status: TrenchcoatStatus,
    assessments: tuple[Assessment, ...],
    released: Release,
    observed: Observed,
    settings: Settings,
    now: datetime,
    *,
    hurry: bool,
) -> float | None:
    waits: list[float] = [0.0] if hurry else []
    if any(child.active or child.terminating for child in observed.children):
        waits.append(settings.poll_seconds)
    # Those that wait for GPUs are woken: a look of each, again and again, would be most of all work.
    if released.start or any(hold.waiting is WaitingReason.SHARED for hold in released.held.values()):
        waits.append(settings.poll_seconds)
    if observed.store.problem is not None:
        waits.append(STORE_RETRY_SECONDS)
    if usage.is_open(status, desired, observed):
        waits.append(usage.LAG.total_seconds())
    for assessment in assessments:
        if assessment.look_at is not None:
            waits.append(max(0.5, (assessment.look_at - now).total_seconds()))
        elif assessment.state in (State.STARTING, State.RUNNING):
            waits.append(settings.poll_seconds)
    return min(waits, default=None)
