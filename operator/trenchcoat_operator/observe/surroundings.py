"""One look at what Trenchcoats share: the cluster's GPUs, and the artifacts of one store."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import Retention, TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import ConditionType

from trenchcoat_operator.gpus import places
from trenchcoat_operator.gpus.contenders import waiting
from trenchcoat_operator.kubernetes.client import ForbiddenError
from trenchcoat_operator.kubernetes.informer import Place
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Contender, Demand, Node
from trenchcoat_operator.model.observed import Peers
from trenchcoat_operator.observe.informers import Informers, Job, OwnPod, Tenant
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)


class Surroundings:
    """Looks at all Trenchcoats and all nodes."""

    def __init__(self, informers: Informers, settings: Settings) -> None:
        self._informers = informers
        self._count_gpus = settings.count_gpus

    def look(self, trenchcoat: Trenchcoat, told: Mapping[str, Manifest]) -> tuple[Capacity, Peers]:
        """What the others hold, want and make.

        Args:
            trenchcoat: Who asks; it is none of the others.
            told: Manifests of its artifacts, by content key.

        Raises:
            ApiError: the API server could not be read.
        """
        jobs = [job for job in self._informers.jobs() if job.child.active]
        others = [
            tenant
            for tenant in self._informers.tenants()
            if tenant.trenchcoat.metadata.uid != trenchcoat.metadata.uid
        ]
        return self._capacity(jobs, others), _peers(trenchcoat, told, jobs, others)

    # GPUs

    def room_by(self, job: Job, told_by: datetime) -> datetime | None:
        """When pods should be gone that were told to end by then, and hold what a Job's pods wait for.

        Raises:
            ApiError: the API server could not be read.
        """
        pods = self._informers.pods()
        counted = self._counted(pods)
        if counted is None:
            return None
        demands = [demand for _, demands in job.templates for demand in demands]
        return places.room_by(*counted, demands, told_by)

    def _counted(self, pods: list[OwnPod]) -> tuple[tuple[Node, ...], tuple[BoundPod, ...]] | None:
        """All nodes, and what pods hold of them, those of ours among them; None where nobody counts GPUs."""
        if not self._count_gpus:
            return None
        try:
            nodes, others = self._informers.nodes(), self._informers.held_by_others()
        except ForbiddenError as error:
            log.warning("the cluster's GPUs are not counted, the scheduler alone decides: %s", error)
            return None
        return tuple(nodes), (*others, *(pod.held for pod in pods if pod.held is not None))

    def _capacity(self, jobs: list[Job], others: list[Tenant]) -> Capacity:
        pods = self._informers.pods()
        counted = self._counted(pods)
        if counted is None:
            return Capacity(known=False)
        nodes, held_by_pods = counted
        bound = Counter(pod.job for pod in pods if pod.pod.node and not pod.over)
        # A pod's end is seen a second before its Job's status tells of it.
        succeeded = Counter(pod.job for pod in pods if pod.pod.phase == "Succeeded")
        promised: list[Demand] = []
        held: defaultdict[Place, Counter[Stage]] = defaultdict(Counter)
        gpus: Counter[Place] = Counter()
        for job in jobs:
            if job.child.suspended:
                continue  # Kueue has not let it hold anything yet
            over = max(job.over, succeeded[job.place])
            if over >= job.pods:
                continue
            held[job.owner][job.child.stage] += 1
            gpus[job.owner] += job.gpus
            promised += _promised(job, bound[job.place] + over)
        return Capacity(
            nodes=nodes,
            bound=held_by_pods,
            promised=tuple(promised),
            contenders=tuple(_contenders(others, held, gpus)),
        )


def _promised(job: Job, seen: int) -> Iterator[Demand]:
    """What a child's pods that are not bound yet will take; `seen` are bound or over."""
    missing = job.pods - seen
    for count, demands in job.templates:
        pods = max(0, min(count, missing))
        missing -= pods
        if pods:
            yield from (replace(demand, pods=pods) for demand in demands)


def _contenders(
    others: list[Tenant], held: Mapping[Place, Mapping[Stage, int]], gpus: Mapping[Place, int]
) -> Iterator[Contender]:
    for other in others:
        found = waiting(other.wishes, held.get(other.place, {}), gpus.get(other.place, 0))
        if found is not None:
            yield found


# Artifacts


def _store(spec: TrenchcoatSpec) -> tuple[str, str, str]:
    return spec.store.endpoint.rstrip("/"), spec.store.bucket, spec.store.prefix


def _peers(
    trenchcoat: Trenchcoat, told: Mapping[str, Manifest], jobs: list[Job], others: list[Tenant]
) -> Peers:
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
    wanted = artifacts.all(crias) if crias else [artifacts.tokenize, artifacts.collect, artifacts.shard]
    for artifact in wanted:
        yield artifact.stage, artifact.key


def _keeps(other: Trenchcoat, stage: Stage) -> bool:
    """Whether an artifact must not be deleted because another Trenchcoat has it, by that one's own status."""
    if other.spec.retention is not Retention.DELETE_INTERMEDIATE:
        return True
    if other.status.observed_generation != other.metadata.generation:
        return True  # it is not known yet what its spec, as it is now, needs
    over = ConditionType.CRIAS_TRAINED if stage is Stage.COLLECT else ConditionType.SUCCEEDED
    return not any(item.type is over and item.status == "True" for item in other.status.conditions)
