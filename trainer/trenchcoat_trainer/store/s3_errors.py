"""What is told when an S3 store, or its client, raises: the field of the spec at fault, and the remedy."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minio.error import S3Error
from trenchcoat_s3.faults import Fault, fault_of, root_cause
from trenchcoat_s3.proxies import proxied

from trenchcoat_trainer.errors import NotFoundError, StageError, StoreError


class WrongSizeError(ValueError):
    """What is to be written holds more or fewer bytes than was said."""


class SourceFailedError(Exception):
    """What was to be written could not be read; `error` is why, and no fault of the store."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class ErrorTeller:
    """Tells of failures of one bucket."""

    endpoint: str
    bucket: str
    region: str
    name: str
    """The place as people know it, such as s3://bucket."""

    @contextmanager
    def telling(self, path: str) -> Iterator[None]:
        """Raise whatever the client raises within as StoreError, or NotFoundError of `path`."""
        try:
            yield
        except ssl.SSLError as error:  # an OSError, too
            raise self._told(error, path) from error
        except (StageError, WrongSizeError, SourceFailedError, OSError):
            raise  # told already, or of a file of this machine
        except Exception as error:
            raise self._told(error, path) from error

    def _told(self, error: Exception, path: str) -> StageError:
        fault = fault_of(error)
        if fault is Fault.NO_OBJECT:
            return NotFoundError(path, self.name)
        code = error.code if isinstance(error, S3Error) else ""
        store, where = f"the store at {self.endpoint}", path or "the bucket"
        proxy = proxied(self.endpoint)
        told = {
            Fault.PROXY: (
                f"spec.store.endpoint {self.endpoint} cannot be reached through {proxy or 'a proxy'} "
                f"({root_cause(error)}): have the proxy let it through, or exempt it by NO_PROXY"
            ),
            Fault.IDENTITY: (
                f"spec.store.webIdentity: {error}: correct it, or what the STS lets take on the role"
            ),
            Fault.CERTIFICATE: (
                f"the certificate of {store} is not trusted ({root_cause(error)}): put the certificate that "
                "it is signed by into spec.store.caBundle"
            ),
            Fault.NO_BUCKET: (
                f"spec.store.bucket {self.bucket!r} does not exist at {self.endpoint}: "
                "create it or correct its name"
            ),
            Fault.REFUSED: (
                f"{store} refused the credentials for bucket {self.bucket!r} ({code}): correct accessKey, "
                "secretKey and, of a temporary key, sessionToken in the Secret of "
                "spec.store.credentialsSecretRef, or the rights on the bucket of the key, or of the role of "
                "spec.store.webIdentity"
            ),
            Fault.CLOCK: (
                f"the clocks of this machine and of {store} differ by more than it allows ({code}): set both "
                "right, by NTP"
            ),
            Fault.REGION: (
                f"spec.store.region {self.region!r} is not that of bucket {self.bucket!r} at {self.endpoint} "
                f"({root_cause(error)}): correct it"
            ),
            Fault.TOO_LARGE: (
                f"what stands before {store} refused {where} as too large (HTTP 413): raise its limit on the "
                "size of requests, such as proxy-body-size of an Ingress"
            ),
            Fault.FAILING: (
                f"{store}, or what stands before it, failed for {where} ({root_cause(error)}): see its log"
            ),
            Fault.NO_S3: (
                f"spec.store.endpoint {self.endpoint} does not answer as an S3 store does "
                f"({root_cause(error)}): correct the address"
            ),
            Fault.UNREACHABLE: (
                f"spec.store.endpoint {self.endpoint} cannot be reached ({root_cause(error)}): "
                "correct the address or start the store"
            ),
        }
        said = f"{code}, {error.message}" if isinstance(error, S3Error) else root_cause(error)
        message = told.get(fault, f"{store} failed for {where}: {said}")
        if proxy and fault is Fault.NO_S3:
            return StoreError(
                f"what answers for spec.store.endpoint {self.endpoint}, perhaps {proxy}, is no S3 store "
                f"({root_cause(error)}): have the proxy let the store through, exempt it by NO_PROXY, or "
                "correct the address"
            )
        if (
            proxy
            and not isinstance(error, S3Error)
            and fault not in (Fault.PROXY, Fault.CERTIFICATE, Fault.IDENTITY)
        ):
            message += f"; requests go through {proxy}: exempt the store by NO_PROXY if that is not meant"
        return StoreError(message)
