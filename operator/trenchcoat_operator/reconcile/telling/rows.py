"""Rows of the status: one for each stage, one for each Cria."""

from datetime import datetime
from typing import Any

from trenchcoat_api import texts
from trenchcoat_api.artifacts import Manifest, Progress
from trenchcoat_api.gates import worst_layer
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import INPUTS, Stage
from trenchcoat_api.status import CriaStatus, Source, StageStatus, State, WaitingReason
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.model.observed import ChildPhase, Observed
from trenchcoat_operator.reconcile.assessment.assess import Assessment, not_admitted
from trenchcoat_operator.reconcile.starting.release import Hold
from trenchcoat_operator.reconcile.telling import usage
from trenchcoat_operator.works import graph

_MESSAGE_LIMIT = 4096


def row(
    assessment: Assessment,
    hold: Hold | None,
    started: bool,
    progress: Progress | None,
    former: Row | None,
    trenchcoat: Trenchcoat,
    now: datetime,
) -> dict[str, Any]:
    """What the rows of a stage and of a Cria have in common, ready for either."""
    work, manifest = assessment.work, assessment.manifest
    if former is not None and former.key != work.key:
        former = None  # the row spoke of another artifact
    values: dict[str, Any] = {
        "state": assessment.state,
        "message": assessment.message[:_MESSAGE_LIMIT],
        "waiting_reason": assessment.waiting,
        "key": work.key,
        "attempt": assessment.attempt,
        "started_at": former.started_at if former else "",
        "last_failure": former.last_failure if former else "",
        "gpu_seconds": former.gpu_seconds if former else "",
        "attempts": usage.attempts(former.attempts if former else [], _seen(assessment)),
    }
    if hold is not None:
        values |= {"message": hold.message, "waiting_reason": hold.waiting}
    if started:
        values |= {
            "state": State.STARTING,
            "message": "its pods start",
            "waiting_reason": None,
            "attempt": assessment.attempt + 1,
        }
        if queue := trenchcoat.spec.scheduling.queue_name:
            values |= {
                "state": State.WAITING,
                "message": not_admitted(queue),
                "waiting_reason": WaitingReason.QUEUE,
            }
    if values["waiting_reason"] is not None:
        same = former is not None and former.waiting_reason is values["waiting_reason"]
        since = former.waiting_since if former is not None and same else ""
        values["waiting_since"] = since or texts.timestamp(now)
    if assessment.last_outcome is not None:
        failure = assessment.last_outcome
        values["last_failure"] = f"{failure.failure}: {failure.message}"[:_MESSAGE_LIMIT]
    latest = assessment.latest
    if latest is not None:
        begun = [pod.started_at for pod in latest.pods if pod.started_at is not None]
        nodes = [pod.node for pod in sorted(latest.pods, key=lambda pod: pod.name) if pod.node]
        if begun and not values["started_at"]:
            values["started_at"] = texts.timestamp(min(begun))
        if nodes:
            values["node"] = nodes[0]
    if former is not None and not values.get("node") and manifest is not None:
        values["node"] = former.node
    if former is not None and progress is None and manifest is None:
        values |= {name: getattr(former, name) for name in ("phase", "step", "steps", "progress", "loss")}
    if progress is not None:
        values |= _of_progress(progress, running=assessment.state is State.RUNNING)
    if manifest is not None:
        values |= _of_manifest(manifest, assessment, former, trenchcoat)
    if assessment.deleted is not None and assessment.deleted.manifest is not None:
        values |= _of_manifest(assessment.deleted.manifest, assessment, former, trenchcoat)
        values |= {"uri": "", "bytes": 0}
    return values


def _seen(assessment: Assessment) -> list[tuple[int, str]]:
    """Number and outcome of the tries whose Jobs are there."""
    failed = {child.name: outcome.failure.value for child, outcome in assessment.outcomes}
    ended = {child.name: "Succeeded" for child in assessment.tries if child.phase is ChildPhase.SUCCEEDED}
    return [(child.attempt, (ended | failed).get(child.name, "")) for child in assessment.tries]


def _of_progress(progress: Progress, *, running: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "phase": progress.phase,
        "step": progress.step,
        "steps": progress.steps,
        "progress": texts.percent(progress.fraction),
        "loss": _loss(progress.losses, progress.phase),
    }
    if running and progress.eta_seconds is not None:
        result["eta"] = texts.duration(progress.eta_seconds)
    return result


def _of_manifest(
    manifest: Manifest, assessment: Assessment, former: Row | None, trenchcoat: Trenchcoat
) -> dict[str, Any]:
    computed = bool(assessment.tries) or (former is not None and former.source is Source.COMPUTED)
    return {
        "source": Source.COMPUTED if computed else Source.REUSED,
        "progress": "100%",
        "loss": _loss(manifest.facts.losses, ""),
        "started_at": texts.timestamp(manifest.started_at),
        "completed_at": texts.timestamp(manifest.completed_at),
        "seconds": f"{manifest.seconds:.1f}",
        "uri": f"s3://{trenchcoat.spec.store.bucket}/{assessment.work.artifact.prefix}",
        "bytes": manifest.size,
        "digest": manifest.digest,
    }


def _loss(losses: dict[str, str], phase: str) -> str:
    if phase in losses:
        return losses[phase]
    return next(reversed(losses.values()), "")


def cria_row(
    assessment: Assessment,
    hold: Hold | None,
    started: bool,
    observed: Observed,
    former: CriaStatus | None,
    trenchcoat: Trenchcoat,
    now: datetime,
) -> CriaStatus:
    """The row of one Cria."""
    cria = assessment.work.artifact.cria
    assert cria is not None, "a Cria's work knows its range"  # noqa: S101
    progress = observed.store.progress.get(assessment.work.key)
    values = row(assessment, hold, started, progress, former, trenchcoat, now)
    if assessment.manifest is not None:
        facts = assessment.manifest.facts
        worst = worst_layer(facts)
        error = f"{worst[1]:.3g}" if worst else ""
        values |= {"losses": facts.losses, "curve": facts.curve[:32], "error": error}
    elif progress is not None and assessment.state is State.RUNNING:
        values |= {"losses": progress.losses, "curve": progress.curve[:32]}
    return CriaStatus(index=cria.index, layers=str(cria), **values)


def blocked_row(stage: Stage, fault: str) -> StageStatus:
    """The row of a stage whose artifact cannot be named before the model was read."""
    inputs = " and ".join(stage.value for stage in INPUTS[stage])
    return StageStatus(name=stage.value, state=State.BLOCKED, message=fault or f"waits for {inputs}")


_ORDER_OF_TELLING = (
    State.FAILED,
    State.RUNNING,
    State.STARTING,
    State.WAITING,
    State.SUSPENDED,
    State.BLOCKED,
)


def crias_row(crias: list[CriaStatus]) -> StageStatus:
    """The row of the cria stage, which sums up the Crias."""
    done = [cria for cria in crias if cria.state is State.SUCCEEDED]
    begun = [cria.started_at for cria in crias if cria.started_at]
    values: dict[str, Any] = {"state": State.SUCCEEDED, "started_at": min(begun, default="")}
    if len(done) < len(crias):
        state = next(state for state in _ORDER_OF_TELLING if any(cria.state is state for cria in crias))
        teller = next(cria for cria in crias if cria.state is state)
        counts = [f"{len(done)} of {len(crias)} done"]
        counts += [
            f"{count} {state.lower()}"
            for state in _ORDER_OF_TELLING
            if (count := sum(cria.state is state for cria in crias))
        ]
        message = ", ".join(counts)
        waiting = next((cria for cria in crias if cria.state is State.WAITING), None)
        if state is State.FAILED:
            message += f"; Cria {teller.index}: {teller.message}"
        elif waiting is not None:
            message += f"; Cria {waiting.index}: {waiting.message}"
        elif state is State.BLOCKED:
            message = teller.message
        running = [cria for cria in crias if cria.state is State.RUNNING]
        values |= {
            "state": state,
            "message": message[:_MESSAGE_LIMIT],
            "waiting_reason": waiting.waiting_reason if waiting and state is State.WAITING else None,
            "waiting_since": waiting.waiting_since if waiting and state is State.WAITING else "",
            "progress": texts.percent(
                sum(_fraction(cria) for cria in crias) / len(crias),
            ),
            "loss": next((cria.loss for cria in running if cria.loss), ""),
            "last_failure": next((cria.last_failure for cria in crias if cria.last_failure), ""),
        }
    else:
        reused = all(cria.source is Source.REUSED for cria in crias)
        values |= {
            "progress": "100%",
            "source": Source.REUSED if reused else Source.COMPUTED,
            "completed_at": max(cria.completed_at for cria in crias),
            "seconds": f"{sum(float(cria.seconds or 0) for cria in crias):.1f}",
        }
    spent = sum(float(cria.gpu_seconds or 0) for cria in crias)
    values["gpu_seconds"] = f"{spent:.0f}" if spent else ""
    values["bytes"] = sum(cria.bytes for cria in crias)
    values["attempt"] = max((cria.attempt for cria in crias), default=0)
    return StageStatus(name=Stage.CRIA.value, **values)


def _fraction(row: Row) -> float:
    return float(row.progress.rstrip("%") or 0) / 100


def fraction(row: Row) -> float:
    """The share of a row's work that is done."""
    return 1.0 if row.state is State.SUCCEEDED else _fraction(row)


def stage_rows(
    trenchcoat: Trenchcoat,
    assessments: tuple[Assessment, ...],
    holds: dict[str, Hold],
    started: frozenset[str],
    observed: Observed,
    fault: str,
    now: datetime,
) -> tuple[list[StageStatus], list[CriaStatus]]:
    """All rows, in order."""
    former_stages = {row.name: row for row in trenchcoat.status.stages}
    former_crias = {row.index: row for row in trenchcoat.status.crias}
    crias = [
        cria_row(
            assessment,
            holds.get(assessment.work.key),
            assessment.work.key in started,
            observed,
            former_crias.get(assessment.work.artifact.cria.index),
            trenchcoat,
            now,
        )
        for assessment in assessments
        if assessment.work.artifact.cria is not None
    ]
    by_stage = {
        assessment.work.stage: assessment
        for assessment in assessments
        if assessment.work.artifact.cria is None
    }
    stages = []
    for stage in graph.stages(trenchcoat.spec):
        if stage is Stage.CRIA and crias:
            stages.append(crias_row(crias))
        elif stage in by_stage:
            assessment = by_stage[stage]
            key = assessment.work.key
            values = row(
                assessment,
                holds.get(key),
                key in started,
                observed.store.progress.get(key),
                former_stages.get(stage.value),
                trenchcoat,
                now,
            )
            stages.append(StageStatus(name=stage.value, **values))
        else:
            stages.append(blocked_row(stage, fault))
    return stages, crias
