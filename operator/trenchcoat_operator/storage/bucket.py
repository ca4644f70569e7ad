"""One bucket of an S3 store, used with one access key; nobody waits long for it."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from trenchcoat_api.spec import Store
from trenchcoat_s3.connection import Address, Credentials, Patience, again, connect
from trenchcoat_s3.faults import Fault, fault_of, is_untold
from trenchcoat_s3.identity import WebIdentity

from trenchcoat_operator.storage.errors import StoreError, explained, undeletable

Result = TypeVar("Result")

Access = Credentials | WebIdentity
"""How a store is opened; two that are equal open the same."""

DELETED_TOGETHER = 1000
"""S3 deletes no more objects in one request."""

_NOT_TOGETHER = {"AccessDenied", "InvalidRequest", "MalformedXML", "MethodNotAllowed", "NotImplemented"}
"""What stores say that delete one object at a time, or allow no more."""
_PATIENCE = Patience(connect_seconds=3, read_seconds=8, retries=again(1, 0.2), connections=4)


class Bucket:
    """Small objects, read and written whole. Each method raises StoreError where the store cannot be used."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._client = self._try(lambda: self._connected(access))

    def uri(self, path: str) -> str:
        """An object as people name it."""
        return f"s3://{self._store.bucket}/{path}"

    def get(self, path: str) -> bytes | None:
        """The content of an object; None if there is none."""
        return self._try(lambda: self._get(path))

    def has(self, path: str) -> bool:
        """Whether there is an object."""
        return self._try(lambda: self._has(path))

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing the one that was there."""
        self._try(lambda: self._client.put_object(self._store.bucket, path, io.BytesIO(data), len(data)))

    def remove(self, path: str) -> None:
        """Delete an object; it need not be there."""
        self._try(lambda: self._remove_one(path))

    def remove_all(self, paths: Sequence[str]) -> None:
        """Delete objects, no more than DELETED_TOGETHER."""
        self._try(lambda: self._remove_all(paths))

    def list(self, prefix: str) -> Iterator[str]:
        """Paths of the objects whose paths begin with a prefix, read as they are asked for."""
        listed = self._client.list_objects(self._store.bucket, prefix=prefix, recursive=True)
        while (item := self._try(lambda: next(listed, None))) is not None:
            yield str(item.object_name)

    def _connected(self, access: Access) -> Minio:
        provider = access.provider() if isinstance(access, Credentials) else access.provider(_PATIENCE)
        store = self._store
        return connect(Address(store.endpoint, store.region, store.ca_bundle), provider, _PATIENCE)

    def _try(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except StoreError:
            raise
        except Exception as error:  # whatever the client makes of an answer
            raise explained(self._store, error) from error

    def _get(self, path: str) -> bytes | None:
        try:
            response = self._client.get_object(self._store.bucket, path)
        except S3Error as error:
            if fault_of(error) is Fault.NO_OBJECT:
                return None
            raise
        try:
            data: bytes = response.read()
            return data
        finally:
            response.close()
            response.release_conn()

    def _has(self, path: str) -> bool:
        try:
            self._client.stat_object(self._store.bucket, path)
        except S3Error as error:
            if fault_of(error) is Fault.NO_OBJECT:
                return False
            if is_untold(error):  # the answer to GET says why
                return self._get(path) is not None
            raise
        return True

    def _remove_all(self, paths: Sequence[str]) -> None:
        """One by one where the store, or what stands before it, does not delete many at once."""
        try:
            batch = [DeleteObject(path) for path in paths]
            for fault in self._client.remove_objects(self._store.bucket, batch):
                raise undeletable(self._store, str(fault.name), str(fault.code))
        except MinioException as error:
            if isinstance(error, S3Error) and error.code not in _NOT_TOGETHER:
                raise
            for path in paths:
                self._remove_one(path)

    def _remove_one(self, path: str) -> None:
        try:
            self._client.remove_object(self._store.bucket, path)
        except S3Error as error:
            if fault_of(error) is not Fault.REFUSED:
                raise
            raise undeletable(self._store, path, str(error.code)) from error
