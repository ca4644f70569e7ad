"""The Trenchcoats as they are now: followed, or read anew where somebody told of a newer version."""

import logging
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.resource import InvalidTrenchcoatError, Metadata, Trenchcoat, read_status
from trenchcoat_api.status import TrenchcoatStatus

from trenchcoat_operator.apply.applier import Applier, status_object
from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import NotFoundError
from trenchcoat_operator.kubernetes.kinds import Selection
from trenchcoat_operator.kubernetes.versions import Versions
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.observe.informers import Informers
from trenchcoat_operator.reconcile.telling.refusals import unreadable

log = logging.getLogger(__name__)


class GoneError(Exception):
    """There is no such Trenchcoat any more."""


class Trenchcoats:
    """Reads Trenchcoats, and says in their status where they cannot be read."""

    def __init__(self, cluster: Cluster, informers: Informers, versions: Versions, applier: Applier) -> None:
        self._cluster = cluster
        self._informers = informers
        self._versions = versions
        self._applier = applier

    def all_keys(self, namespaces: Collection[str]) -> list[Key]:
        """All Trenchcoats of some namespaces; of all if there is none.

        Raises:
            ApiError: they could not be listed.
        """
        found = []
        for namespace in namespaces or ("",):
            for body in self._cluster.list(Selection(kinds.TRENCHCOATS, namespace)):
                metadata = body["metadata"]
                found.append(key := Key(metadata["namespace"], metadata["name"]))
                self._versions.note(key, metadata["resourceVersion"])
        return found

    def read(self, key: Key) -> Trenchcoat | None:
        """A Trenchcoat, no older than anybody told of; None where nothing is to be done for it.

        Raises:
            GoneError: it is not there.
            ApiError: the API server could not be read.
        """
        trenchcoat = self._informers.trenchcoat((key.namespace, key.name))
        if trenchcoat is None or not self._versions.is_current(key, trenchcoat.metadata.resource_version):
            trenchcoat = self._read_live(key)
        if (
            trenchcoat is not None
            and trenchcoat.metadata.deletion_timestamp
            and constants.FINALIZER not in trenchcoat.metadata.finalizers
        ):
            return None  # its children go by their owner references
        return trenchcoat

    def _read_live(self, key: Key) -> Trenchcoat | None:
        try:
            body = self._cluster.get(kinds.TRENCHCOATS, key.namespace, key.name)
        except NotFoundError as error:
            raise GoneError(str(key)) from error
        former = read_status(body.get("status") or {})
        try:
            return Trenchcoat.from_object({**body, "status": former})
        except InvalidTrenchcoatError as error:
            self._refuse(body, former, error)
            return None

    def _refuse(self, body: dict[str, Any], former: TrenchcoatStatus, error: InvalidTrenchcoatError) -> None:
        """Say so in the status of an object that the API server let through and this version cannot read."""
        log.warning("cannot be read: %s", error)
        metadata = Metadata.model_construct(
            name=body["metadata"]["name"],
            namespace=body["metadata"]["namespace"],
            uid=body["metadata"]["uid"],
            generation=body["metadata"].get("generation", 0),
            resource_version=body["metadata"].get("resourceVersion", ""),
            finalizers=body["metadata"].get("finalizers") or [],
        )
        if body["metadata"].get("deletionTimestamp"):
            if constants.FINALIZER in metadata.finalizers:  # nobody can tell what its artifacts are
                self._applier.set_finalizer(metadata, present=False)
            return
        status = unreadable(former, metadata.generation, str(error), datetime.now(UTC))
        if status != former:
            self._applier.write_status(metadata, status_object(status))
