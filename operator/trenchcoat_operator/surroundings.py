"""One look at what Trenchcoats share: the cluster's GPUs, and the artifacts of one store."""

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
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
from trenchcoat_operator.kubernetes.reflector import Place, Reflector
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Contender, Demand
from trenchcoat_operator.model.observed import ChildKind, Peers
from trenchcoat_operator.reconcile.plan import Action, Apply
from trenchcoat_operator.reconcile.release import contender, waiting_jobs
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)

Object = dict[str, Any]
KINDS = {ChildKind.JOB: client.JOBS, ChildKind.PYTORCH_JOB: client.PYTORCH_JOBS}
MANAGED = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
_SEEN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A child of any Trenchcoat that is not over."""

    kind: ChildKind
    place: Place
    owner: Place
    """Its Trenchcoat."""
    owners: frozenset[str]
    """UIDs of its owners."""
    stage: Stage
    key: str
    suspended: bool
    over: int
    """Pods that are over, by its own count."""
    templates: tuple[tuple[int, tuple[Demand, ...]], ...]
    """How many pods it makes from each template, and what those ask for."""

    @property
    def pods(self) -> int:
        """Pods of all its templates."""
        return sum(count for count, _ in self.templates)

    @property
    def gpus(self) -> int:
        """Extended resources of all its pods."""
        return sum(demand.pods * demand.gpus for _, demands in self.templates for demand in demands)


@dataclass(frozen=True, slots=True)
class _Other:
    """A Trenchcoat."""

    trenchcoat: Trenchcoat
    artifacts: Artifacts
    """Of its spec; it remembers keys once they were asked for."""

    @property
    def place(self) -> Place:
        return self.trenchcoat.metadata.namespace, self.trenchcoat.metadata.name


@dataclass(frozen=True, slots=True)
class _Pod:
    """A pod of anybody's."""

    job: Place
    on_node: bool
    held: BoundPod | None


class Surroundings:
    """Looks at all Trenchcoats and all nodes, which are followed: a look asks the API server nothing."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        places = settings.namespaces or ("",)
        self._count_gpus = settings.count_gpus
        unfinished = "status.phase!=Succeeded,status.phase!=Failed"
        self._nodes = Reflector(cluster, client.NODES, views.node)
        self._pods = Reflector(cluster, client.PODS, _read_pod, fields=unfinished)
        # A pod's end is seen here a second before its Job's status tells of it.
        succeeded = "status.phase=Succeeded"
        self._succeeded = [
            Reflector(cluster, client.PODS, _job_of, namespace=place, labels=MANAGED, fields=succeeded)
            for place in places
        ]
        self._jobs = {
            (kind, place): Reflector(
                cluster, KINDS[kind], partial(_read_job, kind), namespace=place, labels=MANAGED
            )
            for kind in KINDS
            for place in places
        }
        self._trenchcoats = [
            Reflector(cluster, client.TRENCHCOATS, _read_trenchcoat, namespace=place) for place in places
        ]

    def look(self, trenchcoat: Trenchcoat, told: Mapping[str, Manifest]) -> tuple[Capacity, Peers]:
        """What the others hold, want and make.

        Args:
            trenchcoat: Who asks; it is none of the others.
            told: Manifests of its artifacts, by content key.

        Raises:
            ApiError: the API server could not be read.
        """
        jobs = list(self._all_jobs())
        others = [
            other
            for reflector in self._trenchcoats
            for other in reflector.items()
            if other.trenchcoat.metadata.uid != trenchcoat.metadata.uid
        ]
        return self._capacity(jobs, others), _peers(trenchcoat, told, jobs, others)

    def see(self, namespace: str, actions: Iterable[Action]) -> None:
        """Wait until the Jobs just made are among those that the next look sees, or GPUs would go twice."""
        made: defaultdict[ChildKind, set[Place]] = defaultdict(set)
        for action in actions:
            if isinstance(action, Apply) and action.child_kind is not None:
                made[action.child_kind].add((namespace, action.name))
        for kind, places in made.items():
            reflector = self._jobs.get((kind, namespace)) or self._jobs[kind, ""]
            if not reflector.wait_for(places, _SEEN_SECONDS):
                log.warning("%s of %s are not seen yet", KINDS[kind].plural, namespace)

    def stop(self) -> None:
        """Follow nothing any longer."""
        followed: list[Reflector[Any]] = [self._nodes, self._pods]
        followed += [*self._succeeded, *self._jobs.values(), *self._trenchcoats]
        for reflector in followed:
            reflector.stop()

    def _all_jobs(self) -> Iterator[_Job]:
        for reflector in self._jobs.values():
            with contextlib.suppress(NotFoundError):  # no training-operator
                yield from reflector.items()

    # GPUs

    def _capacity(self, jobs: list[_Job], others: list[_Other]) -> Capacity:
        if not self._count_gpus:
            return Capacity(known=False)
        try:
            nodes, pods = self._nodes.items(), self._pods.items()
        except ForbiddenError as error:
            log.warning("the cluster's GPUs are not counted, the scheduler alone decides: %s", error)
            return Capacity(known=False)
        bound = Counter(pod.job for pod in pods if pod.on_node)
        succeeded = Counter(job for reflector in self._succeeded for job in reflector.items())
        promised: list[Demand] = []
        held: defaultdict[Place, Counter[Stage]] = defaultdict(Counter)
        gpus: Counter[Place] = Counter()
        for job in jobs:
            if job.suspended:
                continue  # Kueue has not let it hold anything yet
            over = max(job.over, succeeded[job.place])
            if over >= job.pods:
                continue
            held[job.owner][job.stage] += 1
            gpus[job.owner] += job.gpus
            promised += _promised(job, bound[job.place] + over)
        return Capacity(
            nodes=tuple(nodes),
            bound=tuple(pod.held for pod in pods if pod.held is not None),
            promised=tuple(promised),
            contenders=tuple(_contenders(others, held, gpus)),
        )


def _read_pod(body: Object) -> _Pod | None:
    held = views.bound_pod(body)
    ours = (body["metadata"].get("labels") or {}).get(constants.LABEL_MANAGED_BY) == constants.MANAGED_BY
    if held is None and not ours:
        return None
    return _Pod(_job_of(body), bool((body.get("spec") or {}).get("nodeName")), held)


def _job_of(pod: Object) -> Place:
    return pod["metadata"]["namespace"], views.controller(pod)


def _read_trenchcoat(body: Object) -> _Other | None:
    try:
        trenchcoat = Trenchcoat.from_object(body)
    except InvalidTrenchcoatError:
        return None  # told in its own status; it wants nothing
    return _Other(trenchcoat, Artifacts(trenchcoat.spec))


def _read_job(kind: ChildKind, body: Object) -> _Job | None:
    child = views.child(kind, body, "", ())
    if child is None or not child.active:
        return None
    metadata = body["metadata"]
    place = (metadata["namespace"], child.name)
    return _Job(
        kind=kind,
        place=place,
        owner=(metadata["namespace"], (metadata.get("labels") or {}).get(constants.LABEL_NAME, "")),
        owners=frozenset(str(item.get("uid")) for item in metadata.get("ownerReferences") or []),
        stage=child.stage,
        key=child.key,
        suspended=child.suspended,
        over=views.finished_pods(kind, body),
        templates=tuple((count, _demands(count, spec, place)) for count, spec in views.templates(kind, body)),
    )


def _demands(pods: int, spec: Object, job: Place) -> tuple[Demand, ...]:
    return tuple(
        Demand(resource, pods, gpus, views.placement(spec), "/".join(job))
        for resource, gpus in views.extended_requests(spec).items()
        if gpus
    )


def _promised(job: _Job, seen: int) -> Iterator[Demand]:
    """What a child's pods that are not bound yet will take; `seen` are bound or over."""
    missing = job.pods - seen
    for count, demands in job.templates:
        pods = max(0, min(count, missing))
        missing -= pods
        if pods:
            yield from (replace(demand, pods=pods) for demand in demands)


def _contenders(
    others: list[_Other], held: Mapping[Place, Mapping[Stage, int]], gpus: Mapping[Place, int]
) -> Iterator[Contender]:
    for other in others:
        waits = waiting_jobs(other.trenchcoat, held.get(other.place, {}))
        if waits is not None:
            stage, jobs, since = waits
            yield contender(other.trenchcoat, gpus.get(other.place, 0), stage, jobs, since)


# Artifacts


def _store(spec: TrenchcoatSpec) -> tuple[str, str, str]:
    return spec.store.endpoint.rstrip("/"), spec.store.bucket, spec.store.prefix


def _peers(
    trenchcoat: Trenchcoat, told: Mapping[str, Manifest], jobs: list[_Job], others: list[_Other]
) -> Peers:
    store = _store(trenchcoat.spec)
    sharing = {other.place: other for other in others if _store(other.trenchcoat.spec) == store}
    elsewhere = {other.place for other in others} - set(sharing)
    at_work = {
        job.key: "/".join(job.owner)
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


def _keys(other: _Other, mine: Artifacts, told: Mapping[str, Manifest]) -> Iterator[tuple[Stage, str]]:
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
