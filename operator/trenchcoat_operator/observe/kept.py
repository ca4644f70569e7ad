"""What is kept of each object that is followed: read once, when it changes."""

from dataclasses import dataclass
from typing import Self

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat

from trenchcoat_operator.gpus.contenders import Wish, wishes
from trenchcoat_operator.kubernetes.informer import Place
from trenchcoat_operator.kubernetes.kinds import Object
from trenchcoat_operator.model import views
from trenchcoat_operator.model.capacity import BoundPod, Demand
from trenchcoat_operator.model.observed import Child, ChildKind, Pod

_OVER = ("Succeeded", "Failed")


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


def _owner(body: Object) -> Place:
    metadata = body["metadata"]
    return metadata["namespace"], (metadata.get("labels") or {}).get(constants.LABEL_NAME, "")


def read_others(served: tuple[str, ...], body: Object) -> BoundPod | None:
    """What a pod holds that is not of the Trenchcoats of the namespaces served."""
    held = views.bound_pod(body)
    return None if held is not None and held.ours and body["metadata"]["namespace"] in served else held


def read_pod(body: Object) -> OwnPod | None:
    """A pod of a child."""
    job = (body["metadata"]["namespace"], views.controller(body))
    return OwnPod(views.pod(body), job, _owner(body), views.bound_pod(body))


def read_named(body: Object) -> tuple[Place, str] | None:
    """Its Trenchcoat and its name, unless it is being deleted."""
    if body["metadata"].get("deletionTimestamp"):
        return None
    return _owner(body), body["metadata"]["name"]


def read_trenchcoat(body: Object) -> Tenant | None:
    """A Trenchcoat; None where it cannot be read."""
    try:
        trenchcoat = Trenchcoat.from_object(body)
    except InvalidTrenchcoatError:
        return None  # told in its own status; it wants nothing
    return Tenant.of(trenchcoat)


def read_job(kind: ChildKind, body: Object) -> Job | None:
    """A Job or PyTorchJob; None when it carries no stage."""
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
