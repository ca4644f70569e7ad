"""Carrying out a plan: actions, then events, then the status, last and once."""

import hashlib
import logging
from datetime import UTC, datetime
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.history import HISTORY, history, report_prefix
from trenchcoat_api.resource import Metadata, Trenchcoat
from trenchcoat_api.status import TrenchcoatStatus

from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import AlreadyExistsError, ApiError, NotFoundError
from trenchcoat_operator.kubernetes.versions import Versions
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.model.plan import (
    BESIDE,
    Action,
    Apply,
    Condemn,
    Delete,
    Event,
    ForcePod,
    Forget,
    Keep,
    Plan,
    Purge,
    RecordOutcome,
    Restore,
    SetFinalizer,
    Stop,
    StoreAction,
)
from trenchcoat_operator.storage.access import Stores
from trenchcoat_operator.storage.deletions import Deletions
from trenchcoat_operator.storage.errors import StoreError

log = logging.getLogger(__name__)

COMPONENT = "trenchcoat-operator"
PURGE_SECONDS = 5.0
"""A look deletes objects for so long, then other Trenchcoats have their turn."""


class Applier:
    """Writes to the cluster, and deletes in the store."""

    def __init__(self, cluster: Cluster, stores: Stores, versions: Versions) -> None:
        self._cluster = cluster
        self._stores = stores
        self._versions = versions

    def act(self, trenchcoat: Trenchcoat, plan: Plan) -> None:
        """Carry out the actions.

        Raises:
            ApiError: one could not be carried out; those after it were not tried.
            StoreError: one in the store could not; of those after it the ones in the cluster were.
        """
        refused: StoreError | None = None
        for action in plan.actions:
            if not isinstance(action, StoreAction):
                self._act(trenchcoat, action)
            elif refused is None:
                try:
                    self._act_in_store(trenchcoat, action)
                except StoreError as error:
                    refused = error
        if refused is not None:
            raise refused

    def report(self, trenchcoat: Trenchcoat, plan: Plan) -> None:
        """Tell the events and write the status, if it changed.

        Raises:
            ApiError: the status could not be written.
        """
        self.tell(trenchcoat, plan)
        if plan.status != trenchcoat.status:
            self.write_status(trenchcoat.metadata, status_object(plan.status))
            self._leave_history(trenchcoat, plan.status)

    def tell(self, trenchcoat: Trenchcoat, plan: Plan) -> None:
        """Tell the events."""
        for event in plan.events:
            self._tell(trenchcoat, event)

    def write_status(self, metadata: Metadata, status: dict[str, Any]) -> None:
        """Write a status; that of a Trenchcoat which is gone need not be."""
        try:
            written = self._cluster.write_status(
                kinds.TRENCHCOATS, metadata.namespace, metadata.name, metadata.uid, status
            )
        except NotFoundError:
            return
        self._note(metadata, written)

    def _leave_history(self, trenchcoat: Trenchcoat, status: TrenchcoatStatus) -> None:
        """Leave waits and tries in the store, where they changed, for the report that stages write there."""
        told = history(status)
        if told.turns() == history(trenchcoat.status).turns():
            return
        metadata = trenchcoat.metadata
        path = report_prefix(trenchcoat.spec, metadata.name) + HISTORY
        data = told.model_dump_json(by_alias=True, exclude_defaults=True).encode()
        try:
            self._stores.open(trenchcoat).bucket.put(path, data)
        except (StoreError, ApiError) as error:  # the status has it, and the run goes on without
            log.warning("%s/%s: %s is not written: %s", metadata.namespace, metadata.name, path, error)

    def _note(self, metadata: Metadata, written: dict[str, Any]) -> None:
        key = Key(metadata.namespace, metadata.name)
        self._versions.note(key, str(written["metadata"]["resourceVersion"]))

    def _act(self, trenchcoat: Trenchcoat, action: Action) -> None:
        namespace = trenchcoat.metadata.namespace
        match action:
            case Apply(manifest=manifest):
                self._make(namespace, manifest)
            case Delete(kind=kind, name=name, reason=reason):
                log.info("deletes %s %s/%s: %s", kind, namespace, name, reason)
                self._cluster.delete(kinds.KINDS[kind], namespace, name, at_once=kind in BESIDE)
            case ForcePod(name=name, node=node):
                log.warning("gives up pod %s/%s: node %s does not answer", namespace, name, node)
                self._give_up(namespace, name)
            case RecordOutcome():
                log.info(
                    "%s %s/%s failed: %s: %s",
                    action.kind,
                    namespace,
                    action.name,
                    action.outcome,
                    action.message,
                )
                self._record(namespace, action)
            case Keep(kind=kind, name=name):
                log.info("takes the time to live of %s %s/%s away", kind, namespace, name)
                self._keep(kind, namespace, name)
            case Stop(kind=kind, name=name, reason=reason):
                log.info("stops %s %s/%s: %s", kind, namespace, name, reason)
                self._stop(kind, namespace, name)
            case SetFinalizer(present=present, reason=reason):
                log.info("%s finalizer: %s: %s", trenchcoat.metadata.name, present, reason)
                self.set_finalizer(trenchcoat.metadata, present=present)

    def _act_in_store(self, trenchcoat: Trenchcoat, action: StoreAction) -> None:
        deletions = Deletions(self._stores.open(trenchcoat))
        log.info("%s: %s %s", trenchcoat.metadata.name, type(action).__name__, action.artifact.prefix)
        match action:
            case Condemn(artifact=artifact, manifest=manifest):
                deletions.condemn(artifact, manifest)
                self._stores.manifests.drop(artifact)
            case Restore(artifact=artifact):
                deletions.restore(artifact)
            case Purge(artifact=artifact, manifest=manifest):
                deletions.purge(artifact, manifest, PURGE_SECONDS)
            case Forget(artifact=artifact):
                deletions.forget(artifact)

    def _stop(self, kind: str, namespace: str, name: str) -> None:
        """Let a deadline of one second end it: its controller then stops its pods and calls it failed.

        Deleting it would lose the verdict that stands on it.
        """
        past: dict[str, Any] = {"activeDeadlineSeconds": 1}
        change = {"spec": past if kind == "Job" else {"runPolicy": past}}
        try:
            self._cluster.merge(kinds.KINDS[kind], namespace, name, change)
        except NotFoundError:
            return

    def _keep(self, kind: str, namespace: str, name: str) -> None:
        """Have a child stay when it has ended: else a failure would be forgotten, and tried for ever."""
        none: dict[str, Any] = {"ttlSecondsAfterFinished": None}
        change: dict[str, Any] = {"metadata": {"annotations": {constants.ANNOTATION_KEPT: "true"}}}
        change["spec"] = none if kind == "Job" else {"runPolicy": none}
        try:
            self._cluster.merge(kinds.KINDS[kind], namespace, name, change)
        except NotFoundError:
            return

    def set_finalizer(self, metadata: Metadata, *, present: bool) -> None:
        """Have a Trenchcoat wait for its artifacts' deletion, or no longer.

        Raises:
            ConflictError: somebody else changed the Trenchcoat since it was read.
        """
        others = [name for name in metadata.finalizers if name != constants.FINALIZER]
        finalizers = [*others, constants.FINALIZER] if present else others
        change = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata.resource_version}}
        try:
            written = self._cluster.merge(kinds.TRENCHCOATS, metadata.namespace, metadata.name, change)
        except NotFoundError:
            return
        self._note(metadata, written)

    def _make(self, namespace: str, manifest: dict[str, Any]) -> None:
        """Make an object, and leave one of its name as it is.

        Names follow from what is asked for, so it is the same object, made by an operator that died before it
        could say so. Applying it once more would take `suspend` back from Kueue and stop what it had started.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            self._cluster.create(kinds.KINDS[kind], manifest)
        except AlreadyExistsError:
            log.info("%s %s/%s is there already", kind, namespace, name)
        else:
            log.info("made %s %s/%s", kind, namespace, name)

    def _give_up(self, namespace: str, name: str) -> None:
        """Do what Kubernetes does for the pods of a node that was removed.

        The Job's finalizer stays on a pod until it is over, and with podReplacementPolicy Failed no other
        pod is made before: somebody has to say that it is over, and its node cannot.
        """
        try:
            self._cluster.fail_pod(namespace, name, "NodeLost", "its node does not answer")
        except NotFoundError:
            return
        self._cluster.delete(kinds.PODS, namespace, name, at_once=True)

    def _record(self, namespace: str, verdict: RecordOutcome) -> None:
        annotations = {
            constants.ANNOTATION_OUTCOME: verdict.outcome,
            constants.ANNOTATION_OUTCOME_MESSAGE: verdict.message,
        }
        if verdict.saved is not None:
            annotations[constants.ANNOTATION_SAVED] = f"{verdict.saved:.6f}"
        change = {"metadata": {"annotations": annotations}}
        try:
            self._cluster.merge(kinds.KINDS[verdict.kind], namespace, verdict.name, change)
        except NotFoundError:
            return  # deleted meanwhile, by somebody who wants it tried again

    def _tell(self, trenchcoat: Trenchcoat, event: Event) -> None:
        """Make the event; told twice it is made once, for its name follows from what it tells."""
        try:
            self._cluster.create(kinds.EVENTS, event_object(trenchcoat, event, datetime.now(UTC)))
        except AlreadyExistsError:
            return
        except ApiError as error:
            log.warning("an event could not be told: %s", error)  # the status says the same


def status_object(status: TrenchcoatStatus) -> dict[str, Any]:
    """The status as it stands in YAML."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def event_object(trenchcoat: Trenchcoat, event: Event, now: datetime) -> dict[str, Any]:
    """The Event as it stands in YAML."""
    metadata = trenchcoat.metadata
    told = hashlib.sha256(f"{metadata.uid}/{event.reason}/{event.identity}".encode()).hexdigest()[:16]
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata.name}.{told}", "namespace": metadata.namespace},
        "involvedObject": {
            "apiVersion": constants.API_VERSION,
            "kind": constants.KIND,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:1024],
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }
