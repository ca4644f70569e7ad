"""A small client for the API server: objects in, objects out, a method for each verb."""

from collections.abc import Iterator

import urllib3
import yaml
from kubernetes import client as library
from kubernetes import config as library_config
from kubernetes.config.config_exception import ConfigException
from trenchcoat_api import constants

from trenchcoat_operator.kubernetes.errors import NoClusterError, NotFoundError
from trenchcoat_operator.kubernetes.kinds import (
    PODS,
    SERVICE_ACCOUNTS,
    SUBJECT_ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    Kind,
    Object,
    Selection,
)
from trenchcoat_operator.kubernetes.transport import Request, RequestObserver, Transport, unobserved
from trenchcoat_operator.kubernetes.watch import Opened, watch

FIELD_MANAGER = "trenchcoat-operator"
_PAGE = 500
_MANAGED = {"fieldManager": FIELD_MANAGER}
_MERGE_PATCH = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_REVIEWS = {TOKEN_REVIEWS: "TokenReview", SUBJECT_ACCESS_REVIEWS: "SubjectAccessReview"}


class Cluster:
    """The API server."""

    def __init__(self, api: library.ApiClient, observe: RequestObserver = unobserved) -> None:
        self._transport = Transport(api, observe)

    @classmethod
    def connect(cls, observe: RequestObserver = unobserved) -> "Cluster":
        """Find the API server: inside a pod by its service account, elsewhere by the kubeconfig.

        Raises:
            NoClusterError: neither is there, or the kubeconfig cannot be used.
        """
        configuration = library.Configuration()
        configuration.connection_pool_maxsize = 32
        configuration.retries = urllib3.Retry(total=2, backoff_factor=0.2, allowed_methods={"GET"})
        try:
            library_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            try:
                library_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except (ConfigException, OSError, yaml.YAMLError) as error:
                told = " ".join(str(error).split())
                raise NoClusterError(
                    "no API server can be found: there is no ServiceAccount's token of a pod, and "
                    f"the kubeconfig, KUBECONFIG or ~/.kube/config, cannot be used ({told}): set KUBECONFIG"
                ) from error
        return cls(library.ApiClient(configuration), observe)

    def serves(self, kind: Kind) -> bool:
        """Whether the API server names a kind among those that it serves: its group, and in it the kind.

        Raises:
            ApiError: it could not be asked.
        """
        groups = self._call(Request("GET", "/apis")).get("groups") or []
        versions = [item["groupVersion"] for group in groups for item in group["versions"]]
        if kind.group_version not in versions:
            return False
        try:
            there = self._call(Request("GET", f"/apis/{kind.group_version}"))
        except NotFoundError:
            return False
        return any(item["name"] == kind.plural for item in there.get("resources") or [])

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Read one object.

        Raises:
            NotFoundError: there is none.
            ApiError: anything else.
        """
        return self._call(Request("GET", kind.path(namespace, name)))

    def list(self, selection: Selection, *, cached: bool = False) -> Iterator[Object]:
        """Read all objects of a selection, in pages.

        Args:
            selection: Which objects.
            cached: Whether the API server may answer from its cache, which may be a moment old.

        Raises:
            NotFoundError: the cluster knows no such kind.
            ApiError: anything else.
        """
        for page in self._pages(selection, cached=cached):
            yield from page.get("items") or []

    def _pages(self, selection: Selection, *, cached: bool = False) -> Iterator[Object]:
        query = selection.query | ({"resourceVersion": "0"} if cached else {"limit": str(_PAGE)})
        while True:
            page = self._call(Request("GET", selection.kind.path(selection.namespace), query))
            yield page
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query = query | {"continue": token}

    def snapshot(self, selection: Selection) -> tuple[tuple[Object, ...], str]:
        """All objects of a selection, and the resource version at which they stood so.

        Raises:
            NotFoundError: the cluster knows no such kind.
            ApiError: anything else.
        """
        pages = list(self._pages(selection))
        bodies = tuple(body for page in pages for body in page.get("items") or ())
        return bodies, pages[-1]["metadata"]["resourceVersion"]

    def changes(
        self, selection: Selection, version: str, *, seconds: int, opened: Opened
    ) -> Iterator[Object]:
        """Watch events after a resource version, bookmarks among them.

        Args:
            selection: Of which objects.
            version: The resource version.
            seconds: After so many it ends.
            opened: Told, when there is an answer, how another thread can end it before.

        Raises:
            ApiError: the API server could not be reached, or does not let us.
        """
        return watch(self._transport, selection, version, seconds, opened)

    def create(self, kind: Kind, manifest: Object) -> Object:
        """Make an object.

        Raises:
            AlreadyExistsError: it is there already.
        """
        path = kind.path(manifest["metadata"]["namespace"])
        return self._call(Request("POST", path, _MANAGED, manifest))

    def delete(self, kind: Kind, namespace: str, name: str, *, at_once: bool = False) -> None:
        """Delete an object; one that is gone is as well.

        Args:
            kind: The kind of object.
            namespace: Where it is.
            name: Its name.
            at_once: Whether it goes without waiting: else a pod stays until its node says that it ended, and
                anything else until what it owns is gone.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        options |= {"gracePeriodSeconds": 0} if at_once else {"propagationPolicy": "Foreground"}
        try:
            self._call(Request("DELETE", kind.path(namespace, name), body=options))
        except NotFoundError:
            return

    def merge(self, kind: Kind, namespace: str, name: str, change: Object) -> Object:
        """Change fields of an object; with metadata.resourceVersion only if nobody else changed it since.

        Returns:
            The object as it is then.

        Raises:
            NotFoundError: it is gone.
            ConflictError: somebody else changed it.
        """
        return self._call(Request("PATCH", kind.path(namespace, name), _MANAGED, change, _MERGE_PATCH))

    def token(self, namespace: str, service_account: str, audience: str) -> str:
        """A token of a ServiceAccount, for an hour.

        Raises:
            NotFoundError: there is no such ServiceAccount.
            ApiError: anything else.
        """
        path = SERVICE_ACCOUNTS.path(namespace, service_account) + "/token"
        spec = {"audiences": [audience], "expirationSeconds": constants.WEB_IDENTITY_SECONDS}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = self._call(Request("POST", path, body=body))
        return str(made["status"]["token"])

    def review(self, kind: Kind, spec: Object) -> Object:
        """Have the API server judge something, such as whom a token stands for; returns the status.

        Raises:
            ApiError: it could not be asked, or does not let us ask.
        """
        body = {"apiVersion": kind.group_version, "kind": _REVIEWS[kind], "spec": spec}
        made: Object = self._call(Request("POST", kind.path(), body=body)).get("status") or {}
        return made

    def fail_pod(self, namespace: str, name: str, reason: str, message: str) -> None:
        """Say of a pod that it failed."""
        change = {"status": {"phase": "Failed", "reason": reason, "message": message}}
        path = PODS.path(namespace, name) + "/status"
        self._call(Request("PATCH", path, _MANAGED, change, _MERGE_PATCH))

    def write_status(self, kind: Kind, namespace: str, name: str, uid: str, status: Object) -> Object:
        """Replace the whole status of an object, if it is still the same object, and return the object."""
        change = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": status},
        ]
        path = kind.path(namespace, name) + "/status"
        return self._call(Request("PATCH", path, _MANAGED, change, _JSON_PATCH))

    def _call(self, request: Request) -> Object:
        return self._transport.call(request)
