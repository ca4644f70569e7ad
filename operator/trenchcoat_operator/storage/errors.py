"""What is told when a store cannot be used: the field of the spec at fault, and the remedy."""

from minio.error import S3Error
from trenchcoat_api.spec import Store
from trenchcoat_s3.faults import Fault, fault_of, root_cause
from trenchcoat_s3.proxies import proxied


class StoreError(Exception):
    """The store cannot be used; the reason is a condition's, the message names the field and the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class UnreadableError(StoreError):
    """An object that holds something else than it should."""


class SecretError(StoreError):
    """A Secret that cannot be used."""


def explained(store: Store, error: Exception) -> StoreError:
    """What to tell of an error of the client's.

    Args:
        store: The store as the spec names it.
        error: What was raised.
    """
    fault = fault_of(error)
    code = error.code if isinstance(error, S3Error) else ""
    if fault is Fault.NO_BUCKET:
        return StoreError(
            "BucketNotFound",
            f"spec.store.bucket: {store.endpoint} has no bucket {store.bucket!r}: create it, or name "
            "one that exists",
        )
    if fault is Fault.REFUSED:
        return StoreError(
            "StoreAccessDenied",
            f"{_field(store)}: {store.endpoint} refused the access key for bucket "
            f"{store.bucket!r} ({code}): {_give(store, 'may list, read and write the bucket')}",
        )
    if fault is Fault.IDENTITY:
        return StoreError(
            "IdentityRefused",
            f"spec.store.webIdentity: {error}: correct it, or what the STS lets take on the role",
        )
    if fault is Fault.REGION:
        return StoreError(
            "StoreUnreachable",
            f"spec.store.region: {store.region!r} is not that of bucket {store.bucket!r} at {store.endpoint} "
            f"({root_cause(error)}): correct it",
        )
    if fault is Fault.CERTIFICATE:
        return StoreError(
            "StoreUnreachable",
            f"spec.store.caBundle: the certificate of {store.endpoint} is not trusted "
            f"({root_cause(error)}): put the certificate there that it is signed by",
        )
    proxy = proxied(store.endpoint)
    if fault is Fault.PROXY:
        told = (
            f"cannot be reached through {proxy or 'a proxy'} ({root_cause(error)}): have the proxy let it "
            "through, or exempt it by NO_PROXY"
        )
    elif fault is Fault.CLOCK:
        told = "and the operator have clocks that differ by more than it allows: set both right, by NTP"
    elif isinstance(error, S3Error):
        told = f"answered {code}: {error.message}"
    elif fault is Fault.NO_S3 and proxy:
        told = (
            f"is not what answers, perhaps {proxy} does ({root_cause(error)}): have the proxy let the store "
            "through, exempt it by NO_PROXY, or correct the URL"
        )
    elif fault is Fault.NO_S3:
        told = f"does not answer as an S3 store: set it to the URL of the S3 API ({root_cause(error)})"
    elif fault in (Fault.FAILING, Fault.TOO_LARGE):
        told = f"or what stands before it fails: see its log ({root_cause(error)})"
    else:
        told = f"cannot be reached: check the URL, the name and the network ({root_cause(error)})"
    if proxy and not isinstance(error, S3Error) and fault not in (Fault.PROXY, Fault.NO_S3):
        told += f"; requests go through {proxy}: exempt the store by NO_PROXY if that is not meant"
    return StoreError("StoreUnreachable", f"spec.store.endpoint: {store.endpoint} {told}")


def undeletable(store: Store, path: str, code: str) -> StoreError:
    """What to tell of an object that the store does not let go."""
    return StoreError(
        "StoreAccessDenied",
        f"{_field(store)}: s3://{store.bucket}/{path} cannot be "
        f"deleted ({code}): {_give(store, 'may delete objects')}",
    )


def _field(store: Store) -> str:
    """The field that says who asks."""
    return f"spec.store.{'webIdentity' if store.credentials_secret_ref is None else 'credentialsSecretRef'}"


def _give(store: Store, right: str) -> str:
    """How whoever asks is given a right."""
    if store.credentials_secret_ref is None:
        return f"have the role be one that {right}"
    return f"put a key that {right} into Secret {store.credentials_secret_ref.name!r}"
