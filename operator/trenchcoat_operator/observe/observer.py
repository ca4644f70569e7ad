"""One look at everything that a decision about a Trenchcoat rests on, live from the cluster and the store."""

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage

from trenchcoat_operator.gpus.places import UNSCHEDULABLE_GRACE
from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ForbiddenError, NotFoundError
from trenchcoat_operator.kubernetes.informer import Place
from trenchcoat_operator.kubernetes.kinds import Selection
from trenchcoat_operator.model import workloads
from trenchcoat_operator.model.observed import Child, ChildKind, Observed, Pod, Queued
from trenchcoat_operator.model.plan import Action, Apply
from trenchcoat_operator.observe.informers import Informers
from trenchcoat_operator.observe.kept import Job, place_of
from trenchcoat_operator.observe.said import Said
from trenchcoat_operator.observe.store import StoreLook
from trenchcoat_operator.observe.surroundings import Surroundings
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.works import graph

log = logging.getLogger(__name__)

_POD_SECONDS = timedelta(seconds=3)
"""A controller makes a Job's pods within this time, if it is let."""


class Observer:
    """Looks; keeps nothing but what hardly ever changes."""

    def __init__(self, cluster: Cluster, informers: Informers, settings: Settings, stores: Stores) -> None:
        self._cluster = cluster
        self._informers = informers
        self._stores = stores
        self._surroundings = Surroundings(informers, settings)
        self._said = Said(cluster)

    def look(self, trenchcoat: Trenchcoat) -> Observed:
        """Everything about one Trenchcoat but what it shares with others.

        The cluster is read before the store: a Job that is seen to have ended well wrote its manifest before.
        What woke us is in it. Should what we did last not be, the same is asked for once more, under the same
        name, to no effect.

        Raises:
            ApiError: the API server could not be read.
        """
        children, training_operator, kueue = self._children(trenchcoat)
        return Observed(
            children=children,
            config_maps=self._informers.beside("ConfigMap", place_of(trenchcoat)),
            services=self._informers.beside("Service", place_of(trenchcoat)),
            store=StoreLook(self._stores, trenchcoat, children).read(),
            training_operator=training_operator,
            kueue=kueue,
        )

    def look_around(
        self, trenchcoat: Trenchcoat, observed: Observed, there: Collection[str] = ()
    ) -> Observed:
        """What was seen of one Trenchcoat, with what the others hold and make, and the store as it is now.

        Args:
            trenchcoat: The Trenchcoat.
            observed: What was seen of it.
            there: Content keys of artifacts that are known to be there.

        Raises:
            ApiError: the API server could not be read.
        """
        # Before the store: an artifact that nobody is seen to make any more is there.
        capacity, peers = self._surroundings.look(trenchcoat, observed.store.told)
        store = StoreLook(self._stores, trenchcoat, observed.children, observed.store, there).read()
        return replace(observed, store=store, capacity=capacity, peers=peers)

    def made(self, trenchcoat: Trenchcoat, observed: Observed, actions: tuple[Action, ...]) -> frozenset[str]:
        """Content keys of those artifacts that Jobs are to be made for, and that have come to be there since.

        Of hidden states it matters whether the Crias that would read them have.

        Raises:
            StoreError: the store cannot be used.
        """
        wanted = {
            action.manifest["metadata"]["annotations"][constants.ANNOTATION_KEY]
            for action in actions
            if isinstance(action, Apply) and action.child_kind is not None
        }
        if not wanted:
            return frozenset()  # most looks make nothing: they need not open the store for it
        works = graph.possible(trenchcoat.spec, observed.store.told)
        if any(work.stage is Stage.COLLECT and work.key in wanted for work in works):
            crias = {work.key for work in works if work.stage is Stage.CRIA}
            wanted |= crias.difference(observed.store.manifests)
        reader = self._stores.open(trenchcoat)
        return frozenset(
            work.key for work in works if work.key in wanted and reader.is_complete(work.artifact)
        )

    # The cluster

    def _children(self, trenchcoat: Trenchcoat) -> tuple[tuple[Child, ...], bool, bool]:
        """The children, and whether the cluster knows PyTorchJobs and Kueue's Workloads."""
        namespace, uid = trenchcoat.metadata.namespace, trenchcoat.metadata.uid
        jobs: list[Job] = []
        training_operator = True
        for kind in ChildKind:
            try:
                jobs += self._informers.jobs_of(kind, place_of(trenchcoat))
            except NotFoundError:
                training_operator = False
        pods: defaultdict[Place, list[Pod]] = defaultdict(list)
        for own in self._informers.pods_of(place_of(trenchcoat)):
            pods[own.job].append(self._heard_of(namespace, own.pod))
        queued, kueue = self._queued(namespace, [job for job in jobs if _is_held(job, pods[job.place])])
        children = tuple(
            replace(
                job.child,
                owned=uid in job.owners,
                queued=queued.get(job.uid),
                pods=tuple(sorted(pods[job.place], key=lambda pod: pod.name)),
                refusal=self._refusal(job, pods[job.place]),
                room_by=self._room_by(job, pods[job.place]),
            )
            for job in jobs
        )
        return children, training_operator, kueue

    def _heard_of(self, namespace: str, pod: Pod) -> Pod:
        """A pod with what an autoscaler said of it, while it waits for a node."""
        if not pod.waits_for_node or pod.gone_by is not None:
            return pod
        return replace(pod, autoscaler=self._said.by_autoscalers(namespace, pod.name))

    def _refusal(self, job: Job, pods: list[Pod]) -> str:
        """What keeps a Job from having its pods, once its controller has had a moment to make them."""
        child = job.child
        if not child.active or child.suspended or job.over or len(pods) >= job.pods:
            return ""
        now = datetime.now(UTC)
        if child.created_at is None or now - child.created_at < _POD_SECONDS:
            return ""
        return self._said.refusal(job, now)

    def _room_by(self, job: Job, pods: list[Pod]) -> datetime | None:
        waiting = [
            pod.unschedulable_since
            for pod in pods
            if pod.waits_for_node and pod.unschedulable_since is not None
        ]
        # Kueue gives quota away, and the scheduler counts GPUs, at different ends of a pod's grace period.
        return self._surroundings.room_by(job, max(waiting) + UNSCHEDULABLE_GRACE) if waiting else None

    def _queued(self, namespace: str, jobs: list[Job]) -> tuple[dict[str, Queued], bool]:
        """What Kueue says of Jobs, by UID, and whether there is a Kueue."""
        if not jobs:
            return {}, True
        try:  # those of others, too: they may stand before
            bodies = tuple(self._cluster.list(Selection(kinds.WORKLOADS, namespace), cached=True))
        except NotFoundError:
            return {}, False
        except ForbiddenError as error:
            log.warning("the status does not say why Kueue keeps Jobs waiting: %s", error)
            return {}, True
        uids, places = {job.uid for job in jobs}, workloads.places(bodies)
        theirs = {uid: body for body in bodies if (uid := workloads.job_uid(body)) in uids}
        return {
            uid: replace(workloads.queued(body), place=places.get(str(body["metadata"]["uid"]), ""))
            for uid, body in theirs.items()
        }, True


def _is_held(job: Job, pods: list[Pod]) -> bool:
    """Whether Kueue may keep a Job from running, or be taking it back, which its pods show first."""
    if not job.queued or not job.child.active:
        return False
    return job.child.suspended or not pods or any(pod.gone_by is not None for pod in pods)
