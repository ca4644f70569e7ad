"""How long a try may run: spec.pods.STAGE.deadlineSeconds."""

from datetime import datetime, timedelta

from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.model.observed import Child
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, Outcome
from trenchcoat_operator.works import graph
from trenchcoat_operator.works.graph import Work


def deadline_of(work: Work, trenchcoat: Trenchcoat, child: Child) -> datetime | None:
    """When a child's attempt has run for as long as it may; None while it does not run or may run on."""
    seconds = graph.overrides(trenchcoat.spec, work.stage).deadline_seconds
    begun = [pod.started_at for pod in child.pods if pod.phase == "Running" and pod.started_at is not None]
    if seconds is None or not begun:
        return None
    return min(begun) + timedelta(seconds=seconds)


def deadline_exceeded(work: Work, trenchcoat: Trenchcoat) -> Outcome:
    """What is recorded of a child that was stopped at its deadline."""
    field = f"spec.pods.{graph.pods_of(work.stage)}.deadlineSeconds"
    seconds = graph.overrides(trenchcoat.spec, work.stage).deadline_seconds
    return Outcome(
        FailureClass.DEADLINE_EXCEEDED,
        f"it ran longer than {field} {seconds}: raise it, or find out from the pod's log what it waited for",
    )
