"""The status of a Trenchcoat with which nothing goes on, because what stands in it is not taken."""

from datetime import datetime

from trenchcoat_api.status import ConditionType, TrenchcoatStatus

from trenchcoat_operator.model.observed import Problem
from trenchcoat_operator.reconcile.telling.conditions import Verdict, merge


def rejected(status: TrenchcoatStatus, problem: Problem, now: datetime) -> TrenchcoatStatus:
    """The status when the API server took no object of the plan's: nothing goes on until that is mended."""
    verdict = Verdict("False", problem.reason, problem.message)
    wanted = {item.type: Verdict(item.status, item.reason, item.message) for item in status.conditions} | {
        ConditionType.SUCCEEDED: verdict,
        ConditionType.STALLED: Verdict("True", problem.reason, problem.message),
    }
    changed = merge(status.conditions, wanted, status.observed_generation, now)
    return status.model_copy(update={"conditions": changed})


def unreadable(former: TrenchcoatStatus, generation: int, fault: str, now: datetime) -> TrenchcoatStatus:
    """The status of an object that the API server let through and this version cannot read.

    Args:
        former: What could be read of its status.
        generation: Of the object.
        fault: What is wrong with it.
        now: The moment.
    """
    verdict = Verdict("False", "InvalidSpec", fault)
    wanted = {
        ConditionType.ACCEPTED: verdict,
        ConditionType.SUCCEEDED: verdict,
        ConditionType.RECONCILING: Verdict("False", "Stalled"),
        ConditionType.STALLED: Verdict("True", "InvalidSpec", fault),
    }
    conditions = merge(former.conditions, wanted, generation, now)
    preset = former.preset_by_default.value
    return former.model_copy(
        update={"observed_generation": generation, "default_preset": preset, "conditions": conditions}
    )
