"""Opening the store that a spec names."""

import os
from pathlib import Path

from trenchcoat_api.constants import (
    ENV_ACCESS_KEY,
    ENV_SECRET_KEY,
    ENV_SESSION_TOKEN,
    ENV_WEB_IDENTITY_TOKEN_FILE,
)
from trenchcoat_api.spec import TrenchcoatSpec
from trenchcoat_s3.connection import Address, Credentials
from trenchcoat_s3.faults import IdentityError
from trenchcoat_s3.identity import WebIdentity

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
    address = Address(spec.store.endpoint, spec.store.region, spec.store.ca_bundle)
    store = S3Store(address, spec.store.bucket, _identity(spec) or _credentials(spec))
    store.check(spec.store.prefix + "/")
    return store


def _identity(spec: TrenchcoatSpec) -> WebIdentity | None:
    """Who asks by a token, if spec.store says so."""
    wanted = spec.store.web_identity
    if wanted is None:
        return None
    return WebIdentity(
        sts_endpoint=wanted.sts_endpoint or spec.store.endpoint,
        role_arn=wanted.role_arn,
        subject=f"ServiceAccount {wanted.service_account_name!r} for {wanted.audience}",
        ca_bundle=spec.store.ca_bundle,
        token=_read_token,
    )


def _read_token() -> str:
    """The token as it stands in its file now: the kubelet writes another before it is over.

    Raises:
        IdentityError: there is none.
    """
    file = os.environ.get(ENV_WEB_IDENTITY_TOKEN_FILE, "")
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"the token of {ENV_WEB_IDENTITY_TOKEN_FILE} cannot be read ({error})") from error


def _credentials(spec: TrenchcoatSpec) -> Credentials:
    """The access key of the environment.

    Raises:
        StoreError: there is none.
    """
    access_key, secret_key = read_secret(ENV_ACCESS_KEY), read_secret(ENV_SECRET_KEY)
    if not access_key or not secret_key:
        raise StoreError(
            f"the environment has no {ENV_ACCESS_KEY} and {ENV_SECRET_KEY} for {spec.store.endpoint}: "
            "set them, or use a folder with --store"
        )
    return Credentials(access_key, secret_key, read_secret(ENV_SESSION_TOKEN))
