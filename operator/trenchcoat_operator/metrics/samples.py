"""What one pass over a Trenchcoat is worth counting: pure, from its former status and the new one."""

from collections.abc import Iterator
from dataclasses import dataclass

from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, Source, StageStatus, State, TrenchcoatStatus
from trenchcoat_api.status import Work as Row


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of one metric: what a counter grows by, what a histogram observes, what a gauge shows."""

    metric: str
    labels: tuple[str, ...]
    """In the order of the metric's label names."""
    value: float = 1.0


def changes(trenchcoat: Trenchcoat, status: TrenchcoatStatus, waited: float) -> list[Sample]:
    """What changed between a Trenchcoat's former status and the one that was written.

    Args:
        trenchcoat: With its former status.
        status: The new one.
        waited: Seconds since the former status was found.
    """
    namespace = trenchcoat.metadata.namespace
    former = {_place(row): row for row in _rows(trenchcoat.status)}
    result = [
        Sample("trenchcoat_waiting_seconds_total", (namespace, row.waiting_reason.value), waited)
        for row in former.values()
        if row.state is State.WAITING and row.waiting_reason is not None and waited > 0
    ]
    for row in _rows(status):
        before = former.get(_place(row))
        if before is not None and before.key != row.key:
            result += _given_up(namespace, before)
            before = None
        result += _completed(namespace, row, before)
        result += _attempts(namespace, row, before)
    return result


def _completed(namespace: str, row: Row, before: Row | None) -> list[Sample]:
    was_complete = before is not None and before.state is State.SUCCEEDED
    if row.state is not State.SUCCEEDED or row.source is None or was_complete:
        return []
    stage = stage_of(row).value
    result = [Sample("trenchcoat_artifacts_total", (namespace, stage, row.source.value))]
    if row.source is Source.COMPUTED:
        result.append(Sample("trenchcoat_stage_duration_seconds", (stage,), float(row.seconds or 0)))
    return result


def _attempts(namespace: str, row: Row, before: Row | None) -> list[Sample]:
    """Attempts that ended, and GPU seconds that were found later of those that had ended."""
    stage = stage_of(row).value
    former = {item.number: item for item in before.attempts} if before is not None else {}
    result = []
    for attempt in row.attempts:
        if not attempt.outcome:
            continue
        earlier = former.get(attempt.number)
        counted = 0.0
        if earlier is not None and earlier.outcome == attempt.outcome:
            counted = float(earlier.gpu_seconds or 0)
        elif attempt.outcome != State.SUCCEEDED:
            result.append(Sample("trenchcoat_failed_attempts_total", (namespace, stage, attempt.outcome)))
        spent = float(attempt.gpu_seconds or 0) - counted
        if spent > 0:
            labels = (namespace, stage, attempt.outcome)
            result.append(Sample("trenchcoat_gpu_seconds_total", labels, spent))
    return result


def _given_up(namespace: str, row: Row) -> list[Sample]:
    """The attempts at an artifact that the spec asks for no more."""
    labels = (namespace, stage_of(row).value, "Stopped")
    spent = sum(float(item.gpu_seconds or 0) for item in row.attempts if not item.outcome)
    return [Sample("trenchcoat_gpu_seconds_total", labels, spent)] if spent > 0 else []


def gauges(trenchcoat: Trenchcoat, status: TrenchcoatStatus) -> list[Sample]:
    """How a Trenchcoat stands."""
    place = (trenchcoat.metadata.namespace, trenchcoat.metadata.name)
    result = [
        Sample("trenchcoat_condition", (*place, condition.type.value), float(condition.status == "True"))
        for condition in status.conditions
    ]
    result.append(Sample("trenchcoat_progress_ratio", place, _ratio(status.progress)))
    result.append(Sample("trenchcoat_stored_bytes", place, float(status.stored_bytes)))
    result.append(Sample("trenchcoat_used_gpu_seconds", place, float(status.gpu_seconds or 0)))
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


def stage_of(row: Row) -> Stage:
    """The stage that a row speaks of."""
    return Stage(row.name) if isinstance(row, StageStatus) else Stage.CRIA


def _rows(status: TrenchcoatStatus) -> Iterator[Row]:
    """Rows of single artifacts: the one that sums up the Crias is left out."""
    yield from (row for row in status.stages if row.name != Stage.CRIA)
    yield from status.crias


def _place(row: Row) -> tuple[str, int]:
    return (stage_of(row).value, row.index if isinstance(row, CriaStatus) else -1)


def _ratio(percent: str) -> float:
    return float(percent.rstrip("%") or 0) / 100
