"""The other Trenchcoats that share a store, by the artifacts that they make, ask for and keep."""

from collections.abc import Iterator, Mapping

from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.boundaries import with_boundaries
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.phases import rolls
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Retention, TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import ConditionType

from trenchcoat_operator.model.observed import Peers
from trenchcoat_operator.observe.kept import Job, Tenant


def _store(spec: TrenchcoatSpec) -> tuple[str, str, str]:
    return spec.store.endpoint.rstrip("/"), spec.store.bucket, spec.store.prefix


def peers(
    trenchcoat: Trenchcoat, told: Mapping[str, Manifest], jobs: list[Job], others: list[Tenant]
) -> Peers:
    """What the others with the same store make, ask for and keep.

    Args:
        trenchcoat: Who asks; it is none of the others.
        told: Manifests of its artifacts, by content key.
        jobs: Jobs and PyTorchJobs of all Trenchcoats that are not over.
        others: The others.
    """
    store = _store(trenchcoat.spec)
    sharing = {other.place: other for other in others if _store(other.trenchcoat.spec) == store}
    elsewhere = {other.place for other in others} - set(sharing)
    at_work = {
        job.child.key: "/".join(job.owner)
        for job in jobs
        # A deleted Trenchcoat's Job may still write a checkpoint, nobody knows to which store.
        if trenchcoat.metadata.uid not in job.owners and job.owner not in elsewhere
    }
    users: dict[str, str] = {}
    keepers: dict[str, str] = {}
    mine = Artifacts(trenchcoat.spec)
    for place, other in sorted(sharing.items()):
        if other.trenchcoat.metadata.deletion_timestamp:
            continue
        name = "/".join(place)
        for stage, key in _keys(other, mine, told):
            users.setdefault(key, name)
            if _keeps(other.trenchcoat, stage):
                keepers.setdefault(key, name)
    return Peers(at_work, users, keepers)


def _keys(other: Tenant, mine: Artifacts, told: Mapping[str, Manifest]) -> Iterator[tuple[Stage, str]]:
    """Artifacts of another Trenchcoat; those of Crias can equal ours only if the model and text are ours."""
    artifacts = other.artifacts
    crias: list[CriaRange] = []
    manifest = told.get(mine.tokenize.key)
    if artifacts.tokenize.key == mine.tokenize.key and manifest and manifest.facts.model is not None:
        try:
            crias = cria_ranges(manifest.facts.model.layers, other.trenchcoat.spec.layers_per_cria)
        except ValueError:
            crias = []  # the other's status says that its spec does not fit the model
    spec = other.trenchcoat.spec
    wanted = with_boundaries(spec, artifacts, crias) if crias else artifacts.before_crias
    for artifact in wanted:
        yield artifact.stage, artifact.key


def _keeps(other: Trenchcoat, stage: Stage) -> bool:
    """Whether an artifact must not be deleted because another Trenchcoat has it, by that one's own status."""
    rolling = stage is Stage.COLLECT and rolls(other.spec)
    if other.spec.retention is not Retention.DELETE_INTERMEDIATE and not rolling:
        return True
    if other.status.observed_generation != other.metadata.generation:
        return True  # it is not known yet what its spec, as it is now, needs
    over = ConditionType.CRIAS_TRAINED if stage is Stage.COLLECT else ConditionType.SUCCEEDED
    return not any(item.type is over and item.status == "True" for item in other.status.conditions)
