"""A Trenchcoat that is being deleted, and what it made with it: spec.retention Delete."""

from datetime import datetime, timedelta

from trenchcoat_operator.model.observed import Peers, Problem, StoreView
from trenchcoat_operator.model.plan import Action, Delete, Event, Forget, SetFinalizer
from trenchcoat_operator.reconcile.look import Look
from trenchcoat_operator.reconcile.stopping.steps import Steps, given_back, next_step
from trenchcoat_operator.works import superseded
from trenchcoat_operator.works.graph import Work

PATIENCE = timedelta(seconds=60)
"""A Trenchcoat that is being deleted waits for a store that cannot be used for so long, then goes without."""


def farewell(look: Look) -> Steps:
    """What is to be done for a Trenchcoat that waits for its artifacts' deletion: Jobs go first."""
    stops = tuple(
        Delete(child.kind, child.name, "the Trenchcoat is deleted")
        for child in look.children
        if not child.terminating
    )
    if stops:
        return Steps(stops)
    if look.observed.store.problem is not None:
        return _without_the_store(look, look.observed.store.problem)
    if look.children:
        return Steps()  # their pods write checkpoints
    if look.observed.peers is None:
        return Steps(undecided=True)
    # Tokenize is the last to go, for it tells which Crias there are.
    works = look.graph.works
    for part in ((*superseded.works(look.trenchcoat, look.graph), *works[1:]), works[:1]):
        steps = (_last_step(work, look.observed.store, look.observed.peers) for work in part)
        actions = tuple(step for step in steps if step is not None)
        if actions:
            return Steps(actions)
    event = Event("Normal", "ArtifactsDeleted", "its artifacts are deleted", "artifacts-deleted")
    return Steps((SetFinalizer(False, "its artifacts are deleted"),), (event,))


def _without_the_store(look: Look, problem: Problem) -> Steps:
    """A store that cannot be used does not keep a Trenchcoat for ever."""
    asked = datetime.fromisoformat(look.trenchcoat.metadata.deletion_timestamp or look.now.isoformat())
    if look.now - asked < PATIENCE:
        return Steps()
    store = look.trenchcoat.spec.store
    message = f"what it made stays in s3://{store.bucket}/{store.prefix}/artifacts/: {problem.message}"
    event = Event("Warning", "ArtifactsKept", message, "artifacts-kept")
    return Steps((SetFinalizer(False, f"the store cannot be used: {problem.message}"),), (event,))


def _last_step(work: Work, store: StoreView, peers: Peers) -> Action | None:
    if work.key not in store.remains:
        return None
    if work.key in peers.users or work.key in peers.at_work:
        return given_back(work, store)
    return next_step(work, store) or Forget(work.artifact)
