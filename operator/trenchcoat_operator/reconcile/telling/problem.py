"""The one thing that a person must mend first, if anything: what conditions name."""

from trenchcoat_api.status import WaitingReason

from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.situation import Situation
from trenchcoat_operator.reconcile.starting import gate


def first_problem(situation: Situation) -> Problem | None:
    """The store's before the spec's and the plan's, a Job's before what waits, and the gates' last."""
    look = situation.look
    if look.observed.store.problem is not None:
        return look.observed.store.problem
    if look.graph.fault:
        return Problem("InvalidInput", look.graph.fault)
    if situation.released.misfit is not None:
        return situation.released.misfit
    for assessment in situation.assessments:
        # What is wrong with a Job that is taken away in this very pass is of no interest.
        taken_away = assessment.latest is not None and assessment.latest.name in situation.going
        goes_with_it = taken_away and assessment.waiting is not WaitingReason.REFUSED
        if assessment.problem is not None and not goes_with_it:
            return _of(assessment, assessment.problem.reason, assessment.problem.message)
    for assessment in situation.assessments:
        hold = situation.released.held.get(assessment.work.key)
        if hold is not None and hold.problem is not None:
            return _of(assessment, hold.problem.reason, hold.message)
    stitch = gate.judge(look.trenchcoat, situation.assessments)
    return stitch or gate.judge_export(look.trenchcoat, situation.assessments)


def _of(assessment: Assessment, reason: str, message: str) -> Problem:
    return Problem(reason, f"{assessment.work.artifact.name}: {message}")
