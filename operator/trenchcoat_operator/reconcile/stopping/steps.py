"""The steps in which an artifact is deleted.

Each may be the last one of an operator that dies: an artifact is condemned (its manifest goes, so that nobody
begins to use it), then, if a second look finds that still nobody uses it, purged (its objects go), and then a
note stays that it was there. A condemned artifact that somebody needs after all gets its manifest back.
"""

from dataclasses import dataclass

from trenchcoat_api.artifacts import DeletionPhase

from trenchcoat_operator.model.observed import StoreView
from trenchcoat_operator.model.plan import Action, Condemn, Event, Purge, Restore
from trenchcoat_operator.works.graph import Work


@dataclass(frozen=True, slots=True)
class Steps:
    """What is done at one look towards artifacts' deletion."""

    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    undecided: bool = False
    """Whether the other Trenchcoats must be looked at first."""


def next_step(work: Work, store: StoreView) -> Action | None:
    """The next step of deleting an artifact that may go; None when nothing but the note is left of it."""
    manifest = store.manifests.get(work.key)
    deletion = store.deletions.get(work.key)
    if manifest is not None or deletion is None:
        return Condemn(work.artifact, manifest)
    if deletion.phase is DeletionPhase.PURGED:
        return None
    return Purge(work.artifact, deletion.manifest)


def given_back(work: Work, store: StoreView) -> Action | None:
    """What gives a condemned artifact its manifest back; None where it is not condemned."""
    deletion = store.deletions.get(work.key)
    if deletion is None or deletion.phase is not DeletionPhase.CONDEMNED:
        return None
    return Restore(work.artifact, deletion.manifest)


def is_half_way(work: Work, store: StoreView) -> bool:
    """Whether its deletion has begun and is not done."""
    deletion = store.deletions.get(work.key)
    return deletion is not None and deletion.phase is not DeletionPhase.PURGED
