"""All objects of a kind, kept current by a list and watches: looked at often, read from the server once."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Generic, Protocol, TypeVar

from trenchcoat_operator.kubernetes.client import ApiError, Kind, Object

log = logging.getLogger(__name__)

T = TypeVar("T")
Place = tuple[str, str]
"""Namespace and name."""

GONE = 410
_WATCH_SECONDS = 300
_FIRST_SYNC_SECONDS = 30.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Source(Protocol):
    """The part of the client that a reflector needs."""

    def snapshot(
        self, kind: Kind, namespace: str, *, labels: str, fields: str
    ) -> tuple[tuple[Object, ...], str]:
        """All objects, and the resource version at which they stood so."""

    def changes(
        self, kind: Kind, namespace: str, version: str, *, labels: str, fields: str, seconds: int
    ) -> Iterator[Object]:
        """Watch events after a resource version."""


class Reflector(Generic[T]):
    """Objects of one kind as they stood a moment ago; safe between threads.

    Whenever a watch cannot be gone on with, all objects are listed anew, so that no deletion is missed.
    """

    def __init__(
        self,
        source: Source,
        kind: Kind,
        read: Callable[[Object], T | None],
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
    ) -> None:
        """Nothing is read before the first look.

        Args:
            source: The API server.
            kind: The kind of objects.
            read: Reads an object into what is kept of it; None keeps nothing.
            namespace: Where; everywhere if empty.
            labels: Label selector.
            fields: Field selector.
        """
        self._source, self._kind, self._read = source, kind, read
        self._namespace, self._labels, self._fields = namespace, labels, fields
        self._changed = threading.Condition()
        self._items: dict[Place, T] = {}
        self._seen: set[Place] = set()
        self._synced = False
        self._fault: ApiError | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def items(self) -> list[T]:
        """What is kept of all objects.

        Raises:
            ApiError: they cannot be listed; NotFoundError if the cluster knows no such kind.
        """
        with self._changed:
            if self._thread is None:
                name = f"reflector-{self._kind.plural}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            known = self._changed.wait_for(lambda: self._synced or self._fault, _FIRST_SYNC_SECONDS)
            if self._fault is not None:
                raise self._fault
            if not known:
                raise ApiError(0, "Unreachable", f"{self._kind.plural} could not be listed in time")
            return list(self._items.values())

    def wait_for(self, places: Collection[Place], seconds: float) -> bool:
        """Wait until objects that were just made are among those seen; False when that takes too long."""
        with self._changed:
            if self._thread is None:
                return True  # the first list will have them
            return self._changed.wait_for(lambda: self._seen.issuperset(places), seconds)

    def stop(self) -> None:
        """Begin no other watch."""
        self._stop.set()

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        while not self._stop.is_set():
            try:
                self._follow(self._list())
                pause = _SHORTEST_PAUSE
            except ApiError as error:
                if error.status == GONE:
                    continue
                fault = error
                log.debug("%s cannot be followed: %s", self._kind.plural, error)
            except Exception as error:
                # Whoever looks must not be given what was read long ago.
                fault = ApiError(0, "Unreadable", f"{self._kind.plural} cannot be read: {error!r}")
                log.exception("%s cannot be followed", self._kind.plural)
            else:
                continue
            with self._changed:
                self._fault, self._synced = fault, False
                self._changed.notify_all()
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _list(self) -> str:
        bodies, version = self._source.snapshot(
            self._kind, self._namespace, labels=self._labels, fields=self._fields
        )
        read = {_place(body): self._read(body) for body in bodies}
        with self._changed:
            self._items = {place: item for place, item in read.items() if item is not None}
            self._seen = set(read)
            self._synced, self._fault = True, None
            self._changed.notify_all()
        return version

    def _follow(self, version: str) -> None:
        """Apply changes until a watch cannot be gone on with.

        Raises:
            ApiError: of status GONE when the version is too old to watch from.
        """
        while not self._stop.is_set():
            begun = time.monotonic()
            for event in self._source.changes(
                self._kind,
                self._namespace,
                version,
                labels=self._labels,
                fields=self._fields,
                seconds=_WATCH_SECONDS,
            ):
                body = event["object"]
                if event["type"] == "ERROR":
                    raise ApiError(
                        int(body.get("code") or 500), str(body.get("reason")), str(body.get("message"))
                    )
                version = body["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._apply(event["type"], body)
            if time.monotonic() - begun < 1:
                self._stop.wait(1)  # a proxy that cuts watches short is not pressed

    def _apply(self, change: str, body: Object) -> None:
        place = _place(body)
        item = None if change == "DELETED" else self._read(body)
        with self._changed:
            if item is None:
                self._items.pop(place, None)
            else:
                self._items[place] = item
            (self._seen.discard if change == "DELETED" else self._seen.add)(place)
            self._changed.notify_all()


def _place(body: Object) -> Place:
    metadata = body["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
