"""Where each work stands: what there is of its artifact, its tries so far, and whether it may go on."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from trenchcoat_api import texts
from trenchcoat_api.artifacts import Deletion, DeletionPhase, Manifest
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import State, WaitingReason

from trenchcoat_operator.children import names
from trenchcoat_operator.model.observed import Child, ChildPhase
from trenchcoat_operator.reconcile.assessment import failures, lost, podless, unserved
from trenchcoat_operator.reconcile.assessment.at_work import at_work
from trenchcoat_operator.reconcile.assessment.failures import Outcome
from trenchcoat_operator.reconcile.assessment.retries import after_failures
from trenchcoat_operator.reconcile.assessment.standing import Assessment
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.works.graph import Work

MANIFEST_GRACE = timedelta(seconds=10)
"""A Job that ended well has this long for its manifest to be seen."""


def assess_all(look: Look) -> tuple[Assessment, ...]:
    """Judge all works that the spec asks for, in the order of the graph."""
    return tuple(assess(work, look) for work in look.graph.works)


def assess(work: Work, look: Look) -> Assessment:
    """Judge one work: first by what it has made, then by its tries, then by what it waits for."""
    tries = _tries_of(work, look)
    deletion = look.observed.store.deletions.get(work.key)
    gone = {child.name for child in tries if _was_deleted(child, deletion)}
    base = _known(work, look, tries, gone)
    # What was made, deleted and is needed again begins anew.
    anew = tuple(takewhile(lambda child: child.name not in gone, reversed(tries)))
    return (
        _of_artifact(base, look, deletion)
        or (_of_tries(base, anew, look) if anew else None)
        or _of_what_is_missing(base, look, deletion)
        or podless.again(base, look)
        or replace(base, state=State.WAITING, startable=True)
    )


def _tries_of(work: Work, look: Look) -> tuple[Child, ...]:
    """The children that were made for a work, the earliest first."""
    mine = (child for child in look.children if child.key == work.key)
    return tuple(sorted(mine, key=lambda child: (child.attempt, child.name)))


def _known(work: Work, look: Look, tries: tuple[Child, ...], gone: set[str]) -> Assessment:
    """What is known of a work whatever it comes to; `gone` are tries whose artifact was deleted since."""
    manifest = look.observed.store.manifests.get(work.key)
    left = (child for child in tries if child.name not in gone)
    outcomes = tuple(
        (child, outcome if child.outcome else replace(outcome, saved=look.saved(work.key)))
        for child in left
        if (outcome := _outcome(child, look.now, complete=manifest is not None)) is not None
    )
    return Assessment(
        work=work,
        state=State.BLOCKED,
        tries=tries,
        # A try whose Job was taken away is counted on from, so that no two tries have one name.
        attempt=max(tries[-1].attempt if tries else 0, _former_attempt(work, look.trenchcoat)),
        manifest=manifest,
        last_outcome=outcomes[-1][1] if outcomes else None,
        outcomes=outcomes,
        unrecorded=tuple(
            (child, outcome)
            for child, outcome in outcomes
            if not child.outcome and not failures.may_be_excused(child, outcome)
        ),
    )


def _of_artifact(base: Assessment, look: Look, deletion: Deletion | None) -> Assessment | None:
    """Done, if its artifact is there or was deleted for good."""
    if base.manifest is not None:
        return replace(base, state=State.SUCCEEDED)
    if base.work.key not in look.needed and deletion is not None:
        message = f"deleted at {texts.timestamp(deletion.updated_at)}: no stage reads it any more"
        return replace(base, state=State.SUCCEEDED, message=message, deleted=deletion)
    if base.work.key not in look.needed and base.work.stage is Stage.COLLECT and not _goes_on(base.tries):
        return replace(base, state=State.SUCCEEDED, message="not made: no Cria is still to read it")
    return None


def _goes_on(tries: tuple[Child, ...]) -> bool:
    return any(child.active or child.terminating or lost.lingers(child) for child in tries)


def _of_tries(base: Assessment, anew: tuple[Child, ...], look: Look) -> Assessment | None:
    """Where it stands by its latest try; None when another may follow. `anew` has the latest first."""
    latest = anew[0]
    is_short = latest.terminating and latest.active and len(latest.pods) < base.work.pods
    if is_short and (waits := podless.again(base, look)):
        return replace(waits, startable=False)
    if latest.terminating:
        return _leaving(base, latest, look, f"{latest.kind} {latest.name} is being stopped")
    if latest.active:
        return at_work(base, latest, look)
    if latest.phase is ChildPhase.SUCCEEDED and not _overdue(latest, look.now):
        ended = latest.finished_at or look.now
        return replace(
            base,
            state=State.RUNNING,
            message="ended well; its manifest is about to be read",
            look_at=ended + MANIFEST_GRACE,
        )
    if latest.phase is ChildPhase.FAILED and lost.lingers(latest):
        message = f"the pods of {latest.kind} {latest.name}, which failed, are being stopped"
        return _leaving(base, latest, look, message)
    return after_failures(base, latest, [outcome for child, outcome in base.outcomes if child in anew], look)


def _of_what_is_missing(base: Assessment, look: Look, deletion: Deletion | None) -> Assessment | None:
    """What it waits for before a try may be made; None when nothing is missing."""
    missing = _missing(base.work, look.observed.store.manifests)
    if missing:
        return replace(base, message=f"waits for {missing}")
    if look.trenchcoat.spec.suspend:
        return replace(base, state=State.SUSPENDED, message="spec.suspend is true")
    problem = unserved.of_work(base.work, look)
    if problem is not None:
        waits = replace(base, state=State.WAITING, waiting=WaitingReason.TRAINING_OPERATOR)
        return replace(waits, message=problem.message, problem=problem)
    waits = replace(base, state=State.WAITING, waiting=WaitingReason.CLEANUP)
    if deletion is not None and deletion.phase is not DeletionPhase.PURGED:
        return replace(waits, message="waits until its former objects are deleted, or given back")
    name = names.child_name(look.trenchcoat.metadata.name, base.work.artifact, base.attempt + 1)
    if any(child.name == name for child in look.observed.children):
        message = f"waits until {name}, left by an earlier Trenchcoat of this name, is deleted"
        return replace(waits, message=message)
    return None


def _leaving(base: Assessment, child: Child, look: Look, message: str) -> Assessment:
    """A child whose pods may still run: the next try waits for their end."""
    suspended = look.trenchcoat.spec.suspend
    return replace(
        base,
        state=State.SUSPENDED if suspended else State.WAITING,
        waiting=None if suspended else WaitingReason.CLEANUP,
        message=message,
        look_at=lost.lost_from(child),
    )


def _former_attempt(work: Work, trenchcoat: Trenchcoat) -> int:
    """Number of the latest try by the status."""
    rows = [*trenchcoat.status.stages, *trenchcoat.status.crias]
    return max((row.attempt for row in rows if row.key == work.key), default=0)


def _overdue(child: Child, now: datetime) -> bool:
    return child.finished_at is not None and now - child.finished_at > MANIFEST_GRACE


def _was_deleted(child: Child, deletion: Deletion | None) -> bool:
    """Whether a try ended well before what it had made was deleted."""
    return (
        child.phase is ChildPhase.SUCCEEDED
        and child.finished_at is not None
        and deletion is not None
        and deletion.manifest is not None
        and child.finished_at <= deletion.updated_at
    )


def _outcome(child: Child, now: datetime, *, complete: bool) -> Outcome | None:
    """How a try failed; None when it did not, or not yet. `complete` says that its artifact is there."""
    if child.phase is ChildPhase.FAILED:
        # What failed in a pod beside the stage is nothing to an artifact that is there.
        return None if complete and child.stage_succeeded else failures.classify(child, now)
    if child.phase is ChildPhase.SUCCEEDED and not complete and (child.outcome or _overdue(child, now)):
        # Of a gang whose ranks end in one look its controller may see the first alone, and call it well.
        return failures.by_pods(child, now) or failures.no_manifest(child)
    return None


def _missing(work: Work, manifests: Mapping[str, Manifest]) -> str:
    """The stages that an input is still to come from, in words."""
    for wanted in (work.inputs, work.reads):  # what it only reads is missing when it was deleted
        stages = [item.stage.value for item in wanted if item.key not in manifests]
        if stages:
            break
    return " and ".join(dict.fromkeys(stages))
