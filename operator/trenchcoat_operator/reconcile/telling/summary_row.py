"""The rows of stages that make several artifacts: Crias, and what these leave one another."""

from collections.abc import Sequence
from typing import Any

from trenchcoat_api import texts
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import CriaStatus, Source, StageStatus, State

from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling.rows import MESSAGE_LIMIT, fraction

_ORDER_OF_TELLING = (
    State.FAILED,
    State.RUNNING,
    State.STARTING,
    State.WAITING,
    State.SUSPENDED,
    State.BLOCKED,
)


def crias_row(crias: list[CriaStatus], left: float | None) -> StageStatus:
    """The row of the cria stage, which sums up the Crias.

    Args:
        crias: Their rows.
        left: Seconds until all are done; None while unknown.
    """
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
            "message": message[:MESSAGE_LIMIT],
            "waiting_reason": waiting.waiting_reason if waiting and state is State.WAITING else None,
            "waiting_since": waiting.waiting_since if waiting and state is State.WAITING else "",
            "waiting_place": waiting.waiting_place if waiting and state is State.WAITING else "",
            "progress": texts.percent(
                sum(fraction(cria) for cria in crias) / len(crias),
            ),
            "eta": "" if left is None else texts.duration(left),
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


def boundaries_row(
    boundaries: Sequence[Assessment], situation: Situation, crias: Sequence[CriaStatus]
) -> StageStatus:
    """The row of collection where each Cria's Job leaves the next one's inputs.

    Args:
        boundaries: where each of them stands, in order.
        situation: what was worked out.
        crias: rows of the Crias, whose Jobs make them.
    """
    done = [item for item in boundaries if item.state is State.SUCCEEDED]
    manifests = [item.manifest or (item.deleted.manifest if item.deleted else None) for item in done]
    made = [manifest for manifest in manifests if manifest is not None]
    values: dict[str, Any] = {
        "state": State.SUCCEEDED,
        "progress": texts.percent(len(done) / len(boundaries)),
        "started_at": min((texts.timestamp(item.started_at) for item in made), default=""),
        "bytes": sum(item.manifest.size for item in boundaries if item.manifest is not None),
    }
    if len(done) == len(boundaries) and not made:
        return StageStatus(name=Stage.COLLECT.value, **values, message=done[0].message)
    if len(done) == len(boundaries):
        values |= {
            "source": Source.COMPUTED if any(row.attempt for row in crias) else Source.REUSED,
            "seconds": f"{sum(item.seconds for item in made):.1f}",
            "completed_at": max((texts.timestamp(item.completed_at) for item in made), default=""),
        }
        return StageStatus(name=Stage.COLLECT.value, **values)
    following = next(item for item in boundaries if item.state is not State.SUCCEEDED)
    assert following.work.artifact.boundary is not None  # noqa: S101
    maker = following.work.artifact.boundary - 1
    message = f"{len(done)} of {len(boundaries)} boundaries made, each by the Job of the Cria before it; "
    by_itself = bool(following.tries) or following.startable
    if by_itself:
        state, message = following.state, message + f"boundary {maker + 1} by a Job of its own"
        if situation.starts(following):
            state = State.STARTING
    else:
        of_maker = next(row for row in crias if row.index == maker)
        state, message = of_maker.state, message + f"Cria {maker} is next: {of_maker.state}"
    return StageStatus(
        name=Stage.COLLECT.value,
        **values | {"state": State.BLOCKED if state is State.SUCCEEDED else state},
        message=message[:MESSAGE_LIMIT],
    )
