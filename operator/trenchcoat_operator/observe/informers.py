"""Everything in the cluster that is followed: Trenchcoats and what they own, nodes, and who holds GPUs."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import NotFoundError
from trenchcoat_operator.kubernetes.informer import Informer, Place
from trenchcoat_operator.kubernetes.kinds import Kind, Selection
from trenchcoat_operator.model import devices, views
from trenchcoat_operator.model.capacity import BoundPod, Node
from trenchcoat_operator.model.devices import Claim, DeviceClass, Slice
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import BESIDE, Action, Apply, Delete
from trenchcoat_operator.observe import kept
from trenchcoat_operator.observe.kept import Job, OwnPod, Tenant
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Notice = Callable[[Place, bool], None]

_MANAGED = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"
_NOT_MANAGED = f"{constants.LABEL_MANAGED_BY}!={constants.MANAGED_BY}"
_UNFINISHED = "status.phase!=Succeeded,status.phase!=Failed"
_SEEN_SECONDS = 3.0


class Informers:
    """Follows the cluster, so that a look asks the API server nothing."""

    def __init__(self, cluster: Cluster, settings: Settings, notice: Notice) -> None:
        """`notice` is called with a Trenchcoat whose children changed, and whether a pod of it ended."""
        self._places = settings.namespaces or ("",)
        self._notice = notice
        self._counts_gpus = settings.count_gpus
        self._nodes = Informer(cluster, Selection(kinds.NODES), views.node)
        # Who serves some namespaces sees others' Trenchcoats' pods here, too.
        others = Selection(kinds.PODS, labels="" if settings.namespaces else _NOT_MANAGED, fields=_UNFINISHED)
        self._others = Informer(cluster, others, partial(kept.read_others, settings.namespaces))
        self._classes = Informer(cluster, Selection(kinds.DEVICE_CLASSES), devices.device_class)
        self._slices = Informer(cluster, Selection(kinds.RESOURCE_SLICES), devices.resource_slice)
        self._claims = Informer(cluster, Selection(kinds.RESOURCE_CLAIMS), devices.claim)
        self._tenants = self._each(
            kinds.TRENCHCOATS, lambda chosen: Informer(cluster, chosen, kept.read_trenchcoat), labels=""
        )
        self._beside = {
            kind: self._each(
                kinds.KINDS[kind],
                lambda chosen: Informer(cluster, chosen, kept.read_named, index=lambda item: item[0]),
            )
            for kind in BESIDE
        }
        self._pods = self._each(
            kinds.PODS,
            lambda chosen: Informer(
                cluster, chosen, kept.read_pod, index=lambda pod: pod.owner, notice=self._pod_changed
            ),
        )

        def jobs(kind: ChildKind) -> Callable[[Selection], Informer[Job]]:
            read = partial(kept.read_job, kind)
            return lambda chosen: Informer(
                cluster, chosen, read, index=lambda job: job.owner, notice=self._job_changed
            )

        self._jobs = {kind: self._each(kinds.KINDS[kind], jobs(kind)) for kind in ChildKind}
        self._written: dict[str, dict[str, Informer[Any]]] = {
            **self._beside,
            **{kind.value: jobs for kind, jobs in self._jobs.items()},
        }

    def _each(
        self, kind: Kind, follow: Callable[[Selection], Informer[T]], labels: str = _MANAGED
    ) -> dict[str, Informer[T]]:
        """An informer for each namespace that is served, or one for all."""
        return {place: follow(Selection(kind, place, labels)) for place in self._places}

    def start(self) -> None:
        """Follow everything from now on, not only what was looked at once."""
        for informer in self._all():
            informer.start()

    def hurry(self) -> None:
        """Try again at once what waits to be tried again."""
        for informer in self._all():
            informer.hurry()

    def stop(self) -> None:
        """Follow nothing any longer."""
        for informer in (*self._all(), self._slices, self._claims):
            informer.stop()

    def _all(self) -> Iterator[Informer[Any]]:
        if self._counts_gpus:
            yield self._nodes
            yield self._others
            yield self._classes
        for place in self._places:
            yield self._tenants[place]
            for beside in self._beside.values():
                yield beside[place]
            yield self._pods[place]
            for jobs in self._jobs.values():
                yield jobs[place]

    # All of a kind. Each of these raises ApiError where the API server cannot be read.

    def nodes(self) -> list[Node]:
        """All nodes."""
        return self._nodes.items()

    def devices(self) -> tuple[list[DeviceClass], list[Slice], list[Claim]]:
        """Classes of devices that stand for extended resources, what there is of devices, what is claimed.

        The latter two are followed only once there is such a class.
        """
        try:
            classes = self._classes.items()
            return (classes, self._slices.items(), self._claims.items()) if classes else ([], [], [])
        except NotFoundError:
            return [], [], []  # an older Kubernetes

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

    def beside(self, kind: str, owner: Place) -> frozenset[str]:
        """Names of a Trenchcoat's ConfigMaps, or of its Services."""
        return frozenset(name for _, name in self._serving(self._beside[kind], owner[0]).at(owner))

    def _serving(self, informers: dict[str, Informer[T]], namespace: str) -> Informer[T]:
        return informers.get(namespace) or informers[""]

    def see(self, namespace: str, actions: Iterable[Action]) -> None:
        """Wait until what was just made, or taken away at once, is seen to be.

        A Job that is not seen would have its GPUs given away twice; a ConfigMap or Service that is still seen
        would not be made again.
        """
        made: dict[str, set[Place]] = {}
        gone: dict[str, set[Place]] = {}
        for action in actions:
            if isinstance(action, Apply):
                made.setdefault(action.manifest["kind"], set()).add((namespace, action.name))
            elif isinstance(action, Delete) and action.kind in BESIDE:
                gone.setdefault(action.kind, set()).add((namespace, action.name))
        for kind in made.keys() | gone.keys():
            informer = self._serving(self._written[kind], namespace)
            if not informer.wait_for(made.get(kind, ()), _SEEN_SECONDS, deleted=gone.get(kind, ())):
                log.warning("changes of %ss in %s are not seen yet: they are listed anew", kind, namespace)

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
