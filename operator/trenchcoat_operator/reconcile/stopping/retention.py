"""Intermediates that no stage reads any more: spec.retention."""

from trenchcoat_api import constants
from trenchcoat_api.artifacts import DeletionPhase
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Retention
from trenchcoat_api.stages import INPUTS, READS, Stage

from trenchcoat_operator.model.plan import Action, Purge, SetFinalizer
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.stopping.steps import Steps, given_back, is_half_way, next_step
from trenchcoat_operator.works import superseded
from trenchcoat_operator.works.graph import INTERMEDIATE, Work


def wanted_finalizer(trenchcoat: Trenchcoat) -> list[Action]:
    """The finalizer, on Trenchcoats with retention Delete alone: others are deleted without the operator."""
    wanted = trenchcoat.spec.retention is Retention.DELETE
    if wanted == (constants.FINALIZER in trenchcoat.metadata.finalizers):
        return []
    return [SetFinalizer(wanted, f"spec.retention is {trenchcoat.spec.retention}")]


def intermediates(look: Look) -> Steps:
    """Steps of deleting what no stage reads any more, and of giving back what was condemned too early."""
    if not look.store_is_known or not look.graph.crias:
        return Steps()  # who reads what is not known
    if look.observed.undeleted is not None:
        return Steps()  # the store has just refused
    store, peers = look.observed.store, look.observed.peers
    own, former = [work for work in look.graph.works if _is_done_with(work, look)], _former(look)
    leaving = {work.key for work in (*own, *former)}
    actions = []
    for work in (*look.graph.works, *former):
        action = None
        if work.key not in leaving:
            action = _kept(work, look)
        elif peers is not None:
            kept_by_others = work.key in peers.keepers or work.key in peers.at_work
            action = given_back(work, store) if kept_by_others else next_step(work, store)
        if action is not None:
            actions.append(action)
    return Steps(tuple(actions), undecided=bool(leaving) and peers is None)


def _may_go(work: Work, look: Look) -> bool:
    if work.maker is not None:  # boundaries go once they are read, which is what they are made one by one for
        return True
    return look.trenchcoat.spec.retention is Retention.DELETE_INTERMEDIATE and work.stage in INTERMEDIATE


def _is_read(work: Work, look: Look) -> bool:
    """Whether a stage that is to come reads it, or works on what was made of it."""
    if work.stage is Stage.SHARD and look.needed:
        return True
    if work.maker is not None and work.maker.key in look.needed:
        return True  # the Cria that leaves it compares itself with it
    readers = (item for item in look.graph.works if item.key in look.needed)
    return any(item.key == work.key for reader in readers for item in (*reader.inputs, *reader.reads))


def _is_done_with(work: Work, look: Look) -> bool:
    """Whether a step towards its deletion is due, as far as this Trenchcoat is concerned."""
    if work.key in look.needed:
        return False
    store = look.observed.store
    half_way = is_half_way(work, store)
    if _may_go(work, look):
        return (half_way or work.key in store.manifests) and not _is_read(work, look)
    # Its objects are going already: what is left of it is of no use.
    return half_way and given_back(work, store) is None and not _is_read(work, look)


def _kept(work: Work, look: Look) -> Action | None:
    """What brings back an artifact whose deletion was begun, and that is not to be deleted."""
    store = look.observed.store
    deletion = store.deletions.get(work.key)
    if deletion is None or not is_half_way(work, store):
        return None
    if work.key not in look.needed:
        return None if _is_read(work, look) else given_back(work, store)
    begun = deletion.phase is DeletionPhase.PURGING or deletion.manifest is None
    return Purge(work.artifact, deletion.manifest) if begun else given_back(work, store)


def _former(look: Look) -> list[Work]:
    """Intermediates of former specs; they may go when this spec's may, so that a change can be undone."""
    if look.trenchcoat.spec.retention is not Retention.DELETE_INTERMEDIATE:
        return []
    asked = {work.key for work in look.graph.works}
    children = look.observed.children
    if any(child.key not in asked and (child.active or child.terminating) for child in children):
        return []  # their pods read them, or write checkpoints
    to_come = {work.stage for work in look.graph.works if work.key in look.needed}
    readers = {Stage.COLLECT: {stage for stage in to_come if _stage_reads(stage)}, Stage.SHARD: to_come}
    return [
        work
        for work in superseded.works(look.trenchcoat, look.graph)
        if work.stage in INTERMEDIATE and not readers[work.stage]
    ]


def _stage_reads(stage: Stage) -> bool:
    return Stage.COLLECT in (*INPUTS[stage], *READS[stage])
