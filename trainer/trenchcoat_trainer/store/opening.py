"""Opening the store that a spec names."""

from pathlib import Path

from trenchcoat_api.constants import ENV_ACCESS_KEY, ENV_SECRET_KEY, ENV_SESSION_TOKEN
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_s3.connection import Address, Credentials

from trenchcoat_trainer.errors import StoreError
from trenchcoat_trainer.store.base import Store
from trenchcoat_trainer.store.credentials import read_secret
from trenchcoat_trainer.store.folder import FolderStore
from trenchcoat_trainer.store.s3 import S3Store


def open_store(spec: TrenchcoatSpec, folder: Path | None = None) -> Store:
    """Open the bucket of `spec.store`, or the folder of that name below `folder`.

    Raises:
        StoreError: the endpoint cannot be reached, the credentials are missing or refused, or there is no
            such bucket; the message names the field at fault.
    """
    if folder is not None:
        return FolderStore(folder / spec.store.bucket)
    access_key, secret_key = read_secret(ENV_ACCESS_KEY), read_secret(ENV_SECRET_KEY)
    if not access_key or not secret_key:
        raise StoreError(
            f"the environment has no {ENV_ACCESS_KEY} and {ENV_SECRET_KEY} for {spec.store.endpoint}: "
            "set them, or use a folder with --store"
        )
    credentials = Credentials(access_key, secret_key, read_secret(ENV_SESSION_TOKEN))
    address = Address(spec.store.endpoint, spec.store.region, spec.store.ca_bundle)
    store = S3Store(address, spec.store.bucket, credentials.provider())
    store.check(spec.store.prefix + "/")
    return store
