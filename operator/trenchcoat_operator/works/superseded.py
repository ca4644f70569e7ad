"""What a Trenchcoat made for former specs: spec.retention speaks of that, too."""

from trenchcoat_api.artifacts import Artifacts, DeletionPhase
from trenchcoat_api.keys import boundary_key
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import MAX_SUPERSEDED, State, SupersededArtifact
from trenchcoat_api.status import Work as Row

from trenchcoat_operator.model.observed import StoreView
from trenchcoat_operator.works.graph import Graph, Work


def works(desired: Trenchcoat, graph: Graph) -> tuple[Work, ...]:
    """Artifacts that the status tells of and the spec does not ask for any more, in order of their change."""
    status = desired.status
    rows: list[tuple[str, Row]] = [(row.name, row) for row in status.stages]
    rows += [(Stage.CRIA.value, row) for row in status.crias]
    known = {item.key: item.stage for item in status.superseded}
    if any(row.name == Stage.COLLECT and not row.key and row.bytes for row in status.stages):
        # What Crias left one another has no row of its own.
        known |= {
            boundary_key(row.index + 1, row.key): Stage.COLLECT.value for row in status.crias if row.key
        }
    known |= {row.key: stage for stage, row in rows if row.key and _may_have_objects(row)}
    asked = {work.key for work in graph.works}
    artifacts = Artifacts(desired.spec)
    return tuple(
        Work(artifacts.at(Stage(stage), key), ()) for key, stage in known.items() if key not in asked
    )


def _may_have_objects(row: Row) -> bool:
    return row.attempt > 0 or row.state is State.SUCCEEDED


def remembered(desired: Trenchcoat, graph: Graph, store: StoreView) -> list[SupersededArtifact]:
    """What the next status tells of them: all but those that are deleted."""
    left = [work for work in works(desired, graph) if not _purged(work, store)]
    return [SupersededArtifact(stage=work.stage.value, key=work.key) for work in left[-MAX_SUPERSEDED:]]


def _purged(work: Work, store: StoreView) -> bool:
    deletion = store.deletions.get(work.key)
    return deletion is not None and deletion.phase is DeletionPhase.PURGED
