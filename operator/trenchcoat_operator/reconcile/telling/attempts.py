"""The tries at an artifact, as its row lists them: those that are seen, and those whose Jobs are gone."""

from trenchcoat_api.status import AttemptStatus

from trenchcoat_operator.model.observed import ChildPhase
from trenchcoat_operator.reconcile.assessment.standing import Assessment


def seen(assessment: Assessment) -> list[tuple[int, str]]:
    """Number and outcome of the tries whose Jobs are there."""
    failed = {child.name: outcome.failure.value for child, outcome in assessment.outcomes}
    complete = assessment.manifest is not None
    ended = {
        child.name: "Succeeded"
        for child in assessment.tries
        if child.phase is ChildPhase.SUCCEEDED or (complete and child.stage_succeeded)
    }
    return [(child.attempt, (ended | failed).get(child.name, "")) for child in assessment.tries]


def latest(former: list[AttemptStatus], seen: list[tuple[int, str]], limit: int = 10) -> list[AttemptStatus]:
    """The latest attempts: those that are seen, and those whose Jobs are gone as they stood before.

    Args:
        former: As they stood in the status.
        seen: Number and outcome of each attempt that is there; an empty outcome leaves what stood before.
        limit: How many to keep.
    """
    by_number = {item.number: item for item in former}
    for number, outcome in seen:
        item = by_number.get(number, AttemptStatus(number=number))
        by_number[number] = item.model_copy(update={"outcome": outcome or item.outcome})
    return [by_number[number] for number in sorted(by_number)][-limit:]
