"""Everything in the cluster that is followed: Trenchcoats and what they own, nodes, and who holds GPUs."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat

from trenchcoat_operator.gpus.contenders import Wish, wishes
from trenchcoat_operator.kubernetes import client
from trenchcoat_operator.kubernetes.client import Cluster, NotFoundError, Object
from trenchcoat_operator.kubernetes.informer import Informer, Place
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import BoundPod, Demand, Node
from trenchcoat_operator.model.observed import Child, ChildKind, Pod
from trenchcoat_operator.model.plan import Action, Apply, Delete
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Notice = Callable[[Place, bool], None]

_MANAGED = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
_NOT_MANAGED = f"{constants.LABEL_MANAGED_BY}!={constants.MANAGED_BY}"
_UNFINISHED = "status.phase!=Succeeded,status.phase!=Failed"
_OVER = ("Succeeded", "Failed")
_SEEN_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Job:
    """A Job or PyTorchJob of any Trenchcoat."""

    child: Child
    """Without its pods, and owned by nobody."""
    place: Place
    uid: str
    owner: Place
    """Its Trenchcoat, by its label."""
    owners: frozenset[str]
    """UIDs of its owners."""
    queued: bool
    """Whether it carries the label of a queue of Kueue's."""
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
class OwnPod:
    """A pod of a child."""

    pod: Pod
    job: Place
    owner: Place
    """Its Trenchcoat, by its label."""
    held: BoundPod | None
    """What it holds of its node."""

    @property
    def over(self) -> bool:
        """Whether it holds nothing any more."""
        return self.pod.phase in _OVER


@dataclass(frozen=True, slots=True)
class Tenant:
    """A Trenchcoat."""

    trenchcoat: Trenchcoat
    artifacts: Artifacts
    """Of its spec; it remembers keys once they were asked for."""
    wishes: tuple[Wish, ...]
    """What it waits for."""

    @classmethod
    def of(cls, trenchcoat: Trenchcoat) -> Self:
        """Work out once what every look of the others needs."""
        return cls(trenchcoat, Artifacts(trenchcoat.spec), wishes(trenchcoat))

    @property
    def place(self) -> Place:
        """Namespace and name."""
        return place_of(self.trenchcoat)


def place_of(trenchcoat: Trenchcoat) -> Place:
    """Namespace and name."""
    return trenchcoat.metadata.namespace, trenchcoat.metadata.name


class Informers:
    """Follows the cluster, so that a look asks the API server nothing."""

    def __init__(self, cluster: Cluster, settings: Settings, notice: Notice) -> None:
        """`notice` is called with a Trenchcoat whose children changed, and whether a pod of it ended."""
        self._places = settings.namespaces or ("",)
        self._notice = notice
        self._nodes = Informer(cluster, client.NODES, views.node)
        # Who serves some namespaces sees others' Trenchcoats' pods here, too.
        self._others = Informer(
            cluster,
            client.PODS,
            partial(_read_others, settings.namespaces),
            labels="" if settings.namespaces else _NOT_MANAGED,
            fields=_UNFINISHED,
        )
        self._counts_gpus = settings.count_gpus

        def follow(
            kind: client.Kind, read: Callable[[Object], T | None], labels: str = _MANAGED, **more: Any
        ) -> dict[str, Informer[T]]:
            return {
                place: Informer(cluster, kind, read, namespace=place, labels=labels, **more)
                for place in self._places
            }

        self._tenants = follow(client.TRENCHCOATS, _read_trenchcoat, labels="")
        self._config_maps = follow(client.CONFIG_MAPS, _read_config_map, index=lambda item: item[0])
        self._pods = follow(client.PODS, _read_pod, index=lambda pod: pod.owner, notice=self._pod_changed)
        self._jobs = {
            kind: follow(
                client.KINDS[kind],
                partial(_read_job, kind),
                index=lambda job: job.owner,
                notice=self._job_changed,
            )
            for kind in ChildKind
        }
        self._written: dict[str, dict[str, Informer[Any]]] = {
            "ConfigMap": self._config_maps,
            **{kind.value: jobs for kind, jobs in self._jobs.items()},
        }

    def start(self) -> None:
        """Follow everything from now on, not only what was looked at once."""
        for informer in self._all():
            informer.start()

    def stop(self) -> None:
        """Follow nothing any longer."""
        for informer in self._all():
            informer.stop()

    def _all(self) -> Iterator[Informer[Any]]:
        if self._counts_gpus:
            yield self._nodes
            yield self._others
        for place in self._places:
            yield self._tenants[place]
            yield self._config_maps[place]
            yield self._pods[place]
            for jobs in self._jobs.values():
                yield jobs[place]

    # All of a kind. Each of these raises ApiError where the API server cannot be read.

    def nodes(self) -> list[Node]:
        """All nodes."""
        return self._nodes.items()

    def held_by_others(self) -> list[BoundPod]:
        """What pods hold that are not of the Trenchcoats served here."""
        return self._others.items()

    def tenants(self) -> list[Tenant]:
        """All Trenchcoats that can be read."""
        return [item for informer in self._tenants.values() for item in informer.items()]

    def jobs(self) -> list[Job]:
        """All Jobs and PyTorchJobs of Trenchcoats."""
        found: list[Job] = []
        for informers in self._jobs.values():
            for informer in informers.values():
                with contextlib.suppress(NotFoundError):  # no training-operator
                    found += informer.items()
        return found

    def pods(self) -> list[OwnPod]:
        """All pods of theirs."""
        return [item for informer in self._pods.values() for item in informer.items()]

    # Those of one Trenchcoat; errors as above.

    def trenchcoat(self, place: Place) -> Trenchcoat | None:
        """A Trenchcoat itself, if it can be read."""
        tenant = self._serving(self._tenants, place[0]).get(place)
        return tenant.trenchcoat if tenant is not None else None

    def jobs_of(self, kind: ChildKind, owner: Place) -> list[Job]:
        """A Trenchcoat's Jobs or PyTorchJobs; NotFoundError if the cluster knows none of the kind."""
        return self._serving(self._jobs[kind], owner[0]).at(owner)

    def pods_of(self, owner: Place) -> list[OwnPod]:
        """A Trenchcoat's pods."""
        return self._serving(self._pods, owner[0]).at(owner)

    def config_maps_of(self, owner: Place) -> frozenset[str]:
        """Names of a Trenchcoat's ConfigMaps."""
        return frozenset(name for _, name in self._serving(self._config_maps, owner[0]).at(owner))

    def _serving(self, informers: dict[str, Informer[T]], namespace: str) -> Informer[T]:
        return informers.get(namespace) or informers[""]

    def see(self, namespace: str, actions: Iterable[Action]) -> None:
        """Wait until what was just made, or taken away at once, is seen to be.

        A Job that is not seen would have its GPUs given away twice; a ConfigMap that is still seen would not
        be made again.
        """
        made: dict[str, set[Place]] = {}
        gone: dict[str, set[Place]] = {}
        for action in actions:
            if isinstance(action, Apply):
                made.setdefault(action.manifest["kind"], set()).add((namespace, action.name))
            elif isinstance(action, Delete) and action.kind == "ConfigMap":
                gone.setdefault(action.kind, set()).add((namespace, action.name))
        for kind in made.keys() | gone.keys():
            informer = self._serving(self._written[kind], namespace)
            if not informer.wait_for(made.get(kind, ()), _SEEN_SECONDS, deleted=gone.get(kind, ())):
                log.warning("changes of %ss in %s are not seen yet", kind, namespace)

    # Changes

    def _pod_changed(self, before: OwnPod | None, after: OwnPod | None) -> None:
        pod = after or before
        assert pod is not None  # noqa: S101
        ended = (after is None or after.over) and not (before is not None and before.over)
        self._notice(pod.owner, ended)

    def _job_changed(self, before: Job | None, after: Job | None) -> None:
        job = after or before
        assert job is not None  # noqa: S101
        self._notice(job.owner, False)


def _owner(body: Object) -> Place:
    metadata = body["metadata"]
    return metadata["namespace"], (metadata.get("labels") or {}).get(constants.LABEL_NAME, "")


def _read_others(served: tuple[str, ...], body: Object) -> BoundPod | None:
    held = views.bound_pod(body)
    return None if held is not None and held.ours and body["metadata"]["namespace"] in served else held


def _read_pod(body: Object) -> OwnPod | None:
    job = (body["metadata"]["namespace"], views.controller(body))
    return OwnPod(views.pod(body), job, _owner(body), views.bound_pod(body))


def _read_config_map(body: Object) -> tuple[Place, str] | None:
    if body["metadata"].get("deletionTimestamp"):
        return None
    return _owner(body), body["metadata"]["name"]


def _read_trenchcoat(body: Object) -> Tenant | None:
    try:
        trenchcoat = Trenchcoat.from_object(body)
    except InvalidTrenchcoatError:
        return None  # told in its own status; it wants nothing
    return Tenant.of(trenchcoat)


def _read_job(kind: ChildKind, body: Object) -> Job | None:
    child = views.child(kind, body, "", ())
    if child is None:
        return None
    metadata = body["metadata"]
    place = (metadata["namespace"], child.name)
    templates = views.templates(kind, body) if child.active else []
    return Job(
        child=child,
        place=place,
        uid=str(metadata["uid"]),
        owner=_owner(body),
        owners=frozenset(str(item.get("uid")) for item in metadata.get("ownerReferences") or []),
        queued=constants.LABEL_KUEUE_QUEUE in (metadata.get("labels") or {}),
        over=views.finished_pods(kind, body),
        templates=tuple((count, _demands(count, spec, place)) for count, spec in templates),
    )


def _demands(pods: int, spec: Object, job: Place) -> tuple[Demand, ...]:
    return tuple(
        Demand(resource, pods, gpus, views.placement(spec), "/".join(job))
        for resource, gpus in views.extended_requests(spec).items()
        if gpus
    )
