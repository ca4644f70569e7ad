"""What one pass over a Trenchcoat is worth counting: pure, from its former status and the plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, Source, StageStatus, State, TrenchcoatStatus
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.model.observed import Child, Observed
from trenchcoat_operator.reconcile.plan import Delete, Plan, RecordOutcome


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of one metric: what a counter grows by, what a histogram observes, what a gauge shows."""

    metric: str
    labels: tuple[str, ...]
    """In the order of the metric's label names."""
    value: float = 1.0


def of_actions(trenchcoat: Trenchcoat, observed: Observed, plan: Plan, now: datetime) -> list[Sample]:
    """What the plan's actions say of attempts: each ends with one action, so that it is counted once."""
    namespace = trenchcoat.metadata.namespace
    children = {child.name: child for child in observed.children}
    result = []
    for action in plan.actions:
        if not isinstance(action, RecordOutcome | Delete):
            continue
        child = children.get(action.name)
        if isinstance(action, RecordOutcome):
            result.append(Sample("trenchcoat_failed_attempts_total", (namespace, action.outcome)))
            outcome = action.outcome
        elif child is not None and child.active:
            outcome = "Stopped"
        else:
            continue
        if child is not None and not child.terminating:  # or else it was counted as stopped
            result += _gpu_seconds(trenchcoat, child.stage, outcome, held_seconds(child, now))
    return result


def of_status(trenchcoat: Trenchcoat, observed: Observed, plan: Plan, waited: float) -> list[Sample]:
    """What changed between a Trenchcoat's former status and the plan's.

    Args:
        trenchcoat: With its former status.
        observed: What was seen.
        plan: With the status that was written.
        waited: Seconds since the former status was found.
    """
    namespace = trenchcoat.metadata.namespace
    former = {_place(row): row for row in _rows(trenchcoat.status)}
    result = [
        Sample("trenchcoat_waiting_seconds_total", (namespace, row.waiting_reason.value), waited)
        for row in former.values()
        if row.state is State.WAITING and row.waiting_reason is not None and waited > 0
    ]
    for row in _rows(plan.status):
        before = former.get(_place(row))
        complete_before = before is not None and before.state is State.SUCCEEDED and before.key == row.key
        if row.state is not State.SUCCEEDED or row.source is None or complete_before:
            continue
        stage = stage_of(row)
        result.append(Sample("trenchcoat_artifacts_total", (namespace, stage.value, row.source.value)))
        if row.source is Source.COMPUTED:
            seconds = float(row.seconds or 0)
            result.append(Sample("trenchcoat_stage_duration_seconds", (stage.value,), seconds))
            result += _gpu_seconds(trenchcoat, stage, State.SUCCEEDED, _last_try(row, observed, seconds))
    return result


def gauges(trenchcoat: Trenchcoat, status: TrenchcoatStatus) -> list[Sample]:
    """How a Trenchcoat stands."""
    place = (trenchcoat.metadata.namespace, trenchcoat.metadata.name)
    result = [
        Sample("trenchcoat_condition", (*place, condition.type.value), float(condition.status == "True"))
        for condition in status.conditions
    ]
    result.append(Sample("trenchcoat_progress_ratio", place, _ratio(status.progress)))
    result.append(Sample("trenchcoat_stored_bytes", place, float(status.stored_bytes)))
    complete = [row for row in _rows(status) if row.state is State.SUCCEEDED]
    if complete:
        reused = sum(row.source is Source.REUSED for row in complete) / len(complete)
        result.append(Sample("trenchcoat_reuse_ratio", place, reused))
    for state in State:
        if count := sum(cria.state is state for cria in status.crias):
            result.append(Sample("trenchcoat_crias", (*place, state.value), float(count)))
    for cria in status.crias:
        if cria.state is State.RUNNING:
            labels = (*place, str(cria.index))
            result.append(Sample("trenchcoat_cria_progress_ratio", labels, _ratio(cria.progress)))
            if cria.loss:
                result.append(Sample("trenchcoat_cria_loss", labels, float(cria.loss)))
    return result


def gpus(spec: TrenchcoatSpec, stage: Stage) -> int:
    """GPUs that one attempt of a stage holds."""
    match stage:
        case Stage.COLLECT:
            return spec.collect.nodes * spec.collect.gpus_per_node
        case Stage.STITCH:
            return spec.stitch.nodes * spec.stitch.gpus_per_node
        case Stage.CRIA | Stage.EVALUATE:
            return 1
        case _:
            return 0


def held_seconds(child: Child, now: datetime) -> float:
    """How long the pods of an attempt ran, or have run; to the second, as the API server writes times."""
    begun = [pod.started_at for pod in child.pods if pod.started_at is not None]
    # Pods that are gone leave only the time when their Job was made.
    start = min(begun) if begun else child.created_at if not child.pods and not child.suspended else None
    return max(0.0, ((child.finished_at or now) - start).total_seconds()) if start is not None else 0.0


def stage_of(row: Row) -> Stage:
    """The stage that a row speaks of."""
    return Stage(row.name) if isinstance(row, StageStatus) else Stage.CRIA


def _gpu_seconds(trenchcoat: Trenchcoat, stage: Stage, outcome: str, seconds: float) -> list[Sample]:
    amount = gpus(trenchcoat.spec, stage) * seconds
    labels = (trenchcoat.metadata.namespace, stage.value, str(outcome))
    return [Sample("trenchcoat_gpu_seconds_total", labels, amount)] if amount > 0 else []


def _last_try(row: Row, observed: Observed, seconds: float) -> float:
    """How long the attempt ran that completed the artifact; the artifact's own word if its Job is gone."""
    tries = [child for child in observed.children if child.owned and child.key == row.key]
    if not tries:
        return seconds
    latest = max(tries, key=lambda child: child.attempt)
    return held_seconds(latest, latest.finished_at or datetime.fromisoformat(row.completed_at))


def _rows(status: TrenchcoatStatus) -> Iterator[Row]:
    """Rows of single artifacts: the one that sums up the Crias is left out."""
    yield from (row for row in status.stages if row.name != Stage.CRIA)
    yield from status.crias


def _place(row: Row) -> tuple[str, int]:
    return (stage_of(row).value, row.index if isinstance(row, CriaStatus) else -1)


def _ratio(percent: str) -> float:
    return float(percent.rstrip("%") or 0) / 100
