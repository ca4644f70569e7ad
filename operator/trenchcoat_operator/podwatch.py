"""Noticing at once that a pod of ours ended: its GPU may be wanted."""

import logging
import threading
from collections.abc import Callable

from trenchcoat_api import constants

from trenchcoat_operator.kubernetes import client
from trenchcoat_operator.kubernetes.client import ApiError, Cluster, Object
from trenchcoat_operator.queue import Key
from trenchcoat_operator.surroundings import MANAGED

log = logging.getLogger(__name__)

_WATCH_SECONDS = 240
_RETRY_SECONDS = 5.0


class PodWatch:
    """Watches the pods of all Trenchcoats, filtered by the API server, which kopf's watches are not.

    Only a shortcut: what it misses is seen at the next regular look.
    """

    def __init__(
        self, cluster: Cluster, namespaces: tuple[str, ...], notice: Callable[[Key, bool], None]
    ) -> None:
        """`notice` is called with a pod's Trenchcoat and whether the pod gave its GPUs back."""
        self._cluster = cluster
        self._notice = notice
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(namespace,), name=f"pods-{namespace}", daemon=True)
            for namespace in namespaces or ("",)
        ]

    def start(self) -> None:
        """Start watching."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no other watch; one that waits for events ends with the process."""
        self._stop.set()

    def _watch(self, namespace: str) -> None:
        while not self._stop.is_set():
            try:
                for event in self._cluster.watch(
                    client.PODS, namespace, labels=MANAGED, seconds=_WATCH_SECONDS
                ):
                    self._see(event)
            except ApiError as error:
                log.warning("pods cannot be watched, they are looked at now and then: %s", error)
                self._stop.wait(_RETRY_SECONDS)

    def _see(self, event: Object) -> None:
        body = event.get("object") or {}
        metadata = body.get("metadata") or {}
        name = (metadata.get("labels") or {}).get(constants.LABEL_NAME)
        if event.get("type") not in ("ADDED", "MODIFIED", "DELETED") or not name:
            return  # an error, such as a watch that began too long ago: the next one begins anew
        phase = (body.get("status") or {}).get("phase")
        over = event["type"] == "DELETED" or phase in ("Succeeded", "Failed")
        self._notice(Key(metadata["namespace"], name), over)
