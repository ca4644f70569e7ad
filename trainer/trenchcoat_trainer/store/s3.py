"""A bucket of an S3 store, through the minio client."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import urllib3
from minio.commonconfig import ComposeSource
from minio.credentials.providers import Provider
from minio.error import MinioException, S3Error
from trenchcoat_s3.connection import Address, Credentials, Patience, again, connect
from trenchcoat_s3.faults import is_past_the_end, is_untold
from trenchcoat_s3.identity import WebIdentity

from trenchcoat_trainer.errors import BadInputError, NotFoundError, StoreError
from trenchcoat_trainer.store.base import CHUNK_BYTES, Entry
from trenchcoat_trainer.store.folder import FolderStore
from trenchcoat_trainer.store.parts import MAX_UPLOAD_BYTES, Composed, Part, Span
from trenchcoat_trainer.store.s3_errors import ErrorTeller, SourceFailedError, WrongSizeError

logger = logging.getLogger(__name__)

# Three tries of 5 s and the pauses between them: an address that leads nowhere fails within 20 s.
RETRIES = 2
_PATIENCE = Patience(connect_seconds=5, read_seconds=60, retries=again(RETRIES, 0.5), connections=16)

# Parts of a multipart upload: S3 allows 10,000, and a few are held in memory.
PART_BYTES = 16 * 1024 * 1024
MAX_PARTS = 9_000

_UNSUPPORTED = {
    "EntityTooSmall",
    "InvalidArgument",
    "InvalidPart",
    "InvalidPartOrder",
    "InvalidRange",
    "InvalidRequest",
    "MethodNotAllowed",
    "NotImplemented",
}
"""What stores say that copy no parts, or only parts of certain sizes."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class S3Store:
    """One bucket of an S3 store; objects of any size, moved in pieces of bounded size."""

    def __init__(self, address: Address, bucket: str, access: Credentials | WebIdentity | Provider) -> None:
        """Nothing is sent yet; another bucket of the same store shares the provider.

        Raises:
            StoreError: the proxy or the certificates that were named are none.
        """
        self._address = address
        self._bucket = bucket
        self.name = f"s3://{bucket}"
        self.keeps_versions = False
        self._errors = ErrorTeller(address.endpoint, bucket, address.region, self.name)
        with self._errors.telling(""):
            if isinstance(access, Credentials):
                access = access.provider()
            elif isinstance(access, WebIdentity):
                access = access.provider(_PATIENCE)
            self._provider = access
            self._client = connect(address, self._provider, _PATIENCE)

    def in_bucket(self, bucket: str) -> "S3Store":
        """Another bucket of the same store.

        Raises:
            BadInputError: no bucket can have this name.
        """
        if not _BUCKET.fullmatch(bucket):
            raise BadInputError(
                f"s3://{bucket} cannot be: a bucket's name has lowercase letters, digits, - and ."
            )
        return S3Store(self._address, bucket, self._provider)

    def check(self, prefix: str = "") -> None:
        """Find out at once whether the bucket can be used, by a look at what lies below `prefix`.

        Stages need no more: to ask for the bucket itself takes rights that they may lack, and the answer does
        not say why it is no.

        Raises:
            StoreError: the endpoint, the credentials or the bucket is at fault; the message says which.
        """
        with self._errors.telling(""):
            next(iter(self._client.list_objects(self._bucket, prefix=prefix)), None)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset` on, or all that follow."""
        return b"".join(self.stream(path, offset, length))

    def stream(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield what `read` would return in pieces of at most CHUNK_BYTES."""
        if length == 0:
            self.size(path)
            return
        end = None if length is None else offset + length
        interruptions = 0
        while True:
            try:
                for chunk in self._stream_once(path, offset, end):
                    offset += len(chunk)
                    yield chunk
                return
            except urllib3.exceptions.HTTPError as error:
                # The connection broke in the middle, which the client does not mend by itself.
                interruptions += 1
                if interruptions > RETRIES:
                    with self._errors.telling(path):
                        raise
                logger.warning(
                    "%s/%s broke at byte %d (%s): going on from there", self.name, path, offset, error
                )
                if end is not None and offset >= end:
                    return

    def size(self, path: str) -> int:
        """Size of an object in bytes."""
        with self._errors.telling(path):
            try:
                return int(self._client.stat_object(self._bucket, path).size or 0)
            except S3Error as error:
                if is_untold(error):
                    self._look(path)
                raise

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size(path)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose path begins with `prefix`, in order of path, whatever the store's own is."""
        with self._errors.telling(prefix):
            listed = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
            found = [Entry(str(item.object_name), int(item.size or 0)) for item in listed]
        yield from sorted(found, key=lambda entry: entry.path)

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing the one that was there."""
        with self._errors.telling(path):
            written = self._client.put_object(self._bucket, path, BytesIO(data), len(data))
        # Whose versioning is suspended answers null, and replaces.
        if written.version_id not in (None, "", "null") and not self.keeps_versions:
            self.keeps_versions = True
            logger.info("%s keeps versions: what is written again and again is written less often", self.name)

    def write_stream(self, path: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Write an object of `size` bytes from pieces; ValueError when they hold another number."""
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        source = cast(BinaryIO, _Pieces(path, chunks, size))
        try:
            with self._errors.telling(path):
                self._client.put_object(self._bucket, path, source, size, part_size=part)
        except SourceFailedError as failed:
            raise failed.error from None

    def write_file(self, path: str, file: Path) -> None:
        """Write an object from a local file."""
        with file.open("rb") as source:
            self.write_stream(path, iter(lambda: source.read(CHUNK_BYTES), b""), file.stat().st_size)

    def read_file(self, path: str, file: Path) -> None:
        """Copy an object into a local file, which appears as a whole or not at all."""
        FolderStore(file.parent).write_stream(file.name, self.stream(path), self.size(path))

    def is_beside(self, other: object) -> bool:
        """Whether `other` is a bucket of the same store, so that bytes can be copied without passing here."""
        return isinstance(other, S3Store) and other._address == self._address

    def compose(self, path: str, parts: Sequence[Part], source: "S3Store", scratch: str) -> Composed | None:
        """Write an object from parts, copied by the store itself where they are spans of objects of `source`.

        Args:
            path: the object to write.
            parts: as `plan_parts` makes them, some of them copied.
            source: the bucket that spans are of; it is beside this one.
            scratch: prefix of the objects that hold uploaded parts; they are deleted.

        Returns:
            How the store summed the object up; none, and nothing written, where it cannot do that: where it
            copies no parts, or its ETags are no MD5s.
        """
        sources = []
        uploaded = []
        try:
            for index, part in enumerate(parts):
                if part.is_copied:
                    (span,) = part.pieces
                    assert isinstance(span, Span)  # noqa: S101  (that is what is_copied says)
                    sources.append(
                        ComposeSource(source._bucket, span.path, offset=span.offset, length=span.length)
                    )
                    continue
                name = f"{scratch}{index:05d}"
                data = b"".join(
                    piece if isinstance(piece, bytes) else source.read(piece.path, piece.offset, piece.length)
                    for piece in part.pieces
                )
                if len(data) != part.size:
                    raise StoreError(f"{source.name} has an object that is shorter than its header says")
                uploaded.append(name)
                if not self._upload_with_md5(name, data):
                    return None
                sources.append(ComposeSource(self._bucket, name))
            etag = self._compose(path, sources)
        finally:
            self._discard(uploaded)
        return Composed(etag, [part.size for part in parts]) if etag else None

    def _upload_with_md5(self, path: str, data: bytes) -> bool:
        """Write an object; returns whether the store's ETag is the MD5 of its content."""
        with self._errors.telling(path):
            etag = self._client.put_object(
                self._bucket, path, BytesIO(data), len(data), part_size=MAX_UPLOAD_BYTES
            ).etag
        if etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        logger.warning("%s has ETags that are no MD5s: copying through this process", self.name)
        return False

    def _compose(self, path: str, sources: Sequence[ComposeSource]) -> str | None:
        with self._errors.telling(path):
            try:
                return self._client.compose_object(self._bucket, path, [*sources]).etag
            except S3Error as error:
                if error.code not in _UNSUPPORTED:
                    raise
                logger.warning("%s copies no parts (%s): copying through this process", self.name, error.code)
                return None

    def delete(self, path: str) -> None:
        """Delete an object; it need not be there."""
        with self._errors.telling(path):
            self._client.remove_object(self._bucket, path)

    def _discard(self, paths: Sequence[str]) -> None:
        """Delete what was of use for a moment; where the store refuses it stays."""
        for path in paths:
            try:
                self.delete(path)
            except StoreError as error:
                logger.warning("%s/%s stays, though nobody needs it: %s", self.name, path, error)
                return

    def _look(self, path: str) -> None:
        """Ask for an object's first byte: unlike that to HEAD, the answer says why it is refused."""
        try:
            response = self._client.get_object(self._bucket, path, length=1)
        except MinioException as error:
            if is_past_the_end(error):
                return
            raise
        response.close()
        response.release_conn()

    def _stream_once(self, path: str, offset: int, end: int | None) -> Iterator[bytes]:
        length = 0 if end is None else end - offset
        with self._errors.telling(path):
            try:
                response = self._client.get_object(self._bucket, path, offset=offset, length=length)
            except MinioException as error:
                if is_past_the_end(error):
                    return
                raise
        try:
            yield from response.stream(CHUNK_BYTES)
        finally:
            response.close()
            response.release_conn()


class _Pieces(RawIOBase):
    """A file of pieces, as the client wants to read it."""

    def __init__(self, path: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        self._path = path
        self._chunks = iter(chunks)
        self._size = size
        self._seen = 0
        self._rest = memoryview(b"")

    def read(self, size: int = -1, /) -> Any:
        """At most `size` bytes; nothing at the end."""
        while not self._rest:
            try:
                chunk = next(self._chunks, None)
            except Exception as error:
                raise SourceFailedError(error) from error
            if chunk is None:
                if self._seen != self._size:
                    raise WrongSizeError(
                        f"{self._path}: {self._size} bytes were announced, {self._seen} came"
                    )
                return b""
            self._seen += len(chunk)
            if self._seen > self._size:
                raise WrongSizeError(f"{self._path}: more than the {self._size} bytes announced came")
            if isinstance(chunk, bytes) and len(chunk) <= size:
                return chunk
            self._rest = memoryview(chunk)
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)  # the client takes nothing else
