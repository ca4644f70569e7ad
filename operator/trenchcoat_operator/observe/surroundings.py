"""One look at what is around a Trenchcoat: the GPUs of the cluster, and the other Trenchcoats."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from trenchcoat_api.artifacts import Manifest
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage

from trenchcoat_operator.gpus import devices, places
from trenchcoat_operator.gpus.contenders import waiting
from trenchcoat_operator.kubernetes.errors import ForbiddenError
from trenchcoat_operator.kubernetes.informer import Place
from trenchcoat_operator.model.capacity import BoundPod, Capacity, Contender, Demand, Node
from trenchcoat_operator.model.observed import Peers
from trenchcoat_operator.observe.informers import Informers
from trenchcoat_operator.observe.kept import Job, OwnPod, Tenant
from trenchcoat_operator.observe.peers import peers
from trenchcoat_operator.settings import Settings

log = logging.getLogger(__name__)


class Surroundings:
    """Looks at all Trenchcoats and all nodes."""

    def __init__(self, informers: Informers, settings: Settings) -> None:
        self._informers = informers
        self._count_gpus = settings.count_gpus
        self._told_of_devices = False

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
        return self._capacity(jobs, others), peers(trenchcoat, told, jobs, others)

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
        with_devices, claimed = self._with_devices(nodes)
        return with_devices, (*others, *claimed, *(pod.held for pod in pods if pod.held is not None))

    def _with_devices(self, nodes: list[Node]) -> tuple[tuple[Node, ...], tuple[BoundPod, ...]]:
        try:
            return devices.counted(nodes, *self._informers.devices())
        except ForbiddenError as error:
            if not self._told_of_devices:
                log.warning("devices by dynamic resource allocation are not counted: %s", error)
            self._told_of_devices = True
            return tuple(nodes), ()

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
            contenders=tuple(contenders(others, held, gpus)),
        )


def _promised(job: Job, seen: int) -> Iterator[Demand]:
    """What a child's pods that are not bound yet will take; `seen` are bound or over."""
    missing = job.pods - seen
    for count, demands in job.templates:
        pods = max(0, min(count, missing))
        missing -= pods
        if pods:
            yield from (replace(demand, pods=pods) for demand in demands)


def contenders(
    others: list[Tenant], held: Mapping[Place, Mapping[Stage, int]], gpus: Mapping[Place, int]
) -> Iterator[Contender]:
    """The other Trenchcoats that wait for GPUs.

    Args:
        others: All others.
        held: Their Jobs that are made and not over, by stage.
        gpus: Their GPUs.
    """
    for other in others:
        found = waiting(other.wishes, held.get(other.place, {}), gpus.get(other.place, 0))
        if found is not None:
            yield found
