"""Conditions: what `kubectl wait` and tools that read kstatus go by."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from trenchcoat_api import texts
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import (
    Condition,
    ConditionType,
    StageStatus,
    State,
    TrenchcoatStatus,
    WaitingReason,
)

from trenchcoat_operator.model.observed import Observed, Problem
from trenchcoat_operator.reconcile.assessment.assess import Assessment
from trenchcoat_operator.reconcile.assessment.failures import FailureClass
from trenchcoat_operator.reconcile.starting import gate
from trenchcoat_operator.works.graph import Graph

_MESSAGE_LIMIT = 32_000

_OF_STAGE = {
    ConditionType.ACTIVATIONS_READY: Stage.COLLECT,
    ConditionType.SHARDS_READY: Stage.SHARD,
    ConditionType.CRIAS_TRAINED: Stage.CRIA,
    ConditionType.STITCHED: Stage.STITCH,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition before it is known whether it changed."""

    status: str
    reason: str
    message: str = ""


def _yes(flag: bool) -> str:
    return "True" if flag else "False"


def accepted(graph: Graph, assessments: tuple[Assessment, ...], observed: Observed) -> Verdict:
    """Whether the spec, the store, the model and the text can work."""
    problem = observed.store.problem
    if problem is not None:
        return Verdict("False", problem.reason, problem.message)
    if graph.fault:
        return Verdict("False", FailureClass.BAD_INPUT.value, graph.fault)
    tokenize = next(item for item in assessments if item.work.stage is Stage.TOKENIZE)
    if tokenize.manifest is not None:
        facts = tokenize.manifest.facts
        words = []
        if facts.model is not None:
            words.append(f"{facts.model.layers} decoder layers in {len(graph.crias)} Crias")
        if facts.data is not None:
            words.append(f"{facts.data.sequences} training sequences")
        return Verdict("True", "Valid", ", ".join(words))
    if tokenize.state is State.FAILED and tokenize.last_outcome is not None:
        invalid = tokenize.last_outcome.failure is FailureClass.BAD_INPUT
        reason = FailureClass.BAD_INPUT.value if invalid else "NotValidated"
        return Verdict(_yes(False) if invalid else "Unknown", reason, tokenize.message)
    return Verdict("Unknown", "Validating", "the tokenize stage reads the model and the text")


def verdicts(
    trenchcoat: Trenchcoat,
    first: Verdict,
    stages: list[StageStatus],
    problem: Problem | None,
    *,
    busy: bool,
    goes_on: bool,
) -> dict[ConditionType, Verdict]:
    """All conditions.

    Args:
        trenchcoat: The Trenchcoat.
        first: The verdict on its spec.
        stages: Rows of the status.
        problem: What a person must mend, if anything.
        busy: Whether any Job of it is there.
        goes_on: Whether one of them, or of those about to be made, comes further without a person.
    """
    rows = {row.name: row for row in stages}
    result = {ConditionType.ACCEPTED: first}
    for kind, stage in _OF_STAGE.items():
        row = rows[stage.value]
        result[kind] = Verdict(
            _yes(row.state is State.SUCCEEDED),
            row.source.value if row.source else row.state.value,
            row.message,
        )
        if row.name == Stage.STITCH and row.waiting_reason is WaitingReason.GATE:
            result[kind] = Verdict("False", gate.REASON, row.message)
    complete = bool(stages) and all(row.state is State.SUCCEEDED for row in stages)
    suspended = trenchcoat.spec.suspend and not complete
    if complete:
        result[ConditionType.SUCCEEDED] = Verdict("True", "Complete", "all stages are complete")
        result[ConditionType.RECONCILING] = Verdict("False", "Complete")
    elif suspended:
        message = "spec.suspend is true" if not busy else "spec.suspend is true: Jobs are being stopped"
        result[ConditionType.SUCCEEDED] = Verdict("False", "Suspended", message)
        result[ConditionType.RECONCILING] = Verdict(_yes(busy), "Suspended", message)
    else:
        reason = problem.reason if problem else "InProgress"
        at_work = [row.name for row in stages if row.state in (State.RUNNING, State.STARTING)]
        message = problem.message if problem else " and ".join(at_work)
        result[ConditionType.SUCCEEDED] = Verdict("False", reason, message)
        reconciling = goes_on or problem is None
        result[ConditionType.RECONCILING] = Verdict(
            _yes(reconciling), "InProgress" if reconciling else "Stalled", " and ".join(at_work)
        )
    stalled = problem is not None and not complete
    result[ConditionType.STALLED] = Verdict(
        _yes(stalled),
        problem.reason if problem and stalled else "NothingStalls",
        problem.message if problem and stalled else "",
    )
    return result


def rejected(status: TrenchcoatStatus, problem: Problem, now: datetime) -> TrenchcoatStatus:
    """The status when the API server took no object of the plan's: nothing goes on until that is mended."""
    verdict = Verdict("False", problem.reason, problem.message)
    wanted = {item.type: Verdict(item.status, item.reason, item.message) for item in status.conditions} | {
        ConditionType.SUCCEEDED: verdict,
        ConditionType.STALLED: Verdict("True", problem.reason, problem.message),
    }
    changed = merge(status.conditions, wanted, status.observed_generation, now)
    return status.model_copy(update={"conditions": changed})


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
