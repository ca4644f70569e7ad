"""One look at what Trenchcoats share: the cluster's GPUs, and the artifacts of one store."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifacts, Manifest
from trenchcoat_api.crias import CriaRange, cria_ranges
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.spec import Retention, TrenchcoatSpec
from trenchcoat_api.stages import Stage
from trenchcoat_api.status import ConditionType

from trenchcoat_operator.kubernetes import client
from trenchcoat_operator.kubernetes.client import Cluster, ForbiddenError, NotFoundError
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import Capacity, Contender, Demand
from trenchcoat_operator.model.observed import Child, ChildKind, Peers
from trenchcoat_operator.reconcile.release import contender, waiting_jobs
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)

Object = dict[str, Any]
KINDS = {ChildKind.JOB: client.JOBS, ChildKind.PYTORCH_JOB: client.PYTORCH_JOBS}
MANAGED = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
Place = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A child of any Trenchcoat that is not over."""

    body: Object
    child: Child
    namespace: str

    @property
    def owner(self) -> Place:
        """Its Trenchcoat."""
        labels = self.body["metadata"].get("labels") or {}
        return self.namespace, labels.get(constants.LABEL_NAME, "")

    @property
    def place(self) -> Place:
        return self.namespace, self.child.name


class Surroundings:
    """Looks at all Trenchcoats and all nodes; keeps nothing."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._namespaces = settings.namespaces or ("",)
        self._count_gpus = settings.count_gpus

    def look(self, trenchcoat: Trenchcoat, told: Mapping[str, Manifest]) -> tuple[Capacity, Peers]:
        """What the others hold, want and make.

        Args:
            trenchcoat: Who asks; it is none of the others.
            told: Manifests of its artifacts, by content key.

        Raises:
            ApiError: the API server could not be read.
        """
        jobs = list(self._jobs(trenchcoat.metadata.uid))
        others = list(self._others(trenchcoat))
        return self._capacity(jobs, others), _peers(trenchcoat, told, jobs, others)

    def _everywhere(self, place: client.Kind, labels: str = "") -> Iterator[Object]:
        """Objects in all namespaces that are served."""
        for namespace in self._namespaces:
            yield from self._cluster.list(place, namespace, labels=labels)

    def _jobs(self, uid: str) -> Iterator[_Job]:
        for kind, place in KINDS.items():
            try:
                for body in self._everywhere(place, MANAGED):
                    child = views.child(kind, body, uid, ())
                    if child is not None and child.active:
                        yield _Job(body, child, body["metadata"]["namespace"])
            except NotFoundError:
                continue

    def _others(self, asking: Trenchcoat) -> Iterator[Trenchcoat]:
        for body in self._everywhere(client.TRENCHCOATS):
            try:
                other = Trenchcoat.from_object(body)
            except InvalidTrenchcoatError:
                continue  # told in its own status; it wants nothing
            if other.metadata.uid != asking.metadata.uid:
                yield other

    # GPUs

    def _capacity(self, jobs: list[_Job], others: list[Trenchcoat]) -> Capacity:
        if not self._count_gpus:
            return Capacity(known=False)
        unfinished = "status.phase!=Succeeded,status.phase!=Failed"
        try:
            nodes = [views.node(body) for body in self._cluster.list(client.NODES, cached=True)]
            pods = list(self._cluster.list(client.PODS, fields=unfinished))
        except ForbiddenError as error:
            log.warning("the cluster's GPUs are not counted, the scheduler alone decides: %s", error)
            return Capacity(known=False)
        bound = Counter(_owner(body) for body in pods if (body.get("spec") or {}).get("nodeName"))
        # A pod's end is seen here a second before its Job's status tells of it.
        succeeded = Counter(
            _owner(body)
            for body in self._everywhere(client.PODS, MANAGED)
            if (body.get("status") or {}).get("phase") == "Succeeded"
        )
        promised: list[Demand] = []
        held: defaultdict[Place, Counter[Stage]] = defaultdict(Counter)
        gpus: Counter[Place] = Counter()
        for job in jobs:
            if job.child.suspended:
                continue  # Kueue has not let it hold anything yet
            templates = views.templates(job.child.kind, job.body)
            over = max(views.finished_pods(job.child.kind, job.body), succeeded[job.place])
            if over >= sum(count for count, _ in templates):
                continue
            held[job.owner][job.child.stage] += 1
            gpus[job.owner] += sum(
                count * sum(views.extended_requests(spec).values()) for count, spec in templates
            )
            promised += _promised(job, templates, bound[job.place] + over)
        return Capacity(
            nodes=tuple(nodes),
            bound=tuple(item for body in pods if (item := views.bound_pod(body)) is not None),
            promised=tuple(promised),
            contenders=tuple(_contenders(others, held, gpus)),
        )


def _owner(pod: Object) -> Place:
    return pod["metadata"]["namespace"], views.controller(pod)


def _promised(job: _Job, templates: list[tuple[int, Object]], seen: int) -> list[Demand]:
    """What a child's pods that are not bound yet will take; `seen` are bound or over."""
    missing = sum(count for count, _ in templates) - seen
    result = []
    for count, spec in templates:
        pods = max(0, min(count, missing))
        missing -= pods
        result += [
            Demand(resource, pods, gpus, views.placement(spec), "/".join(job.place))
            for resource, gpus in views.extended_requests(spec).items()
            if pods and gpus
        ]
    return result


def _contenders(
    others: list[Trenchcoat], held: Mapping[Place, Mapping[Stage, int]], gpus: Mapping[Place, int]
) -> Iterator[Contender]:
    for other in others:
        place = (other.metadata.namespace, other.metadata.name)
        waits = waiting_jobs(other, held.get(place, {}))
        if waits is not None:
            stage, jobs, since = waits
            yield contender(other, gpus.get(place, 0), stage, jobs, since)


# Artifacts


def _store(spec: TrenchcoatSpec) -> tuple[str, str, str]:
    return spec.store.endpoint.rstrip("/"), spec.store.bucket, spec.store.prefix


def _peers(
    trenchcoat: Trenchcoat, told: Mapping[str, Manifest], jobs: list[_Job], others: list[Trenchcoat]
) -> Peers:
    sharing = {
        (other.metadata.namespace, other.metadata.name): other
        for other in others
        if _store(other.spec) == _store(trenchcoat.spec)
    }
    elsewhere = {(other.metadata.namespace, other.metadata.name) for other in others} - set(sharing)
    at_work = {
        job.child.key: "/".join(job.owner)
        for job in jobs
        # A deleted Trenchcoat's Job may still write a checkpoint, nobody knows to which store.
        if not job.child.owned and job.owner not in elsewhere
    }
    users: dict[str, str] = {}
    keepers: dict[str, str] = {}
    mine = Artifacts(trenchcoat.spec)
    for place, other in sorted(sharing.items()):
        if other.metadata.deletion_timestamp:
            continue
        name = "/".join(place)
        for stage, key in _keys(other, mine, told):
            users.setdefault(key, name)
            if _keeps(other, stage):
                keepers.setdefault(key, name)
    return Peers(at_work, users, keepers)


def _keys(other: Trenchcoat, mine: Artifacts, told: Mapping[str, Manifest]) -> Iterator[tuple[Stage, str]]:
    """Artifacts of another Trenchcoat; those of Crias can equal ours only if the model and text are ours."""
    artifacts = Artifacts(other.spec)
    crias: list[CriaRange] = []
    manifest = told.get(mine.tokenize.key)
    if artifacts.tokenize.key == mine.tokenize.key and manifest and manifest.facts.model is not None:
        try:
            crias = cria_ranges(manifest.facts.model.layers, other.spec.layers_per_cria)
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
