"""All objects of a kind, kept current by a list and watches: looked at often, read from the server once."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.kubernetes.kinds import Object, Selection

log = logging.getLogger(__name__)

T = TypeVar("T")
Place = tuple[str, str]
"""Namespace and name."""

GONE = 410
_WATCH_SECONDS = 300
_FIRST_SYNC_SECONDS = 30.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Informer(Generic[T]):
    """Objects of one kind as they stood a moment ago; safe between threads.

    Whenever a watch cannot be gone on with, all objects are listed anew, so that no deletion is missed.
    """

    def __init__(
        self,
        source: Cluster,
        selection: Selection,
        read: Callable[[Object], T | None],
        *,
        index: Callable[[T], Hashable] | None = None,
        notice: Callable[[T | None, T | None], None] | None = None,
    ) -> None:
        """Nothing is read before the start or the first look.

        Args:
            source: The API server.
            selection: Which objects.
            read: Reads an object into what is kept of it; None keeps nothing.
            index: What objects are looked up by.
            notice: Called with what was kept of an object and what is now, where they differ, once the next
                look has it; None stands for nothing. It is not called for what the first list holds.
        """
        self._source, self._selection, self._read = source, selection, read
        self._plural = selection.kind.plural
        self._index, self._notice = index, notice
        self._changed = threading.Condition()
        self._items: dict[Place, T] = {}
        self._by_index: dict[Hashable, dict[Place, T]] = {}
        self._seen: set[Place] = set()
        self._unseen: dict[Place, tuple[bool, int]] = {}
        """What was written and is not seen yet: whether it was made, and how many lists had begun by then."""
        self._lists = 0
        self._listed = False
        self._synced = False
        self._fault: ApiError | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._end_watch: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to follow, in a thread."""
        with self._changed:
            if self._thread is None:
                name = f"informer-{self._plural}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def items(self) -> list[T]:
        """What is kept of all objects.

        Raises:
            ApiError: they cannot be listed; NotFoundError if the cluster knows no such kind.
        """
        with self._known():
            return list(self._items.values())

    def get(self, place: Place) -> T | None:
        """What is kept of one object.

        Raises:
            ApiError: they cannot be listed; NotFoundError if the cluster knows no such kind.
        """
        with self._known():
            return self._items.get(place)

    def at(self, index: Hashable) -> list[T]:
        """What is kept of the objects with an index.

        Raises:
            ApiError: they cannot be listed; NotFoundError if the cluster knows no such kind.
        """
        with self._known():
            return list(self._by_index.get(index, {}).values())

    def _known(self) -> threading.Condition:
        """The lock, once there is something to be looked at."""
        self.start()
        with self._changed:
            known = self._changed.wait_for(lambda: self._is_current() or self._fault, _FIRST_SYNC_SECONDS)
            if self._fault is not None:
                raise self._fault
            if not known and self._unseen:
                names = ", ".join("/".join(place) for place in sorted(self._unseen))
                raise ApiError(0, "Unreachable", f"changes of {self._plural} {names} are not told of in time")
            if not known:
                raise ApiError(0, "Unreachable", f"{self._plural} could not be listed in time")
        return self._changed

    def _is_current(self) -> bool:
        return self._synced and not self._unseen

    def wait_for(self, made: Collection[Place], seconds: float, *, deleted: Collection[Place] = ()) -> bool:
        """Wait until what was just made and deleted is seen to be; False when that takes too long.

        All is listed anew then, and nothing can be looked at until that is done: who decides on what stood
        before a write would do the same once more.
        """
        with self._changed:
            if self._thread is None:
                return True  # the first list will be so
            if self._changed.wait_for(
                lambda: self._seen.issuperset(made) and self._seen.isdisjoint(deleted), seconds
            ):
                return True
            self._unseen |= {place: (True, self._lists) for place in made if place not in self._seen}
            self._unseen |= {place: (False, self._lists) for place in deleted if place in self._seen}
            end = self._end_watch
        if end is not None:
            end()
        return False

    def hurry(self) -> None:
        """Try again at once, if it waits to: what could not be listed can be now."""
        self._wake.set()

    def stop(self) -> None:
        """Follow no longer."""
        self._stop.set()
        self._wake.set()
        with self._changed:
            end = self._end_watch
        if end is not None:
            end()

    def _run(self) -> None:
        pause = _SHORTEST_PAUSE
        while not self._stop.is_set():
            try:
                self._follow(self._list())
                pause = _SHORTEST_PAUSE
            except ApiError as error:
                if self._stop.is_set():
                    return  # its end is what was asked for
                if error.status == GONE:
                    continue
                if str(error) != str(self._fault):  # a kind that is not there may never be
                    log.warning("%s cannot be followed: %s; again in %.1f s", self._plural, error, pause)
                fault = error
            except Exception as error:
                if self._stop.is_set():
                    return  # a connection that is shut down under its reader ends in several ways
                # A thread that ends would leave what it last saw for ever.
                fault = ApiError(0, "Unreadable", f"{self._plural} cannot be read: {error!r}")
                log.exception("%s cannot be followed", self._plural)
            else:
                continue
            with self._changed:
                self._fault, self._synced = fault, False
                self._changed.notify_all()
            self._wake.wait(pause)
            self._wake.clear()
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _list(self) -> str:
        with self._changed:
            self._lists += 1
            begun = self._lists
        bodies, version = self._source.snapshot(self._selection)
        read = {_place(body): self._read(body) for body in bodies}
        with self._changed:
            before, first = self._items, not self._listed
            self._items = {place: item for place, item in read.items() if item is not None}
            self._by_index = {}
            for place, item in self._items.items():
                self._put_in_index(place, item)
            self._seen = set(read)
            # A list that was begun after a write has it, or what has become of it since.
            self._unseen = {place: told for place, told in self._unseen.items() if told[1] >= begun}
            self._listed, self._synced, self._fault = True, True, None
            self._changed.notify_all()
        if not first:
            for place in before.keys() | self._items.keys():
                self._tell(before.get(place), self._items.get(place))
        return version

    def _follow(self, version: str) -> None:
        """Apply changes until a watch cannot be gone on with.

        Raises:
            ApiError: of status GONE when the version is too old to watch from.
        """
        while not self._stop.is_set() and not self._unseen:
            begun = time.monotonic()
            for event in self._source.changes(
                self._selection, version, seconds=_WATCH_SECONDS, opened=self._opened
            ):
                body = event["object"]
                if event["type"] == "ERROR":
                    raise ApiError(
                        int(body.get("code") or 500), str(body.get("reason")), str(body.get("message"))
                    )
                version = body["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._apply(event["type"], body)
            if time.monotonic() - begun < 1 and not self._unseen:
                self._stop.wait(1)  # a proxy that cuts watches short is not pressed

    def _opened(self, end: Callable[[], None]) -> None:
        with self._changed:
            self._end_watch = end
            wanted = not self._stop.is_set() and not self._unseen
        if not wanted:
            end()

    def _apply(self, change: str, body: Object) -> None:
        place = _place(body)
        item = None if change == "DELETED" else self._read(body)
        with self._changed:
            before = self._items.pop(place, None)
            if before is not None and self._index is not None:
                self._take_from_index(place, self._index(before))
            if item is not None:
                self._items[place] = item
                self._put_in_index(place, item)
            (self._seen.discard if change == "DELETED" else self._seen.add)(place)
            made, _ = self._unseen.get(place, (None, 0))
            if made is (change != "DELETED"):
                del self._unseen[place]
            self._changed.notify_all()
        self._tell(before, item)

    def _tell(self, before: T | None, after: T | None) -> None:
        if self._notice is not None and before != after:
            self._notice(before, after)

    def _put_in_index(self, place: Place, item: T) -> None:
        if self._index is not None:
            self._by_index.setdefault(self._index(item), {})[place] = item

    def _take_from_index(self, place: Place, index: Hashable) -> None:
        there = self._by_index[index]
        del there[place]
        if not there:
            del self._by_index[index]


def _place(body: Object) -> Place:
    metadata = body["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
