"""What a store can do, whatever it is made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 1024 * 1024
"""Size of the pieces that objects are moved in: small enough to stay in a processor's cache while hashed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    path: str
    size: int
    """Bytes."""


class Readable(Protocol):
    """A place to read objects from; paths are keys within it, without a leading slash.

    All methods raise StoreError when the place cannot be reached or refuses access, and NotFoundError for a
    path that is not there. They may be called from several threads at once.
    """

    name: str
    """The place as people know it, such as s3://bucket or file:///folder."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on, or all that follow; fewer where the object ends."""
        ...

    def stream(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield what `read` would return in pieces of at most CHUNK_BYTES."""
        ...

    def size(self, path: str) -> int:
        """Size of an object in bytes."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose path begins with `prefix`, in order of path."""
        ...


class Store(Readable, Protocol):
    """A place to keep objects in; a write is there as a whole or not at all."""

    @property
    def keeps_versions(self) -> bool:
        """Whether what is replaced stays and takes room, as far as writes have shown yet."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing the one that was there."""
        ...

    def write_stream(self, path: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Write an object of `size` bytes from pieces, holding a few of them in memory at a time.

        Raises:
            ValueError: the pieces hold more or fewer bytes than `size`; nothing was written.
        """
        ...

    def write_file(self, path: str, file: Path) -> None:
        """Write an object from a local file."""
        ...

    def read_file(self, path: str, file: Path) -> None:
        """Copy an object into a local file, which appears as a whole or not at all."""
        ...

    def delete(self, path: str) -> None:
        """Delete an object; it need not be there."""
        ...

    def in_bucket(self, bucket: str) -> "Store":
        """The same store seen from another bucket."""
        ...
