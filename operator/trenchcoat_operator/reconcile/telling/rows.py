"""Rows of the status: one for each stage, one for each Cria; what an artifact is told to be."""

from collections.abc import Collection
from typing import Any

from trenchcoat_api import texts
from trenchcoat_api.artifacts import Manifest, Progress
from trenchcoat_api.gates import worst_layer
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, Source, StageStatus, State, WaitingReason
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.reconcile.assessment.at_work import not_admitted
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling import attempts, waits
from trenchcoat_operator.works import graph

MESSAGE_LIMIT = 4096


def stage_row(stage: Stage, situation: Situation, assessment: Assessment, former: Row | None) -> StageStatus:
    """The row of a stage that makes one artifact.

    Args:
        stage: The stage.
        situation: What was worked out.
        assessment: Where its work stands.
        former: Its row as the last look left it.
    """
    return StageStatus(name=stage.value, **_row(situation, assessment, former))


def cria_row(situation: Situation, assessment: Assessment, former: CriaStatus | None) -> CriaStatus:
    """The row of one Cria; arguments as above."""
    cria = assessment.work.artifact.cria
    assert cria is not None, "a Cria's work knows its range"  # noqa: S101
    values = _row(situation, assessment, former)
    progress = situation.look.observed.store.progress.get(assessment.work.key)
    if assessment.manifest is not None:
        facts = assessment.manifest.facts
        worst = worst_layer(facts)
        error = f"{worst[1]:.3g}" if worst else ""
        values |= {"losses": facts.losses, "curve": facts.curve[:32], "error": error}
    elif progress is not None and assessment.state is State.RUNNING:
        values |= {"losses": progress.losses, "curve": progress.curve[:32]}
    return CriaStatus(index=cria.index, layers=str(cria), **values)


def blocked_row(stage: Stage, asked: Collection[Stage], fault: str) -> StageStatus:
    """The row of a stage whose artifact cannot be named before the model was read.

    Args:
        stage: The stage.
        asked: All stages that the spec asks for.
        fault: Why the spec cannot work with the model, if it cannot.
    """
    inputs = " and ".join(item.value for item in graph.waits_for(stage) if item in asked)
    return StageStatus(name=stage.value, state=State.BLOCKED, message=fault or f"waits for {inputs}")


def is_over(row: StageStatus, built: graph.Graph) -> bool:
    """Whether a stage is complete, or the run goes on without it."""
    return row.state is State.SUCCEEDED or row.key in built.given_up


def all_over(stages: list[StageStatus], built: graph.Graph) -> bool:
    """Whether nothing of a run is left to do."""
    return bool(stages) and all(is_over(row, built) for row in stages)


def fraction(row: Row) -> float:
    """The share of a row's work that its progress tells of."""
    return float(row.progress.rstrip("%") or 0) / 100


def _row(situation: Situation, assessment: Assessment, former: Row | None) -> dict[str, Any]:
    """What the rows of a stage and of a Cria have in common, ready for either."""
    look = situation.look
    if former is not None and former.key != assessment.work.key:
        former = None  # the row spoke of another artifact
    values = _state(situation, assessment)
    values["key"] = assessment.work.key
    if former is not None:
        values |= {name: getattr(former, name) for name in ("started_at", "last_failure", "gpu_seconds")}
    values["attempts"] = attempts.latest(former.attempts if former else [], attempts.seen(assessment))
    values |= waits.told(values, former, look.now)
    if assessment.last_outcome is not None:
        failure = assessment.last_outcome
        values["last_failure"] = f"{failure.failure}: {failure.message}"[:MESSAGE_LIMIT]
    values |= _of_pods(assessment, former)
    values |= _of_artifact(look, assessment, former)
    return values


def _state(situation: Situation, assessment: Assessment) -> dict[str, Any]:
    """Where the work stands, what it waits for and at which try it is, once the plan is carried out."""
    values: dict[str, Any] = {
        "state": assessment.state,
        "message": assessment.message[:MESSAGE_LIMIT],
        "waiting_reason": assessment.waiting,
        "attempt": assessment.attempt,
    }
    hold = situation.released.held.get(assessment.work.key)
    if hold is not None:
        values |= {"message": hold.message, "waiting_reason": hold.waiting, "waiting_place": hold.place}
    elif assessment.waiting is WaitingReason.QUEUE and assessment.latest is not None:
        queued = assessment.latest.queued
        values["waiting_place"] = queued.place if queued is not None else ""
    if not situation.starts(assessment):
        return values
    values["attempt"] += 1
    if assessment.waiting is WaitingReason.REFUSED:
        return values  # until its controller has spoken
    if queue := situation.look.trenchcoat.spec.scheduling.queue_name:
        message = not_admitted(queue)
        return values | {"state": State.WAITING, "message": message, "waiting_reason": WaitingReason.QUEUE}
    return values | {"state": State.STARTING, "message": "its pods start", "waiting_reason": None}


def _of_pods(assessment: Assessment, former: Row | None) -> dict[str, Any]:
    """When the work began, and on which node it is or was."""
    pods = sorted(assessment.latest.pods, key=lambda pod: pod.name) if assessment.latest is not None else []
    values: dict[str, Any] = {}
    begun = [pod.started_at for pod in pods if pod.started_at is not None]
    if begun and not (former is not None and former.started_at):
        values["started_at"] = texts.timestamp(min(begun))
    nodes = [pod.node for pod in pods if pod.node]
    if nodes:
        values["node"] = nodes[0]
    elif former is not None and assessment.manifest is not None:
        values["node"] = former.node
    return values


def _of_artifact(look: Look, assessment: Assessment, former: Row | None) -> dict[str, Any]:
    """How far the artifact is, and what is known of it once it is complete."""
    values: dict[str, Any] = {}
    progress = look.observed.store.progress.get(assessment.work.key)
    if progress is not None:
        values = _of_progress(progress, running=assessment.state is State.RUNNING)
    elif former is not None and assessment.manifest is None:
        values = {name: getattr(former, name) for name in ("phase", "step", "steps", "progress", "loss")}
    if assessment.manifest is not None:
        values |= _of_manifest(assessment.manifest, look, assessment, former)
    if assessment.deleted is not None and assessment.deleted.manifest is not None:
        values |= _of_manifest(assessment.deleted.manifest, look, assessment, former)
        values |= {"uri": "", "bytes": 0}
    return values


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
    manifest: Manifest, look: Look, assessment: Assessment, former: Row | None
) -> dict[str, Any]:
    computed = bool(assessment.tries) or (former is not None and former.source is Source.COMPUTED)
    return {
        "source": Source.COMPUTED if computed else Source.REUSED,
        "progress": "100%",
        "loss": _loss(manifest.facts.losses, ""),
        "started_at": texts.timestamp(manifest.started_at),
        "completed_at": texts.timestamp(manifest.completed_at),
        "seconds": f"{manifest.seconds:.1f}",
        "uri": f"s3://{look.trenchcoat.spec.store.bucket}/{assessment.work.artifact.prefix}",
        "bytes": manifest.size,
        "digest": manifest.digest,
    }


def _loss(losses: dict[str, str], phase: str) -> str:
    if phase in losses:
        return losses[phase]
    return next(reversed(losses.values()), "")
