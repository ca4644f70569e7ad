"""Looking objects up in a manifest, however many there are."""

import hashlib
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from trenchcoat_api.artifacts import Artifact, Manifest, StoredObject
from trenchcoat_api.stored import ObjectList

from trenchcoat_trainer.errors import CorruptObjectError, NotFoundError
from trenchcoat_trainer.store import Store

CACHED_LISTS = 64
"""Lists kept in memory, of some 400 kB each: a Cria of 405B and 20M tokens reads 20 or 40 of them."""


def pack_list(objects: Iterable[StoredObject]) -> bytes:
    """The content of a list of objects: a line of JSON each."""
    return b"".join(
        item.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n" for item in objects
    )


class ObjectIndex:
    """The objects of one artifact by path; may be used from several threads."""

    def __init__(self, store: Store, artifact: Artifact, manifest: Manifest) -> None:
        self._store = store
        self._artifact = artifact
        self._objects = {item.path: item for item in manifest.objects}
        self._lists = manifest.lists
        self._firsts = [item.first for item in manifest.lists]
        self._cached: OrderedDict[int, dict[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, path: str) -> StoredObject:
        """What the manifest says of an object.

        Raises:
            NotFoundError: it lists no such object.
            CorruptObjectError: the list that would have it is not what the manifest says.
        """
        number = bisect_right(self._firsts, path) - 1
        line = self._list(number).get(path) if number >= 0 else None
        if line is not None:
            return StoredObject.model_validate_json(line)
        if path not in self._objects:
            place = f"the manifest of {self._artifact.name} ({self._artifact.manifest_path})"
            raise NotFoundError(path, place)
        return self._objects[path]

    def paths(self) -> Iterator[str]:
        """Every path, in order."""
        yield from self._objects
        for number in range(len(self._lists)):
            yield from self._list(number)

    def _list(self, number: int) -> dict[str, bytes]:
        """The lines of a list by path: a line takes a third of the memory of what it is parsed to."""
        with self._lock:
            if number not in self._cached:
                self._cached[number] = self._read(self._lists[number])
                while len(self._cached) > CACHED_LISTS:
                    self._cached.popitem(last=False)
            self._cached.move_to_end(number)
            return self._cached[number]

    def _read(self, item: ObjectList) -> dict[str, bytes]:
        path, manifest = self._artifact.prefix + item.path, self._artifact.manifest_path
        remedy = f"delete {manifest}, and the {self._artifact.stage} stage makes it anew"
        data = self._store.read(path)
        if hashlib.sha256(data).hexdigest() != item.sha256:
            raise CorruptObjectError(f"object {path} does not have its checksum: {remedy}")
        try:
            return {json.loads(line)["path"]: line for line in data.splitlines()}
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObjectError(f"object {path} is no list of objects: {remedy}") from error
