"""What a run goes on without: the adapted teacher, once training it has failed for good."""

from dataclasses import replace

from trenchcoat_api.phases import may_go_without
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State

from trenchcoat_operator.reconcile.assessment.assess import assess_all
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look


def going_on(look: Look, assessments: tuple[Assessment, ...]) -> tuple[Look, tuple[Assessment, ...]]:
    """The same, or with an evaluation that does without what failed, which then is nobody's to mend first."""
    failed = (item.state is State.FAILED for item in assessments if item.work.stage is Stage.ADAPT)
    if not may_go_without(look.trenchcoat.spec) or not any(failed):
        return look, assessments
    without = look.without_adapted_teacher()
    judged = assess_all(without)
    return without, tuple(
        replace(item, problem=None) if item.work.key in without.graph.given_up else item for item in judged
    )
