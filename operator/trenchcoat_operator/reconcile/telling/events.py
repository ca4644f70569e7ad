"""Events: one for each transition, so that `kubectl describe` reads like a story."""

from trenchcoat_api import texts, waiting
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.status import (
    Condition,
    ConditionType,
    Source,
    State,
    TrenchcoatStatus,
    WaitingReason,
)
from trenchcoat_api.status import (
    Work as Row,
)

from trenchcoat_operator.model.plan import (
    BESIDE,
    Action,
    Apply,
    Condemn,
    Delete,
    Event,
    ForcePod,
    Restore,
    Stop,
)
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.telling.conditions import GIVEN_UP

_TOLD_OTHERWISE = (WaitingReason.RETRY, WaitingReason.CLEANUP, WaitingReason.PLAN, WaitingReason.STORE)


def of_look(situation: Situation, actions: tuple[Action, ...], status: TrenchcoatStatus) -> tuple[Event, ...]:
    """Everything that is worth an event.

    Args:
        situation: What was worked out.
        actions: What is done now.
        status: The new status.
    """
    look = situation.look
    return (
        *of_conditions(look.former.conditions, status.conditions, look.trenchcoat),
        *of_failures(situation.assessments),
        *of_actions(actions, texts.timestamp(look.now)),
        *of_rows(look.former, status),
    )


def _of_row(row: Row, former: Row | None) -> Event | None:
    if former is not None and former.key == row.key and former.state is row.state:
        return None
    subject = waiting.subject(row)
    identity = f"{subject}/{row.key}/{row.state}/{row.attempt}"
    # The same try may turn to the same state more than once: what the status said before tells them apart.
    turn = f"{identity}/{former.model_dump_json() if former else ''}"
    if former is not None and (former.key, former.attempt) == (row.key, row.attempt):
        # Of a pod's end is heard before of its Job's, now and then: what gives way was not seen to run.
        if _gives_way(row, former):
            how = "goes on later from its checkpoint" if row.started_at else "starts later"
            return Event("Normal", "Requeued", f"{subject} gives way and {how}: {row.message}", turn)
        if former.state is State.RUNNING and row.state is State.STARTING:
            return Event("Normal", "Interrupted", f"{subject} is interrupted: {row.message}", turn)
    if row.state is State.RUNNING:
        where = f" on {row.node}" if row.node else ""
        again = " again" if former is not None and former.key == row.key and former.started_at else ""
        return Event("Normal", "Running", f"{subject} runs{again}{where}, try {row.attempt}", turn)
    if row.state is State.SUCCEEDED and row.source is Source.REUSED:
        return Event("Normal", "Reused", f"{subject}: its artifact {row.key} was in the store", identity)
    if row.state is State.SUCCEEDED and row.source is Source.COMPUTED:  # else nobody needs it
        took = texts.duration(float(row.seconds or 0))
        return Event(
            "Normal",
            "StageComplete",
            f"{subject} is complete after {took}: {texts.size(row.bytes)}",
            identity,
        )
    return None


def _gives_way(row: Row, former: Row) -> bool:
    """Whether Kueue has taken back what it had let run."""
    same = (former.key, former.attempt) == (row.key, row.attempt)
    was_let = former.state in (State.RUNNING, State.STARTING)
    return same and was_let and row.waiting_reason is WaitingReason.QUEUE


def of_rows(former: TrenchcoatStatus, status: TrenchcoatStatus) -> list[Event]:
    """Stages and Crias that began or ended; the row that sums up the Crias tells nothing new."""
    stages = {row.name: row for row in former.stages}
    crias = {row.index: row for row in former.crias}
    told = [_of_row(row, stages.get(row.name)) for row in status.stages if row.name != "cria"]
    told += [_of_row(row, crias.get(row.index)) for row in status.crias]
    return [event for event in told if event is not None] + of_waits(former, status)


def of_waits(former: TrenchcoatStatus, status: TrenchcoatStatus) -> list[Event]:
    """What began to wait, one event for all that wait for the same since now."""
    before: dict[str, Row] = {waiting.subject(row): row for row in (*former.stages, *former.crias)}
    groups: dict[WaitingReason, list[Row]] = {}
    for row in waiting.waiting_rows(status):
        earlier = before.get(waiting.subject(row))
        same = earlier is not None and (earlier.key, earlier.waiting_reason) == (row.key, row.waiting_reason)
        # Of a failed try, of what is in its way, and of what gives way to others other events tell.
        told = earlier is not None and _gives_way(row, earlier)
        if (
            not same
            and not told
            and row.waiting_reason is not None
            and row.waiting_reason not in _TOLD_OTHERWISE
        ):
            groups.setdefault(row.waiting_reason, []).append(row)
    return [
        Event("Normal", "Waits", waiting.together(rows), f"{reason}/{rows[0].key}/{rows[0].waiting_since}")
        for reason, rows in groups.items()
    ]


def of_failures(assessments: tuple[Assessment, ...]) -> list[Event]:
    """Tries that failed since the last look."""
    return [
        Event(
            "Normal" if outcome.failure.free else "Warning",
            outcome.failure.value,
            f"{child.kind} {child.name} failed: {outcome.message}",
            f"{child.name}/{texts.timestamp(child.finished_at)}",
        )
        for assessment in assessments
        for child, outcome in assessment.unrecorded
    ]


def of_actions(actions: tuple[Action, ...], moment: str) -> list[Event]:
    """Jobs made and stopped."""
    told = []
    for action in actions:
        if isinstance(action, Apply) and action.manifest["kind"] not in BESIDE:
            what = f"{action.manifest['kind']} {action.name}"
            told.append(Event("Normal", "Created", f"made {what}", f"{what}/made/{moment}"))
        elif isinstance(action, Delete) and action.kind not in BESIDE:
            what = f"{action.kind} {action.name}"
            told.append(Event("Normal", "Stopped", f"stops {what}: {action.reason}", f"{what}/stop/{moment}"))
        elif isinstance(action, Stop):
            what = f"{action.kind} {action.name}"
            told.append(Event("Warning", "Stopped", f"stops {what}: {action.reason}", f"{what}/stop"))
        elif isinstance(action, Condemn):
            message = f"deletes the artifact {action.artifact.key} of {action.artifact.name}"
            told.append(Event("Normal", "Deletes", message, f"{action.artifact.key}/condemn/{moment}"))
        elif isinstance(action, Restore):
            message = f"keeps the artifact {action.artifact.key} of {action.artifact.name}: it is needed"
            told.append(Event("Normal", "Keeps", message, f"{action.artifact.key}/restore/{moment}"))
        elif isinstance(action, ForcePod):
            message = f"gives up pod {action.name}: node {action.node} does not answer"
            told.append(Event("Warning", "NodeLost", message, f"{action.name}/lost"))
    return told


def of_conditions(
    former: list[Condition], conditions: list[Condition], trenchcoat: Trenchcoat
) -> list[Event]:
    """Conditions that changed in a way that a person wants to know of."""
    before = {condition.type: condition for condition in former}
    now = {condition.type: condition for condition in conditions}
    told = []
    for kind, condition in now.items():
        earlier = before.get(kind)
        if earlier is not None and (earlier.status, earlier.reason) == (condition.status, condition.reason):
            continue
        news = _news(condition, earlier, now)
        if news is None:
            continue
        since = earlier.last_transition_time if earlier else ""
        identity = f"{kind}/{condition.status}/{condition.reason}/{since}/{trenchcoat.metadata.generation}"
        told.append(Event(*news, identity))
    return told


def _news(
    condition: Condition, earlier: Condition | None, now: dict[ConditionType, Condition]
) -> tuple[str, str, str] | None:
    """Type, reason and message of the event that a changed condition is worth, if any."""
    match condition.type, condition.status:
        case ConditionType.ACCEPTED, "True":
            return "Normal", "Accepted", condition.message
        case ConditionType.ACCEPTED, "False":
            return "Warning", condition.reason, condition.message
        case ConditionType.SUCCEEDED, "True":
            return "Normal", "Succeeded", condition.message
        case ConditionType.TEACHER_ADAPTED, "False" if condition.reason == GIVEN_UP:
            return "Warning", "GoesOnWithout", f"adapt: {condition.message}"
        case ConditionType.STALLED, "True":
            accepted = now.get(ConditionType.ACCEPTED)
            if accepted is not None and (accepted.status, accepted.reason) == ("False", condition.reason):
                return None  # the same, told of Accepted
            return "Warning", condition.reason, condition.message
        case ConditionType.STALLED, "False" if earlier is not None and earlier.status == "True":
            return "Normal", "GoesOn", "what held it up was mended"
    return None
