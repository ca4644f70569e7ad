"""The kopf handlers: an event only says that a Trenchcoat is worth a look."""

from typing import Any

import kopf
from trenchcoat_api import constants

from trenchcoat_operator.loop.queue import WorkQueue
from trenchcoat_operator.loop.worker import Worker
from trenchcoat_operator.model.key import Key

_NOISE = {"resourceVersion", "managedFields"}


class Changes:
    """Tells what somebody changed of a Trenchcoat from what the operator itself wrote into its status."""

    def __init__(self) -> None:
        self._seen: dict[Key, dict[str, Any]] = {}

    def is_news(self, key: Key, metadata: dict[str, Any], *, deleted: bool) -> bool:
        """Whether anything but the status changed since the last event; the generation stands for the spec.

        Args:
            key: The Trenchcoat.
            metadata: Its metadata.
            deleted: Whether it is gone.
        """
        if deleted:
            self._seen.pop(key, None)
            return True
        now = {name: value for name, value in metadata.items() if name not in _NOISE}
        before, self._seen[key] = self._seen.get(key), now
        return now != before


def register(registry: kopf.OperatorRegistry, queue: WorkQueue, worker: Worker) -> None:
    """Register all handlers.

    What Trenchcoats own is followed by informers: kopf would receive the pods of the whole cluster.
    """
    changes = Changes()

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**arguments)  # as client.Cluster does: service account or kubeconfig

    @kopf.on.startup(registry=registry)
    def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)

    @kopf.on.event(constants.GROUP, constants.VERSION, constants.PLURAL, registry=registry)
    def trenchcoat(
        name: str | None, namespace: str | None, meta: kopf.Meta, type: str | None, **_: Any
    ) -> None:
        if not name or not namespace:
            return
        key = Key(namespace, name)
        worker.saw(key, str(meta.get("resourceVersion") or ""))
        if changes.is_news(key, dict(meta), deleted=type == "DELETED"):
            queue.add(key)


def _configure(settings: kopf.OperatorSettings) -> None:
    settings.posting.enabled = False  # this operator's own events tell the story
    settings.scanning.disabled = True  # needs no right to list CustomResourceDefinitions and namespaces
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 60
