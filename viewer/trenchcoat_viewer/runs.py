"""All Trenchcoats as they stand now, followed by one list and watch."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat, read_status
from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.informer import Informer, Place
from trenchcoat_operator.kubernetes.kinds import Object, Selection


@dataclass(frozen=True, slots=True)
class Shown:
    """One Trenchcoat at one moment."""

    namespace: str
    name: str
    version: str
    """Its resource version, with its UID: another object of its name has another one."""
    trenchcoat: Trenchcoat | None
    fault: str = ""
    """Why it cannot be read, if it cannot."""


class Runs:
    """Follows Trenchcoats."""

    def __init__(
        self,
        cluster: Cluster,
        namespaces: tuple[str, ...],
        refresh_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read before the first look.

        Args:
            cluster: The API server.
            namespaces: Which to follow; none means all.
            refresh_seconds: How long what is shown of one stays at least.
            clock: Seconds.
        """
        self._informers = [
            Informer(cluster, Selection(kinds.TRENCHCOATS, namespace), read)
            for namespace in namespaces or ("",)
        ]
        self._refresh, self._clock = refresh_seconds, clock
        self._lock = threading.Lock()
        self._shown: dict[Place, tuple[float, Shown]] = {}

    def all(self) -> list[Shown]:
        """All as they are now, by namespace and name.

        Raises:
            ApiError: they cannot be listed.
        """
        found = [item for informer in self._informers for item in informer.items()]
        return sorted(found, key=lambda item: (item.namespace, item.name))

    def one(self, namespace: str, name: str) -> Shown | None:
        """One as it was a moment ago: it changes no more often than pages are to be drawn.

        Raises:
            ApiError: they cannot be listed.
        """
        place = namespace, name
        found = (informer.get(place) for informer in self._informers)
        latest = next((item for item in found if item is not None), None)
        now = self._clock()
        with self._lock:
            if latest is None:
                self._shown.pop(place, None)
                return None
            kept = self._shown.get(place)
            if kept is None or (kept[1].version != latest.version and now - kept[0] >= self._refresh):
                kept = self._shown[place] = now, latest
        return kept[1]

    def stop(self) -> None:
        """Follow no longer."""
        for informer in self._informers:
            informer.stop()


def read(body: Object) -> Shown:
    """A Trenchcoat as the API server gives it; one that cannot be read is shown with why."""
    metadata = body["metadata"]
    version = f"{metadata.get('uid', '')}/{metadata.get('resourceVersion', '')}"
    namespace, name = metadata["namespace"], metadata["name"]
    try:
        trenchcoat = Trenchcoat.from_object({**body, "status": read_status(body.get("status") or {})})
    except InvalidTrenchcoatError as error:
        return Shown(namespace, name, version, None, str(error))
    return Shown(namespace, name, version, trenchcoat)
