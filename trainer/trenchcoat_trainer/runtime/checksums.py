"""Checking an object's content against the checksum in its manifest."""

import hashlib
from typing import Protocol

from trenchcoat_api.artifacts import StoredObject
from trenchcoat_api.stored import StoreChecksum


class Digest(Protocol):
    """A checksum in the making."""

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""

    def matches(self) -> bool:
        """Whether all bytes so far are the object's content."""


def digest_of(stored: StoredObject) -> Digest:
    """Begin the kind of checksum that the manifest has of this object."""
    return _BySha256(stored.sha256) if stored.by_store is None else _ByStore(stored.by_store)


class _BySha256:
    def __init__(self, expected: str | None) -> None:
        self._expected = expected
        self._digest = hashlib.sha256()

    def update(self, chunk: bytes) -> None:
        self._digest.update(chunk)

    def matches(self) -> bool:
        return self._digest.hexdigest() == self._expected


class _ByStore:
    """S3's ETag of a multipart upload, from the content and its parts' sizes."""

    def __init__(self, expected: StoreChecksum) -> None:
        self._expected = expected
        self._left = list(reversed(expected.part_sizes))
        self._part = hashlib.md5(usedforsecurity=False)
        self._digests: list[bytes] = []

    def update(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view and self._left:
            piece = view[: self._left[-1]]
            self._part.update(piece)
            view = view[len(piece) :]
            self._left[-1] -= len(piece)
            if self._left[-1] == 0:
                self._left.pop()
                self._digests.append(self._part.digest())
                self._part = hashlib.md5(usedforsecurity=False)

    def matches(self) -> bool:
        whole = hashlib.md5(b"".join(self._digests), usedforsecurity=False).hexdigest()
        return not self._left and f"{whole}-{len(self._digests)}" == self._expected.etag
