"""One look at everything that a decision about a Trenchcoat rests on, live from the cluster and the store."""

import base64
import binascii
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Manifest, Progress
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.stages import Stage

from trenchcoat_operator.kubernetes import client
from trenchcoat_operator.kubernetes.client import Cluster, ForbiddenError, NotFoundError
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model import views, workloads
from trenchcoat_operator.model.capacity import Capacity, Contender, Demand
from trenchcoat_operator.model.observed import Child, ChildKind, Observed, Pod, Problem, Queued, StoreView
from trenchcoat_operator.reconcile import graph
from trenchcoat_operator.reconcile.release import contender, waiting_jobs
from trenchcoat_operator.storage.s3 import Credentials, ManifestCache, Readers, StoreError, StoreReader

log = logging.getLogger(__name__)

Object = dict[str, Any]
_KINDS = {ChildKind.JOB: client.JOBS, ChildKind.PYTORCH_JOB: client.PYTORCH_JOBS}
_UIDS_PER_LIST = 100  # they stand in the URL
_MANAGED = f"{constants.LABEL_MANAGED_BY}={constants.MANAGED_BY}"


class SecretError(StoreError):
    """A Secret that cannot be used."""


class Observer:
    """Looks; keeps nothing but what never changes."""

    def __init__(self, cluster: Cluster, namespaces: tuple[str, ...], metrics: Metrics) -> None:
        self._cluster = cluster
        self._namespaces = namespaces or ("",)
        self._manifests = ManifestCache()
        self._readers = Readers(metrics.read)

    def look(self, trenchcoat: Trenchcoat, *, with_capacity: bool) -> Observed:
        """Everything about one Trenchcoat.

        The cluster is read before the store: a Job that is seen to have ended well wrote its manifest before.

        Raises:
            ApiError: the API server could not be read.
        """
        children, training_operator, kueue = self._children(trenchcoat)
        config_maps = self._config_maps(trenchcoat)
        capacity = self._capacity(trenchcoat) if with_capacity else None
        return Observed(
            children=children,
            config_maps=config_maps,
            store=self._store(trenchcoat, children),
            capacity=capacity,
            training_operator=training_operator,
            kueue=kueue,
        )

    # The cluster

    def _children(self, trenchcoat: Trenchcoat) -> tuple[tuple[Child, ...], bool, bool]:
        """The children, and whether the cluster knows PyTorchJobs and Kueue's Workloads."""
        namespace, uid = trenchcoat.metadata.namespace, trenchcoat.metadata.uid
        mine = f"{_MANAGED},{constants.LABEL_NAME}={trenchcoat.metadata.name}"
        bodies: list[tuple[ChildKind, Object]] = []
        training_operator = True
        for kind, place in _KINDS.items():
            try:
                bodies += [(kind, body) for body in self._cluster.list(place, namespace, labels=mine)]
            except NotFoundError:
                training_operator = False
        pods: dict[str, list[Pod]] = {}
        for body in self._cluster.list(client.PODS, namespace, labels=mine):
            pods.setdefault(views.controller(body), []).append(views.pod(body))
        queued, kueue = self._queued(namespace, bodies)
        found = (
            views.child(
                kind,
                body,
                uid,
                pods.get(body["metadata"]["name"], []),
                queued.get(body["metadata"]["uid"]),
            )
            for kind, body in bodies
        )
        return tuple(child for child in found if child is not None), training_operator, kueue

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
        mine = f"{_MANAGED},{constants.LABEL_NAME}={trenchcoat.metadata.name}"
        return frozenset(
            body["metadata"]["name"]
            for body in self._cluster.list(client.CONFIG_MAPS, trenchcoat.metadata.namespace, labels=mine)
        )

    def _capacity(self, trenchcoat: Trenchcoat) -> Capacity:
        try:
            nodes = [views.node(body) for body in self._cluster.list(client.NODES, cached=True)]
            pods = list(
                self._cluster.list(client.PODS, fields="status.phase!=Succeeded,status.phase!=Failed")
            )
        except ForbiddenError as error:
            log.warning("the cluster's GPUs are not counted, the scheduler alone decides: %s", error)
            return Capacity(known=False)
        held = [bound for body in pods if (bound := views.bound_pod(body)) is not None]
        on_nodes = Counter(
            (body["metadata"]["namespace"], views.controller(body))
            for body in pods
            if (body.get("spec") or {}).get("nodeName")
        )
        promised: list[Demand] = []
        running: Counter[tuple[str, str, str]] = Counter()
        for kind, body in self._all_children():
            place = (body["metadata"]["namespace"], body["metadata"]["name"])
            labels = body["metadata"]["labels"]
            running[(place[0], labels.get(constants.LABEL_NAME, ""), labels[constants.LABEL_STAGE])] += 1
            promised += _promised(kind, body, on_nodes[place])
        return Capacity(
            nodes=tuple(node for node in nodes if node is not None),
            bound=tuple(held),
            promised=tuple(promised),
            contenders=tuple(self._contenders(trenchcoat, running)),
        )

    def _everywhere(self, place: client.Kind, labels: str = "") -> Iterator[Object]:
        """Objects in all namespaces that are served."""
        for namespace in self._namespaces:
            yield from self._cluster.list(place, namespace, labels=labels)

    def _all_children(self) -> list[tuple[ChildKind, Object]]:
        """Children of all Trenchcoats that are not over."""
        result = []
        for kind, place in _KINDS.items():
            try:
                for body in self._everywhere(place, _MANAGED):
                    seen = views.child(kind, body, "", ())
                    if seen is not None and seen.active and not seen.suspended:
                        result.append((kind, body))
            except NotFoundError:
                continue
        return result

    def _contenders(self, asking: Trenchcoat, running: Counter[tuple[str, str, str]]) -> list[Contender]:
        result = []
        for body in self._everywhere(client.TRENCHCOATS):
            try:
                other = Trenchcoat.from_object(body)
            except InvalidTrenchcoatError:
                continue  # told in its own status; it cannot wait for a GPU
            if other.metadata.uid == asking.metadata.uid:
                continue
            place = (other.metadata.namespace, other.metadata.name)
            waits = waiting_jobs(other, running[(*place, Stage.CRIA.value)])
            if waits is None:
                continue
            stage, waiting = waits
            jobs = sum(running[(*place, each.value)] for each in (Stage.CRIA, Stage.EVALUATE))
            result.append(contender(other, jobs, stage, waiting))
        return result

    # The store

    def _store(self, trenchcoat: Trenchcoat, children: tuple[Child, ...]) -> StoreView:
        manifests: dict[str, Manifest] = {}
        progress: dict[str, Progress] = {}
        try:
            reader = self._readers.open(trenchcoat.spec.store, self._credentials(trenchcoat))
            self._check_token(trenchcoat)
            self._read_manifests(trenchcoat, reader, manifests)
            at_work = {child.key for child in children if child.owned and (child.active or child.terminating)}
            for work in graph.build(trenchcoat.spec, manifests).works:
                if work.key in at_work and work.key not in manifests:
                    report = reader.progress(work.artifact)
                    if report is not None:
                        progress[work.key] = report
        except StoreError as error:
            return StoreView(Problem(error.reason, error.message), manifests, progress)
        return StoreView(None, manifests, progress)

    def _read_manifests(
        self, trenchcoat: Trenchcoat, reader: StoreReader, manifests: dict[str, Manifest]
    ) -> None:
        """Read what is complete, inputs before what needs them: nothing is complete whose inputs are not."""
        asked: set[str] = set()
        while True:
            ready = [
                work.artifact
                for work in graph.build(trenchcoat.spec, manifests).works
                if work.key not in asked and all(item.key in manifests for item in work.inputs)
            ]
            if not ready:
                return
            for artifact in ready:
                asked.add(artifact.key)
                manifest = self._manifests.get(reader, artifact)
                if manifest is None:
                    manifest = reader.manifest(artifact)
                    if manifest is None:
                        continue
                    self._manifests.put(reader, artifact, manifest)
                manifests[artifact.key] = manifest

    def _credentials(self, trenchcoat: Trenchcoat) -> Credentials:
        name = trenchcoat.spec.store.credentials_secret_ref.name
        data = self._secret(trenchcoat, name, "spec.store.credentialsSecretRef")
        values = []
        for key in (constants.SECRET_ACCESS_KEY_FIELD, constants.SECRET_SECRET_KEY_FIELD):
            values.append(_secret_value(data, name, key, "spec.store.credentialsSecretRef"))
        return Credentials(*values)

    def _check_token(self, trenchcoat: Trenchcoat) -> None:
        spec = trenchcoat.spec
        references = (("model", spec.model.token_secret_ref), ("data", spec.data.token_secret_ref))
        for part, reference in references:
            if reference is not None:
                field = f"spec.{part}.tokenSecretRef"
                data = self._secret(trenchcoat, reference.name, field)
                _secret_value(data, reference.name, reference.key, field)

    def _secret(self, trenchcoat: Trenchcoat, name: str, field: str) -> dict[str, str]:
        namespace = trenchcoat.metadata.namespace
        try:
            body = self._cluster.get(client.SECRETS, namespace, name)
        except NotFoundError as error:
            raise SecretError(
                "SecretNotFound",
                f"{field}: namespace {namespace!r} has no Secret {name!r}: create it, or name another",
            ) from error
        except ForbiddenError as error:
            raise SecretError(
                "SecretForbidden",
                f"{field}: the operator may not read Secret {name!r} in namespace {namespace!r}: "
                "check the chart's watchNamespaces and rbac.secretNames",
            ) from error
        data: dict[str, str] = body.get("data") or {}
        return data


def _secret_value(data: dict[str, str], name: str, key: str, field: str) -> str:
    encoded = data.get(key)
    if not encoded:
        raise SecretError(
            "SecretKeyNotFound", f"{field}: Secret {name!r} has no key {key!r}, or it is empty: add it"
        )
    try:
        return base64.b64decode(encoded).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise SecretError(
            "SecretKeyNotFound", f"{field}: key {key!r} of Secret {name!r} is no text: set it anew"
        ) from error


def _promised(kind: ChildKind, body: Object, bound: int) -> list[Demand]:
    """What a child's pods that are not bound yet will take."""
    templates = views.templates(kind, body)
    missing = sum(count for count, _ in templates) - bound - views.finished_pods(kind, body)
    result = []
    for count, spec in templates:
        pods = max(0, min(count, missing))
        missing -= pods
        result += [
            Demand(resource, pods, gpus, spec.get("nodeSelector") or {}, views.tolerations(spec))
            for resource, gpus in views.extended_requests(spec).items()
            if pods and gpus
        ]
    return result
