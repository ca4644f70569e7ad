"""Children that failed, ran for too long or lost a node: the verdict is written onto them, and they end."""

from collections.abc import Container
from dataclasses import replace

from trenchcoat_api.status import State

from trenchcoat_operator.model.observed import Child, ChildPhase
from trenchcoat_operator.model.plan import Delete, ForcePod, Keep, RecordOutcome, Stop
from trenchcoat_operator.reconcile.assessment import beside, failures
from trenchcoat_operator.reconcile.assessment.deadlines import deadline_exceeded, deadline_of
from trenchcoat_operator.reconcile.assessment.failures import Outcome
from trenchcoat_operator.reconcile.assessment.lost import is_lost
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look


def verdicts(assessments: tuple[Assessment, ...]) -> list[RecordOutcome]:
    """How tries failed, where it does not stand on them yet."""
    return [_record(child, outcome) for assessment in assessments for child, outcome in assessment.unrecorded]


def _record(child: Child, outcome: Outcome) -> RecordOutcome:
    return RecordOutcome(child.kind, child.name, outcome.failure.value, outcome.message, outcome.saved)


def records(look: Look) -> list[Keep]:
    """Children that would be deleted some time after their end, and with them what is known of a failure.

    A policy of the cluster gives Jobs a time to live. One that it gives again is taken away when they fail.
    """
    return [
        Keep(child.kind, child.name)
        for child in look.children
        if child.expires and not child.terminating
        if child.phase is ChildPhase.FAILED or (child.active and not child.kept)
    ]


def past_deadline(look: Look) -> list[RecordOutcome | Stop]:
    """Children that ran for longer than they may: the verdict is recorded first, so that it is never lost."""
    wanted = {work.key: work for work in look.graph.works}
    result: list[RecordOutcome | Stop] = []
    for child in look.children:
        work = wanted.get(child.key)
        if not child.active or child.terminating or child.stopped or work is None:
            continue
        deadline = deadline_of(work, look.trenchcoat, child)
        if deadline is None or look.now < deadline:
            continue
        outcome = deadline_exceeded(work, look.trenchcoat)
        result.append(_record(child, replace(outcome, saved=look.saved(child.key))))
        result.append(Stop(child.kind, child.name, outcome.message))
    return result


def outstayed(
    look: Look, assessments: tuple[Assessment, ...], going: Container[str]
) -> list[Delete | RecordOutcome | Stop]:
    """Children whose stage has ended and whose pods go on for a sidecar: their GPUs are given back.

    Those that left their artifact go; of the others the verdict is recorded before they are stopped.

    Args:
        look: The look.
        assessments: Where each work stands.
        going: Names of children that end for another reason.
    """
    result: list[Delete | RecordOutcome | Stop] = []
    for assessment in assessments:
        child = assessment.latest
        if child is None or not child.active or child.terminating or child.stopped or child.name in going:
            continue
        due = beside.ends_at(child)
        if due is None or look.now < due or not look.store_is_known:
            continue
        if assessment.state is State.SUCCEEDED:
            result.append(Delete(child.kind, child.name, beside.told(child)))
            continue
        outcome = failures.by_pods(child, look.now) or failures.no_manifest(child)
        result.append(_record(child, replace(outcome, saved=look.saved(child.key))))
        result.append(Stop(child.kind, child.name, beside.told(child)))
    return result


def lost_pods(look: Look) -> list[ForcePod]:
    """Pods that should have ended long ago: their nodes do not answer."""
    lost = [
        ForcePod(pod.name, pod.node)
        for child in look.observed.children
        for pod in child.pods
        if is_lost(pod, look.now)
    ]
    return sorted(lost, key=lambda action: action.name)
