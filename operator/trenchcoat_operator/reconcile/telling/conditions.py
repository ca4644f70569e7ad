"""Conditions: what `kubectl wait` and tools that read kstatus go by."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from trenchcoat_api import texts
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import Condition, ConditionType, StageStatus, State, WaitingReason

from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.assessment import unserved
from trenchcoat_operator.reconcile.assessment.failures import FailureClass
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.starting import gate
from trenchcoat_operator.reconcile.telling import rows
from trenchcoat_operator.works.graph import Graph

_MESSAGE_LIMIT = 32_000

_OF_STAGE = {
    ConditionType.ACTIVATIONS_READY: Stage.COLLECT,
    ConditionType.SHARDS_READY: Stage.SHARD,
    ConditionType.CRIAS_TRAINED: Stage.CRIA,
    ConditionType.STITCHED: Stage.STITCH,
    ConditionType.TEACHER_ADAPTED: Stage.ADAPT,
}


GIVEN_UP = "GivenUp"
"""Of a stage that failed and that the run goes on without."""
NOT_NEEDED_REASON = "NotNeeded"
"""Of activations that are not collected, for nothing reads them."""
NOTHING_TO_COLLECT = "no Cria has anything to train, so nothing reads activations: none are collected"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition before it is known whether it changed."""

    status: str
    reason: str
    message: str = ""


Verdicts = dict[ConditionType, Verdict]


def conditions(
    situation: Situation, stages: list[StageStatus], problem: Problem | None, waits: str
) -> list[Condition]:
    """All conditions.

    Args:
        situation: What was worked out.
        stages: Rows of the status.
        problem: What a person must mend, if anything.
        waits: What waits for what, in words, if anything does.
    """
    look = situation.look
    wanted = {ConditionType.ACCEPTED: _accepted(situation)} | _of_stages(stages, look.graph)
    complete = rows.all_over(stages, look.graph)
    if complete:
        problem = None
        wanted |= {
            ConditionType.SUCCEEDED: Verdict("True", "Complete", _all_complete(look.graph)),
            ConditionType.RECONCILING: Verdict("False", "Complete"),
        }
    elif look.trenchcoat.spec.suspend:
        wanted |= _suspended(situation)
    else:
        wanted |= _in_progress(situation, stages, problem, waits)
    if look.observed.undeleted is not None:
        wanted[ConditionType.CLEANED_UP] = Verdict(
            "False", look.observed.undeleted.reason, look.observed.undeleted.message
        )
    wanted[ConditionType.STALLED] = (
        Verdict("True", problem.reason, problem.message) if problem else Verdict("False", "NothingStalls")
    )
    return merge(look.former.conditions, wanted, look.trenchcoat.metadata.generation, look.now)


def _accepted(situation: Situation) -> Verdict:
    """Whether the spec, the store, the model, the text and what the cluster serves can work."""
    graph, problem = situation.look.graph, situation.look.observed.store.problem
    if problem is not None:
        return Verdict("False", problem.reason, problem.message)
    if graph.fault:
        return Verdict("False", FailureClass.BAD_INPUT.value, graph.fault)
    misfit = situation.released.misfit
    if misfit is not None:
        return Verdict("False", misfit.reason, misfit.message)
    tokenize = next(item for item in situation.assessments if item.work.stage is Stage.TOKENIZE)
    refused = tokenize.last_outcome is not None and tokenize.last_outcome.failure is FailureClass.BAD_INPUT
    if tokenize.state is State.FAILED and refused:
        return Verdict("False", FailureClass.BAD_INPUT.value, tokenize.message)
    missing = unserved.of_run(situation.look)
    if missing is not None:
        return Verdict("False", missing.reason, missing.message)
    if tokenize.manifest is not None:
        facts = tokenize.manifest.facts
        words = []
        if facts.model is not None:
            words.append(f"{facts.model.layers} decoder layers in {len(graph.crias)} Crias")
        if facts.data is not None:
            words.append(f"{facts.data.sequences} training sequences")
        return Verdict("True", "Valid", ", ".join(words))
    if tokenize.state is State.FAILED and tokenize.last_outcome is not None:
        return Verdict("Unknown", "NotValidated", tokenize.message)
    return Verdict("Unknown", "Validating", "the tokenize stage reads the model and the text")


def _all_complete(built: Graph) -> str:
    return "all stages are complete" + (" but adapt, which failed" if built.given_up else "")


def _of_stages(stages: list[StageStatus], built: Graph) -> Verdicts:
    by_name = {row.name: row for row in stages}
    result = {}
    for kind, stage in _OF_STAGE.items():
        row = by_name.get(stage.value)
        if row is None:
            if stage is Stage.COLLECT:
                result[kind] = Verdict("True", NOT_NEEDED_REASON, NOTHING_TO_COLLECT)
            continue
        reason = row.source.value if row.source else row.state.value
        if row.name == Stage.COLLECT and row.state is State.SUCCEEDED and not row.source:
            reason = NOT_NEEDED_REASON
        result[kind] = Verdict(_yes(row.state is State.SUCCEEDED), reason, row.message)
        if row.name == Stage.STITCH and row.waiting_reason is WaitingReason.GATE:
            result[kind] = Verdict("False", gate.REASON, row.message)
        if row.key in built.given_up:
            result[kind] = Verdict("False", GIVEN_UP, f"the run goes on without it: {row.message}")
    return result


def _suspended(situation: Situation) -> Verdicts:
    busy = bool(situation.at_work())
    message = "spec.suspend is true" if not busy else "spec.suspend is true: Jobs are being stopped"
    return {
        ConditionType.SUCCEEDED: Verdict("False", "Suspended", message),
        ConditionType.RECONCILING: Verdict(_yes(busy), "Suspended", message),
    }


def _in_progress(
    situation: Situation, stages: list[StageStatus], problem: Problem | None, waits: str
) -> Verdicts:
    at_work = " and ".join(row.name for row in stages if row.state in (State.RUNNING, State.STARTING))
    at_work = "; ".join(part for part in (at_work, waits) if part)
    goes_on = problem is None or _goes_on(situation)
    return {
        ConditionType.SUCCEEDED: Verdict("False", problem.reason, problem.message)
        if problem
        else Verdict("False", "InProgress", at_work),
        ConditionType.RECONCILING: Verdict(_yes(goes_on), "InProgress" if goes_on else "Stalled", at_work),
    }


def _goes_on(situation: Situation) -> bool:
    """Whether a Job, or one of those about to be made, comes further without a person."""
    stuck = {item.work.key for item in situation.assessments if item.problem is not None}
    return bool(situation.released.start) or any(child.key not in stuck for child in situation.at_work())


def _yes(flag: bool) -> str:
    return "True" if flag else "False"


def merge(
    former: list[Condition], wanted: Mapping[ConditionType, Verdict], generation: int, now: datetime
) -> list[Condition]:
    """Conditions to write: a condition whose status is what it was keeps the time of its last transition."""
    earlier = {condition.type: condition for condition in former}
    result = []
    for kind in ConditionType:
        if kind not in wanted:
            continue
        verdict, before = wanted[kind], earlier.get(kind)
        same = before is not None and before.status == verdict.status
        result.append(
            Condition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message[:_MESSAGE_LIMIT],
                observed_generation=generation,
                last_transition_time=before.last_transition_time
                if before is not None and same
                else texts.timestamp(now),
            )
        )
    return result
