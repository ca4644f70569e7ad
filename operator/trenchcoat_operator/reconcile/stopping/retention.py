"""What becomes of artifacts: spec.retention.

An artifact is deleted in steps, each of which may be the last one of an operator that dies: it is condemned
(its manifest goes, so that nobody begins to use it), then, if a second look finds that still nobody uses it,
purged (its objects go), and then a note stays that it was there. A condemned artifact that somebody needs
after all gets its manifest back.
"""

from datetime import datetime, timedelta

from trenchcoat_api import constants
from trenchcoat_api.artifacts import DeletionPhase
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Retention
from trenchcoat_api.stages import INPUTS, READS, Stage

from trenchcoat_operator.model.observed import Observed, Peers
from trenchcoat_operator.model.plan import (
    Action,
    Condemn,
    Delete,
    Event,
    Forget,
    Purge,
    Restore,
    SetFinalizer,
)
from trenchcoat_operator.works import superseded
from trenchcoat_operator.works.graph import Graph, Work

PATIENCE = timedelta(seconds=60)
"""A Trenchcoat that is being deleted waits for a store that cannot be used for so long, then goes without."""
INTERMEDIATE = (Stage.COLLECT, Stage.SHARD)


def wanted_finalizer(desired: Trenchcoat) -> list[Action]:
    """The finalizer, on Trenchcoats with retention Delete alone: others are deleted without the operator."""
    wanted = desired.spec.retention is Retention.DELETE
    if wanted == (constants.FINALIZER in desired.metadata.finalizers):
        return []
    return [SetFinalizer(wanted, f"spec.retention is {desired.spec.retention}")]


def _step(work: Work, observed: Observed) -> Action | None:
    """The next step of deleting an artifact that may go; None when nothing but the note is left of it."""
    manifest = observed.store.manifests.get(work.key)
    deletion = observed.store.deletions.get(work.key)
    if manifest is not None or deletion is None:
        return Condemn(work.artifact, manifest)
    if deletion.phase is DeletionPhase.PURGED:
        return None
    return Purge(work.artifact, deletion.manifest)


def intermediates(
    desired: Trenchcoat, graph: Graph, observed: Observed, needed: set[str]
) -> tuple[list[Action], bool]:
    """Steps of deleting what no stage reads any more, and of giving back what was condemned too early.

    Returns:
        The actions, and whether the other Trenchcoats must be looked at first.
    """
    actions: list[Action] = []
    undecided = False
    if not graph.crias:
        return [], False  # who reads what is not known yet
    for work in graph.works:
        deletion = observed.store.deletions.get(work.key)
        half_way = deletion is not None and deletion.phase is not DeletionPhase.PURGED
        reader = next((item.stage for item in graph.works if _reads(item, work) and item.key in needed), None)
        if work.key in needed:
            if deletion is not None and half_way:
                begun = deletion.phase is DeletionPhase.PURGING or deletion.manifest is None
                actions.append((Purge if begun else Restore)(work.artifact, deletion.manifest))
            continue
        may_go = desired.spec.retention is Retention.DELETE_INTERMEDIATE and work.stage in INTERMEDIATE
        if not half_way and not (may_go and work.key in observed.store.manifests):
            continue
        if reader is not None or (work.stage is Stage.SHARD and needed):
            continue
        if deletion is not None and deletion.phase is DeletionPhase.CONDEMNED and not may_go:
            actions.append(Restore(work.artifact, deletion.manifest))
            continue
        if observed.peers is None:
            undecided = True
        elif (step := _unless_kept(work, observed, observed.peers)) is not None:
            actions.append(step)
    former = _former(desired, graph, observed, needed)
    if former and observed.peers is None:
        return actions, True
    for work in former:
        assert observed.peers is not None  # noqa: S101
        if (step := _unless_kept(work, observed, observed.peers)) is not None:
            actions.append(step)
    return actions, undecided


def _unless_kept(work: Work, observed: Observed, peers: Peers) -> Action | None:
    """The next step of deleting an artifact, or of giving it back where another Trenchcoat keeps it."""
    if work.key not in peers.keepers and work.key not in peers.at_work:
        return _step(work, observed)
    deletion = observed.store.deletions.get(work.key)
    if deletion is not None and deletion.phase is DeletionPhase.CONDEMNED:
        return Restore(work.artifact, deletion.manifest)
    return None


def _former(desired: Trenchcoat, graph: Graph, observed: Observed, needed: set[str]) -> list[Work]:
    """Intermediates of former specs; they may go when this spec's may, so that a change can be undone."""
    if desired.spec.retention is not Retention.DELETE_INTERMEDIATE:
        return []
    asked = {work.key for work in graph.works}
    if any(child.key not in asked and (child.active or child.terminating) for child in observed.children):
        return []  # their pods read them, or write checkpoints
    to_come = {work.stage for work in graph.works if work.key in needed}
    readers = {Stage.COLLECT: {stage for stage in to_come if _stage_reads(stage)}, Stage.SHARD: to_come}
    return [
        work
        for work in superseded.works(desired, graph)
        if work.stage in INTERMEDIATE and not readers[work.stage]
    ]


def _stage_reads(stage: Stage) -> bool:
    return Stage.COLLECT in (*INPUTS[stage], *READS[stage])


def _reads(reader: Work, work: Work) -> bool:
    return any(item.key == work.key for item in (*reader.inputs, *reader.reads))


def farewell(
    desired: Trenchcoat, graph: Graph, observed: Observed, now: datetime
) -> tuple[list[Action], list[Event], bool]:
    """What is to be done for a Trenchcoat that is being deleted and waits for its artifacts.

    Returns:
        The actions, the events, and whether the other Trenchcoats must be looked at first.
    """
    stops: list[Action] = [
        Delete(child.kind, child.name, "the Trenchcoat is deleted")
        for child in sorted(observed.children, key=lambda child: child.name)
        if child.owned and not child.terminating
    ]
    if stops:
        return stops, [], False
    problem = observed.store.problem
    if problem is not None:
        asked = datetime.fromisoformat(desired.metadata.deletion_timestamp or now.isoformat())
        if now - asked < PATIENCE:
            return [], [], False
        where = f"s3://{desired.spec.store.bucket}/{desired.spec.store.prefix}/artifacts/"
        message = f"what it made stays in {where}: {problem.message}"
        event = Event("Warning", "ArtifactsKept", message, "artifacts-kept")
        return [SetFinalizer(False, f"the store cannot be used: {problem.message}")], [event], False
    if any(child.owned for child in observed.children):
        return [], [], False  # their pods write checkpoints
    if observed.peers is None:
        return [], [], True
    # Tokenize is the last to go, for it tells which Crias there are.
    for works in ((*superseded.works(desired, graph), *graph.works[1:]), graph.works[:1]):
        actions = [action for work in works if (action := _last_step(work, observed)) is not None]
        if actions:
            return actions, [], False
    event = Event("Normal", "ArtifactsDeleted", "its artifacts are deleted", "artifacts-deleted")
    return [SetFinalizer(False, "its artifacts are deleted")], [event], False


def _last_step(work: Work, observed: Observed) -> Action | None:
    assert observed.peers is not None  # noqa: S101
    deletion = observed.store.deletions.get(work.key)
    if work.key not in observed.store.remains:
        return None
    if work.key in observed.peers.users or work.key in observed.peers.at_work:
        if deletion is not None and deletion.phase is DeletionPhase.CONDEMNED:
            return Restore(work.artifact, deletion.manifest)
        return None
    return _step(work, observed) or Forget(work.artifact)
