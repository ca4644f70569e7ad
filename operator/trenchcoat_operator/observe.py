"""One look at everything that a decision about a Trenchcoat rests on, live from the cluster and the store."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Deletion, Manifest, Progress
from trenchcoat_api.resource import Trenchcoat

from trenchcoat_operator.kubernetes import client
from trenchcoat_operator.kubernetes.client import Cluster, ForbiddenError, NotFoundError
from trenchcoat_operator.model import views, workloads
from trenchcoat_operator.model.observed import Child, ChildKind, Observed, Pod, Problem, Queued, StoreView
from trenchcoat_operator.reconcile import graph, retention, superseded
from trenchcoat_operator.reconcile.plan import Action, Apply
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.s3 import StoreError, StoreReader
from trenchcoat_operator.surroundings import KINDS, MANAGED, Surroundings

log = logging.getLogger(__name__)

Object = dict[str, Any]
_UIDS_PER_LIST = 100  # they stand in the URL

_SILENCE = timedelta(seconds=30)
"""A stage that has reported nothing for so long may have ended, whatever its Job says."""


class Observer:
    """Looks; keeps nothing but what hardly ever changes."""

    def __init__(self, cluster: Cluster, settings: Settings, stores: Stores) -> None:
        self._cluster = cluster
        self._stores = stores
        self._surroundings = Surroundings(cluster, settings)

    def look(self, trenchcoat: Trenchcoat) -> Observed:
        """Everything about one Trenchcoat but what it shares with others.

        The cluster is read before the store: a Job that is seen to have ended well wrote its manifest before.
        The API server answers from its cache, from which it tells of changes, too: whatever woke us is in it.
        Should it lack what we did last, the same is asked for once more, under the same name, to no effect.

        Raises:
            ApiError: the API server could not be read.
        """
        children, training_operator, kueue = self._children(trenchcoat)
        config_maps = self._config_maps(trenchcoat)
        return Observed(
            children=children,
            config_maps=config_maps,
            store=self._store(trenchcoat, children),
            training_operator=training_operator,
            kueue=kueue,
        )

    def look_around(self, trenchcoat: Trenchcoat, observed: Observed) -> Observed:
        """What was seen of one Trenchcoat, with what the others hold and make, and the store as it is now.

        Raises:
            ApiError: the API server could not be read.
        """
        # Before the store: an artifact that nobody is seen to make any more is there.
        capacity, peers = self._surroundings.look(trenchcoat, observed.store.told)
        store = self._store(trenchcoat, observed.children)
        return replace(observed, store=store, capacity=capacity, peers=peers)

    def is_made(self, trenchcoat: Trenchcoat, observed: Observed, actions: tuple[Action, ...]) -> bool:
        """Whether any artifact that Jobs are to be made for has come to be there since it was asked for.

        Raises:
            StoreError: the store cannot be used.
        """
        wanted = {
            action.manifest["metadata"]["annotations"][constants.ANNOTATION_KEY]
            for action in actions
            if isinstance(action, Apply) and action.child_kind is not None
        }
        if not wanted:
            return False  # most looks make nothing: they need not open the store for it
        reader = self._stores.open(trenchcoat)
        found = [
            work.artifact
            for work in graph.build(trenchcoat.spec, observed.store.told).works
            if work.key in wanted and reader.is_complete(work.artifact)
        ]
        for artifact in found:
            self._stores.manifests.forget_absent(reader, artifact)
        return bool(found)

    def see(self, trenchcoat: Trenchcoat, actions: tuple[Action, ...]) -> None:
        """Make sure that what was just done is part of the next look at the surroundings."""
        self._surroundings.see(trenchcoat.metadata.namespace, actions)

    def stop(self) -> None:
        """Look at nothing any longer."""
        self._surroundings.stop()

    # The cluster

    def _children(self, trenchcoat: Trenchcoat) -> tuple[tuple[Child, ...], bool, bool]:
        """The children, and whether the cluster knows PyTorchJobs and Kueue's Workloads."""
        namespace, uid = trenchcoat.metadata.namespace, trenchcoat.metadata.uid
        mine = f"{MANAGED},{constants.LABEL_NAME}={trenchcoat.metadata.name}"
        bodies: list[tuple[ChildKind, Object]] = []
        training_operator = True
        for kind, place in KINDS.items():
            try:
                found = self._cluster.list(place, namespace, labels=mine, cached=True)
                bodies += [(kind, body) for body in found]
            except NotFoundError:
                training_operator = False
        pods: dict[str, list[Pod]] = {}
        for body in self._cluster.list(client.PODS, namespace, labels=mine, cached=True):
            pods.setdefault(views.controller(body), []).append(views.pod(body))
        queued, kueue = self._queued(namespace, bodies)
        children = (
            views.child(
                kind,
                body,
                uid,
                pods.get(body["metadata"]["name"], []),
                queued.get(body["metadata"]["uid"]),
            )
            for kind, body in bodies
        )
        return tuple(child for child in children if child is not None), training_operator, kueue

    def _queued(
        self, namespace: str, bodies: list[tuple[ChildKind, Object]]
    ) -> tuple[dict[str, Queued], bool]:
        """What Kueue says of those that it keeps suspended, by UID, and whether there is a Kueue."""
        waiting = [
            str(body["metadata"]["uid"])
            for kind, body in bodies
            if views.suspended(kind, body) and constants.LABEL_KUEUE_QUEUE in body["metadata"]["labels"]
        ]
        result: dict[str, Queued] = {}
        for first in range(0, len(waiting), _UIDS_PER_LIST):
            uids = ",".join(waiting[first : first + _UIDS_PER_LIST])
            try:
                labels = f"{constants.LABEL_KUEUE_JOB_UID} in ({uids})"
                for body in self._cluster.list(client.WORKLOADS, namespace, labels=labels, cached=True):
                    result[workloads.job_uid(body)] = workloads.queued(body)
            except NotFoundError:
                return {}, False
            except ForbiddenError as error:
                log.warning("the status does not say why Kueue keeps Jobs waiting: %s", error)
                return {}, True
        return result, True

    def _config_maps(self, trenchcoat: Trenchcoat) -> frozenset[str]:
        metadata = trenchcoat.metadata
        mine = f"{MANAGED},{constants.LABEL_NAME}={metadata.name}"
        found = self._cluster.list(client.CONFIG_MAPS, metadata.namespace, labels=mine, cached=True)
        return frozenset(body["metadata"]["name"] for body in found)

    # The store

    def _store(self, trenchcoat: Trenchcoat, children: tuple[Child, ...]) -> StoreView:
        manifests: dict[str, Manifest] = {}
        deletions: dict[str, Deletion] = {}
        progress: dict[str, Progress] = {}
        remains: set[str] = set()
        try:
            reader = self._stores.open(trenchcoat)
            if not trenchcoat.metadata.deletion_timestamp:
                self._stores.check_secrets(trenchcoat)
            at_work = {child.key for child in children if child.owned and (child.active or child.terminating)}
            tried = {child.key for child in children}
            self._read_manifests(trenchcoat, reader, at_work, tried, manifests, deletions, progress)
            if trenchcoat.metadata.deletion_timestamp:
                told = StoreView(manifests=manifests, deletions=deletions).told
                built = graph.build(trenchcoat.spec, told)
                for work in (*built.works, *superseded.works(trenchcoat, built)):
                    if reader.holds_any(work.artifact):
                        remains.add(work.key)
        except StoreError as error:
            return StoreView(Problem(error.reason, error.message), manifests, progress, deletions)
        return StoreView(None, manifests, progress, deletions, frozenset(remains))

    def _read_manifests(
        self,
        trenchcoat: Trenchcoat,
        reader: StoreReader,
        at_work: set[str],
        tried: set[str],
        manifests: dict[str, Manifest],
        deletions: dict[str, Deletion],
        progress: dict[str, Progress],
    ) -> None:
        """Read what is complete, inputs before what needs them: nothing is whose inputs never were.

        Of what is being made the progress is read, and as long as that says that it goes on nothing else.
        What no Job was made for is not asked for at every look.
        """
        asked: set[str] = set()
        while True:
            told = StoreView(manifests=manifests, deletions=deletions).told
            ready = [
                work.artifact
                for work in graph.build(trenchcoat.spec, told).works
                if work.key not in asked and all(item.key in told for item in work.inputs)
            ]
            if not ready:
                break
            for artifact in ready:
                asked.add(artifact.key)
                if artifact.key not in tried and self._stores.manifests.is_absent(reader, artifact):
                    continue
                report = reader.progress(artifact) if artifact.key in at_work else None
                if report is not None:
                    progress[artifact.key] = report
                    if _goes_on(report):
                        continue
                manifest = self._stores.manifest(reader, artifact)
                if manifest is not None:
                    manifests[artifact.key] = manifest
                    progress.pop(artifact.key, None)
                elif artifact.key not in at_work:
                    deletion = reader.deletion(artifact)
                    if deletion is not None:
                        deletions[artifact.key] = deletion
                    else:
                        self._stores.manifests.put_absent(reader, artifact)
        self._read_superseded(trenchcoat, reader, manifests, deletions)

    def _read_superseded(
        self,
        trenchcoat: Trenchcoat,
        reader: StoreReader,
        manifests: dict[str, Manifest],
        deletions: dict[str, Deletion],
    ) -> None:
        """Read what may have to be deleted of former specs' artifacts."""
        built = graph.build(trenchcoat.spec, StoreView(manifests=manifests, deletions=deletions).told)
        for work in superseded.works(trenchcoat, built):
            if not trenchcoat.metadata.deletion_timestamp and work.stage not in retention.INTERMEDIATE:
                continue
            manifest = self._stores.manifest(reader, work.artifact)
            deletion = reader.deletion(work.artifact) if manifest is None else None
            if manifest is not None:
                manifests[work.key] = manifest
            if deletion is not None:
                deletions[work.key] = deletion


def _goes_on(report: Progress) -> bool:
    return report.fraction < 1 and datetime.now(UTC) - report.updated_at < _SILENCE
