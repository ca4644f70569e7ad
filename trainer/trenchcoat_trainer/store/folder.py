"""A folder as a store: what `trenchcoat run` uses, and what tests use."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trenchcoat_trainer.errors import NotFoundError, StoreError
from trenchcoat_trainer.store.base import CHUNK_BYTES, Entry

_UNFINISHED = ".unfinished-"


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below `top` with the names of its files; links are followed, loops of them once.

    Raises:
        StoreError: a folder cannot be read.
    """
    above: dict[str, frozenset[str]] = {}
    for folder, below, names in os.walk(top, onerror=_raise_unreadable, followlinks=True):
        way = above.pop(folder, frozenset()) | {os.path.realpath(folder)}
        below[:] = [name for name in below if os.path.realpath(os.path.join(folder, name)) not in way]
        above.update((os.path.join(folder, name), way) for name in below)
        yield folder, names


def _raise_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise _unreadable(error.filename, error) from error


def _unreadable(file: Path | str, error: OSError) -> StoreError:
    return StoreError(f"{file} cannot be read ({error.strerror}): check its permissions")


def _size(file: Path) -> int | None:
    """Bytes of a file, 0 of a link that leads nowhere; none where it was deleted since its folder was read.

    Raises:
        StoreError: the system does not say.
    """
    try:
        return file.stat().st_size
    except OSError as error:
        if file.is_symlink():
            return 0
        if isinstance(error, FileNotFoundError):
            return None
        raise _unreadable(file, error) from error


class FolderStore:
    """Objects are files below `root`; a file appears by an atomic rename once it is complete."""

    keeps_versions = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.absolute().as_uri()

    def in_bucket(self, bucket: str) -> "FolderStore":
        """The folder beside this one that stands for another bucket."""
        return FolderStore(self.root.parent / bucket)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on, or all that follow."""
        with self._opened(path) as source:
            source.seek(offset)
            return source.read() if length is None else source.read(length)

    def stream(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield what `read` would return in pieces of at most CHUNK_BYTES."""
        with self._opened(path) as source:
            source.seek(offset)
            left = length
            while left is None or left > 0:
                piece = source.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def size(self, path: str) -> int:
        """Size of an object in bytes."""
        with self._opened(path) as source:
            return os.fstat(source.fileno()).st_size

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name."""
        file = self._file(path)
        try:
            return file.is_file()
        except OSError as error:
            raise _unreadable(file, error) from error

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose path begins with `prefix`, in order of path."""
        top = self.root / prefix.rpartition("/")[0]
        found = []
        for folder, names in _walk(top):
            for name in names:
                file = Path(folder, name)
                path = file.relative_to(self.root).as_posix()
                if path.startswith(prefix) and not name.startswith(_UNFINISHED):
                    size = _size(file)
                    if size is not None:
                        found.append(Entry(path, size))
        yield from sorted(found, key=lambda entry: entry.path)

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing the one that was there."""
        with self._created(path) as target:
            target.write(data)

    def write_stream(self, path: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Write an object of `size` bytes from pieces; ValueError when they hold another number."""
        with self._created(path) as target:
            for chunk in chunks:
                target.write(chunk)
            if target.tell() != size:
                raise ValueError(f"{path}: {size} bytes were announced, {target.tell()} came")

    def write_file(self, path: str, file: Path) -> None:
        """Write an object from a local file."""
        with file.open("rb") as source:
            self.write_stream(path, iter(lambda: source.read(CHUNK_BYTES), b""), file.stat().st_size)

    def read_file(self, path: str, file: Path) -> None:
        """Copy an object into a local file, which appears as a whole or not at all."""
        FolderStore(file.parent).write_stream(file.name, self.stream(path), self.size(path))

    def delete(self, path: str) -> None:
        """Delete an object; it need not be there."""
        file = self._file(path)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{file} cannot be deleted ({error.strerror}): check the permissions of its folder"
            ) from error

    def _file(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a path within a store")
        return self.root / path

    @contextmanager
    def _opened(self, path: str) -> Iterator[IO[bytes]]:
        file = self._file(path)
        try:
            source = file.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFoundError(path, self.name) from error
        except OSError as error:
            raise _unreadable(file, error) from error
        with source:
            yield source

    @contextmanager
    def _created(self, path: str) -> Iterator[IO[bytes]]:
        file = self._file(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=_UNFINISHED, dir=file.parent)
        except OSError as error:
            raise StoreError(
                f"{file.parent} cannot be written to ({error.strerror}): check its permissions and free space"
            ) from error
        try:
            with os.fdopen(handle, "wb") as target:
                yield target
            os.replace(temporary, file)
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            raise StoreError(
                f"{file} cannot be written ({error.strerror}): check its permissions and free space"
            ) from error
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
