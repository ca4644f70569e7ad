"""Opening the store of a Trenchcoat with the credentials that its Secret holds."""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact, Manifest
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.spec import CredentialsSecretRef, Store
from trenchcoat_api.spec import WebIdentity as WebIdentitySpec
from trenchcoat_s3.connection import Credentials
from trenchcoat_s3.faults import IdentityError
from trenchcoat_s3.identity import WebIdentity

from trenchcoat_operator.kubernetes import kinds
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ApiError, ForbiddenError, NotFoundError
from trenchcoat_operator.storage.cache import ManifestCache, Readers, SecretCache
from trenchcoat_operator.storage.errors import SecretError
from trenchcoat_operator.storage.reader import ReadObserver, StoreReader


class Stores:
    """The stores of all Trenchcoats; keeps connections, and manifests and Secrets for a while."""

    def __init__(self, cluster: Cluster, observe: ReadObserver) -> None:
        """`observe` is told of every read."""
        self._cluster = cluster
        self._readers = Readers(observe)
        self.manifests = ManifestCache()
        self._secrets = SecretCache()

    def open(self, trenchcoat: Trenchcoat) -> StoreReader:
        """The store of a Trenchcoat.

        Raises:
            SecretError: its Secret is not there, lacks a key, or may not be read.
            ApiError: the API server could not be read.
        """
        store, namespace = trenchcoat.spec.store, trenchcoat.metadata.namespace
        if store.credentials_secret_ref is not None:
            return self._readers.open(store, self._credentials(trenchcoat, store.credentials_secret_ref))
        if store.web_identity is not None:
            return self._readers.open(store, self._identity(store, store.web_identity, namespace))
        raise SecretError(
            "StoreAccessDenied", "spec.store: neither credentialsSecretRef nor webIdentity is set: set one"
        )

    def manifest(self, reader: StoreReader, artifact: Artifact) -> Manifest | None:
        """The manifest of an artifact, as it was read before if it is still there; None if there is none.

        Raises:
            StoreError: the store cannot be used.
        """
        kept, fresh = self.manifests.get(reader, artifact)
        if kept is not None and fresh:
            return kept
        found = kept if kept is not None and reader.is_complete(artifact) else reader.manifest(artifact)
        if found is not None:
            self.manifests.put(reader, artifact, found)
        elif kept is not None:
            self.manifests.drop(artifact)
        return found

    def check_secrets(self, trenchcoat: Trenchcoat) -> None:
        """See whether the other Secrets are there that pods need: a pod without one would never start.

        Raises:
            SecretError: one is not.
            ApiError: the API server could not be read.
        """
        spec = trenchcoat.spec
        tokens = {name: getattr(spec, name).token_secret_ref for name in ("model", "data", "export")}
        for part, reference in tokens.items():
            if reference is not None:
                field = f"spec.{part}.tokenSecretRef"
                data = self._secret(trenchcoat, reference.name, field)
                _secret_value(data, reference.name, reference.key, field)
        for field, name, key in _of_trackers(trenchcoat):
            _secret_value(self._secret(trenchcoat, name, field), name, key, field, is_header=False)
        for field, name in dict.fromkeys(_mounted(trenchcoat)):
            self._secret(trenchcoat, name, field)

    def forget_secrets(self, namespace: str) -> None:
        """Read the Secrets of a namespace anew at the next look: something about them does not do."""
        self._secrets.forget(namespace)

    def _identity(self, store: Store, wanted: WebIdentitySpec, namespace: str) -> WebIdentity:
        name, audience = wanted.service_account_name, wanted.audience

        def token() -> str:
            try:
                return self._cluster.token(namespace, name, audience)
            except NotFoundError:
                raise IdentityError(f"namespace {namespace!r} has no ServiceAccount {name!r}") from None
            except ForbiddenError:
                raise IdentityError(
                    f"the operator may not ask for a token of ServiceAccount {name!r} in namespace "
                    f"{namespace!r}: name it in the chart's rbac.serviceAccountNames"
                ) from None
            except ApiError as error:
                raise IdentityError(f"no token of ServiceAccount {name!r}: {error}") from error

        return WebIdentity(
            sts_endpoint=wanted.sts_endpoint or store.endpoint,
            role_arn=wanted.role_arn,
            subject=f"ServiceAccount {name!r} in namespace {namespace!r} for {audience}",
            ca_bundle=store.ca_bundle,
            token=token,
        )

    def _credentials(self, trenchcoat: Trenchcoat, reference: CredentialsSecretRef) -> Credentials:
        field = "spec.store.credentialsSecretRef"
        name, keys = reference.name, reference.keys
        data = self._secret(trenchcoat, name, field)
        access_key = _secret_value(data, name, keys.access_key, field)
        # A secret key goes into no header: signatures are made of it.
        secret_key = _secret_value(data, name, keys.secret_key, field, is_header=False)
        has_token = bool(data.get(keys.session_token))
        token = _secret_value(data, name, keys.session_token, field) if has_token else None
        return Credentials(access_key, secret_key, token)

    def _secret(self, trenchcoat: Trenchcoat, name: str, field: str) -> dict[str, str]:
        namespace = trenchcoat.metadata.namespace
        kept = self._secrets.get(namespace, name)
        if kept is not None:
            return kept
        try:
            body = self._cluster.get(kinds.SECRETS, namespace, name)
        except NotFoundError as error:
            raise SecretError(
                "SecretNotFound",
                f"{field}: namespace {namespace!r} has no Secret {name!r}: create it, or name another",
            ) from error
        except ForbiddenError as error:
            raise SecretError(
                "SecretForbidden",
                f"{field}: the operator may not read Secret {name!r} in namespace {namespace!r}: "
                "check the chart's watchNamespaces and rbac.secretNames",
            ) from error
        data: dict[str, str] = body.get("data") or {}
        self._secrets.put(namespace, name, data)
        return data


def _of_trackers(trenchcoat: Trenchcoat) -> Iterator[tuple[str, str, str]]:
    """Field, name and key of each Secret that trackers need."""
    tracking = trenchcoat.spec.tracking
    mlflow = tracking.ml_flow if tracking is not None else None
    if mlflow is not None and (token := mlflow.token_secret_ref) is not None:
        yield "spec.tracking.mlflow.tokenSecretRef", token.name, token.key
    if mlflow is not None and (basic := mlflow.basic_auth_secret_ref) is not None:
        for key in (constants.BASIC_AUTH_USER, constants.BASIC_AUTH_PASSWORD):
            yield "spec.tracking.mlflow.basicAuthSecretRef", basic.name, key
    if tracking is not None and tracking.trackio is not None:
        token = tracking.trackio.token_secret_ref
        yield "spec.tracking.trackio.tokenSecretRef", token.name, token.key


def _mounted(trenchcoat: Trenchcoat) -> Iterator[tuple[str, str]]:
    """Field and name of each Secret that users' volumes need; a pod waits for it in silence."""
    for name in type(trenchcoat.spec.pods).model_fields:
        for item in getattr(trenchcoat.spec.pods, name).volumes:
            volume: dict[str, Any] = {**item}
            field = f"spec.pods.{name}.volumes {volume.get('name')!r}"
            sources = [(volume.get("secret") or {}, "secretName")]
            projected = (volume.get("projected") or {}).get("sources") or []
            sources += [(source.get("secret") or {}, "name") for source in projected]
            for source, key in sources:
                if source.get(key) and not source.get("optional"):
                    yield field, str(source[key])


def _secret_value(data: dict[str, str], name: str, key: str, field: str, *, is_header: bool = True) -> str:
    encoded = data.get(key)
    if not encoded:
        others = f" (it has {', '.join(sorted(data))})" if data else ""
        remedy = "add it, or name another by keys" if field.endswith("credentialsSecretRef") else "add it"
        raise SecretError(
            "SecretKeyNotFound",
            f"{field}: Secret {name!r} has no key {key!r}, or it is empty{others}: {remedy}",
        )
    try:
        value = base64.b64decode(encoded).decode().strip()  # files and shells add line breaks
    except (binascii.Error, UnicodeDecodeError) as error:
        raise SecretError(
            "SecretKeyNotFound", f"{field}: key {key!r} of Secret {name!r} is no text: set it anew"
        ) from error
    if not value or (is_header and not all("!" <= character <= "~" for character in value)):
        raise SecretError(
            "SecretKeyNotFound",
            f"{field}: key {key!r} of Secret {name!r} is empty, or holds a blank, a line break or another "
            "character that no key or token has: put the bare value there",
        )
    return value
