"""What is kept of stores between looks: connections, and for a while Secrets and manifests."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from trenchcoat_api.artifacts import Artifact, Manifest
from trenchcoat_api.spec import Store

from trenchcoat_operator.storage.bucket import Access, Bucket
from trenchcoat_operator.storage.reader import ReadObserver, StoreReader

ABSENT_SECONDS = 60.0
"""How long it may take until what came from outside the cluster is seen."""
SECRET_SECONDS = 10.0
"""How long it may take until a changed Secret is used; one that does not do is read at every look."""


class ManifestCache:
    """Manifests that were read: they never change, so each is read once, and then known by its being there.

    Only a saving: without it everything is read again. It is bounded, the least recently used go first, and
    what somebody deletes by hand is missed within a minute.
    """

    def __init__(
        self, limit: int = 20_000, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._manifests: OrderedDict[tuple[StoreReader, str], tuple[float, Manifest]] = OrderedDict()
        self._absent: OrderedDict[tuple[StoreReader, str], float] = OrderedDict()

    def get(self, reader: StoreReader, artifact: Artifact) -> tuple[Manifest | None, bool]:
        """A manifest that was read before, with the same access key, and whether it was seen just now."""
        place = (reader, artifact.prefix)
        with self._lock:
            read_at, found = self._manifests.get(place, (0.0, None))
            if found is None:
                return None, False
            self._manifests.move_to_end(place)
            return found, self._clock() - read_at <= self._seconds

    def put(self, reader: StoreReader, artifact: Artifact, manifest: Manifest) -> None:
        """Keep a manifest."""
        with self._lock:
            self._manifests[(reader, artifact.prefix)] = (self._clock(), manifest)
            self._manifests.move_to_end((reader, artifact.prefix))
            while len(self._manifests) > self._limit:
                self._manifests.popitem(last=False)

    def is_absent(self, reader: StoreReader, artifact: Artifact, within: float = ABSENT_SECONDS) -> bool:
        """Whether there was nothing of an artifact a moment ago: `within` so many seconds."""
        place = (reader, artifact.prefix)
        with self._lock:
            if place in self._manifests:
                return False  # it has come since, whoever looked before that and told of it after
            looked_at = self._absent.get(place)
            return looked_at is not None and self._clock() - looked_at <= min(within, ABSENT_SECONDS)

    def put_absent(self, reader: StoreReader, artifact: Artifact) -> None:
        """Remember for a moment that there is neither a manifest nor a note of its deletion."""
        with self._lock:
            self._absent[(reader, artifact.prefix)] = self._clock()
            self._absent.move_to_end((reader, artifact.prefix))
            while len(self._absent) > self._limit:
                self._absent.popitem(last=False)

    def drop(self, artifact: Artifact) -> None:
        """Forget a manifest that is being deleted, whoever read it."""
        with self._lock:
            for place in [place for place in self._manifests if place[1] == artifact.prefix]:
                del self._manifests[place]


class SecretCache:
    """Secrets for a few seconds, and no longer than that: a changed one is soon used."""

    def __init__(self, seconds: float = SECRET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._secrets: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}

    def get(self, namespace: str, name: str) -> dict[str, str] | None:
        """The data of a Secret that was read a moment ago."""
        with self._lock:
            self._drop_old()
            _, data = self._secrets.get((namespace, name), (0.0, None))
            return data

    def put(self, namespace: str, name: str, data: dict[str, str]) -> None:
        """Keep the data of a Secret."""
        with self._lock:
            self._secrets[namespace, name] = self._clock(), data

    def forget(self, namespace: str) -> None:
        """Have the Secrets of a namespace read anew."""
        with self._lock:
            for place in [place for place in self._secrets if place[0] == namespace]:
                del self._secrets[place]

    def _drop_old(self) -> None:
        now = self._clock()
        for place, (read_at, _) in list(self._secrets.items()):
            if now - read_at >= self._seconds:
                del self._secrets[place]


class Readers:
    """Readers that were opened, so that their connections are used again."""

    def __init__(self, observe: ReadObserver, limit: int = 200) -> None:
        self._observe = observe
        self._limit = limit
        self._lock = threading.Lock()
        self._readers: OrderedDict[tuple[str | Access | None, ...], StoreReader] = OrderedDict()

    def open(self, store: Store, access: Access) -> StoreReader:
        """The reader of a bucket that is opened so."""
        place = (store.endpoint, store.bucket, store.region, store.ca_bundle, access)
        with self._lock:
            reader = self._readers.get(place)
            if reader is None:
                reader = self._readers[place] = StoreReader(Bucket(store, access), self._observe)
            self._readers.move_to_end(place)
            while len(self._readers) > self._limit:
                self._readers.popitem(last=False)
            return reader
