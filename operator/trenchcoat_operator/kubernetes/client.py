"""A small client for the API server: objects in, objects out, every failure one typed error."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import client as library
from kubernetes import config as library_config
from kubernetes.config.config_exception import ConfigException
from trenchcoat_api import constants

Object = dict[str, Any]

FIELD_MANAGER = "trenchcoat-operator"
_TIMEOUT = (5.0, 30.0)  # to connect, to read
_PAGE = 500


class ApiError(Exception):
    """The API server said no, or said nothing."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFoundError(ApiError):
    """There is no such object, or no such kind of object."""


class ConflictError(ApiError):
    """The object is another than was thought, or somebody else was quicker."""


class AlreadyExistsError(ConflictError):
    """The object is there already."""


class ForbiddenError(ApiError):
    """The operator's role does not allow it."""


_ERRORS: dict[int, type[ApiError]] = {403: ForbiddenError, 404: NotFoundError, 409: ConflictError}


@dataclass(frozen=True, slots=True)
class Kind:
    """Where a kind of objects stands in the API."""

    group_version: str
    plural: str

    def path(self, namespace: str = "", name: str = "") -> str:
        """URL path of all objects, those of a namespace, or one."""
        root = "/api/" if "/" not in self.group_version else "/apis/"
        parts = [root + self.group_version]
        if namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name:
            parts.append(name)
        return "/".join(parts)


TRENCHCOATS = Kind(constants.API_VERSION, constants.PLURAL)
JOBS = Kind("batch/v1", "jobs")
PYTORCH_JOBS = Kind("kubeflow.org/v1", "pytorchjobs")
PODS = Kind("v1", "pods")
NODES = Kind("v1", "nodes")
SECRETS = Kind("v1", "secrets")
CONFIG_MAPS = Kind("v1", "configmaps")
EVENTS = Kind("v1", "events")
WORKLOADS = Kind("kueue.x-k8s.io/v1beta2", "workloads")

KINDS = {"Job": JOBS, "PyTorchJob": PYTORCH_JOBS, "ConfigMap": CONFIG_MAPS}


def request_labels(method: str, path: str, content_type: str) -> tuple[str, str]:
    """The verb, as Kubernetes calls it, and the resource of a request."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]  # api/v1/..., apis/GROUP/VERSION/...
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    plural, one, subresource = parts[0], len(parts) > 1, "/".join(parts[2:])
    match method:
        case "GET":
            verb = "get" if one else "list"
        case "POST":
            verb = "create"
        case "PATCH" if content_type.startswith("application/apply-patch"):
            verb = "apply"
        case _:
            verb = method.lower()
    return verb, f"{plural}/{subresource}" if subresource else plural


RequestObserver = Callable[[str, str, int, float], None]
"""Told of every request: verb, resource, HTTP status (0 for no answer), seconds."""


def _unobserved(verb: str, resource: str, code: int, seconds: float) -> None:
    pass


class Cluster:
    """The API server."""

    def __init__(self, api: library.ApiClient, observe: RequestObserver = _unobserved) -> None:
        self._api = api
        self._observe = observe

    @classmethod
    def connect(cls, observe: RequestObserver = _unobserved) -> "Cluster":
        """Find the API server: inside a pod by its service account, elsewhere by the kubeconfig."""
        configuration = library.Configuration()
        configuration.connection_pool_maxsize = 32
        configuration.retries = urllib3.Retry(total=2, backoff_factor=0.2, allowed_methods={"GET"})
        try:
            library_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            library_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(library.ApiClient(configuration), observe)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Read one object.

        Raises:
            NotFoundError: there is none.
            ApiError: anything else.
        """
        return self._call("GET", kind.path(namespace, name))

    def list(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", cached: bool = False
    ) -> Iterator[Object]:
        """Read all objects of a kind, in pages.

        Args:
            kind: The kind of objects.
            namespace: Where; everywhere if empty.
            labels: Label selector.
            fields: Field selector.
            cached: Whether the API server may answer from its cache, which may be a moment old.

        Raises:
            NotFoundError: the cluster knows no such kind.
            ApiError: anything else.
        """
        for page in self._pages(kind, namespace, labels, fields, cached=cached):
            yield from page.get("items") or []

    def _pages(
        self, kind: Kind, namespace: str, labels: str, fields: str, *, cached: bool = False
    ) -> Iterator[Object]:
        query = {"labelSelector": labels, "fieldSelector": fields}
        if cached:
            query["resourceVersion"] = "0"
        else:
            query["limit"] = str(_PAGE)
        while True:
            page = self._call("GET", kind.path(namespace), query={k: v for k, v in query.items() if v})
            yield page
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query["continue"] = token

    def create(self, kind: Kind, manifest: Object) -> Object:
        """Make an object.

        Raises:
            AlreadyExistsError: it is there already.
        """
        path = kind.path(manifest["metadata"]["namespace"])
        return self._call("POST", path, query={"fieldManager": FIELD_MANAGER}, body=manifest)

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
            self._call("DELETE", kind.path(namespace, name), body=options)
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
        return self._call(
            "PATCH",
            kind.path(namespace, name),
            query={"fieldManager": FIELD_MANAGER},
            body=change,
            content_type="application/merge-patch+json",
        )

    def snapshot(
        self, kind: Kind, namespace: str = "", *, labels: str, fields: str
    ) -> tuple[tuple[Object, ...], str]:
        """All objects of a kind, and the resource version at which they stood so.

        Raises:
            NotFoundError: the cluster knows no such kind.
            ApiError: anything else.
        """
        pages = list(self._pages(kind, namespace, labels, fields))
        bodies = tuple(body for page in pages for body in page.get("items") or ())
        return bodies, pages[-1]["metadata"]["resourceVersion"]

    def changes(
        self,
        kind: Kind,
        namespace: str,
        version: str,
        *,
        labels: str,
        fields: str,
        seconds: int,
        opened: Callable[[Callable[[], None]], None],
    ) -> Iterator[Object]:
        """Watch events after a resource version, bookmarks among them.

        Args:
            kind: The kind of objects.
            namespace: Where; everywhere if empty.
            version: The resource version.
            labels: Label selector.
            fields: Field selector.
            seconds: After so many it ends.
            opened: Told, when there is an answer, how another thread can end it before.

        Raises:
            ApiError: the API server could not be reached, or does not let us.
        """
        query = {
            "labelSelector": labels,
            "fieldSelector": fields,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        query = {name: value for name, value in query.items() if value}
        response = self._send("GET", kind.path(namespace), query, None, "", (_TIMEOUT[0], seconds + 10.0))
        stream: urllib3.HTTPResponse = response.response
        opened(lambda: _shut_down(stream))
        try:
            if response.status != 200:
                raise _error(response.status, str(response.reason), stream.read())
            for line in lines(stream.stream(2**16)):
                yield json.loads(line)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"watch of {kind.plural}: {error}") from error
        finally:
            stream.close()
            stream.release_conn()

    def fail_pod(self, namespace: str, name: str, reason: str, message: str) -> None:
        """Say of a pod that it failed."""
        self._call(
            "PATCH",
            PODS.path(namespace, name) + "/status",
            query={"fieldManager": FIELD_MANAGER},
            body={"status": {"phase": "Failed", "reason": reason, "message": message}},
            content_type="application/merge-patch+json",
        )

    def write_status(self, kind: Kind, namespace: str, name: str, uid: str, status: Object) -> Object:
        """Replace the whole status of an object, if it is still the same object, and return the object."""
        return self._call(
            "PATCH",
            kind.path(namespace, name) + "/status",
            query={"fieldManager": FIELD_MANAGER},
            body=[
                {"op": "test", "path": "/metadata/uid", "value": uid},
                {"op": "add", "path": "/status", "value": status},
            ],
            content_type="application/json-patch+json",
        )

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        labels, begun, code = request_labels(method, path, content_type), time.monotonic(), 0
        try:
            response = self._send(method, path, query or {}, body, content_type, _TIMEOUT)
            data: bytes = response.read() or b""  # type: ignore[no-untyped-call]
            code = int(response.status)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error}") from error
        finally:
            self._observe(*labels, code, time.monotonic() - begun)
        if 200 <= response.status <= 299:
            result: Object = json.loads(data)
            return result
        raise _error(response.status, str(response.reason), data)

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Any,
        content_type: str,
        timeout: tuple[float, float],
    ) -> library.rest.RESTResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        request = self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            return self._api.call_api(*request, _request_timeout=timeout)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error}") from error


def _shut_down(stream: urllib3.HTTPResponse) -> None:
    try:
        stream.shutdown()
    except (ValueError, RuntimeError, OSError):
        return  # it has ended by itself


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines of a stream that comes in pieces."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line)


def _error(status: int, reason: str, data: bytes) -> ApiError:
    message = data.decode(errors="replace")[:2000]
    try:
        answer = json.loads(data)
        reason, message = str(answer.get("reason") or reason), str(answer.get("message") or message)
    except (ValueError, AttributeError):
        pass  # a proxy's answer, which is no Status; its text says what there is to say
    if reason == "AlreadyExists":
        return AlreadyExistsError(status, reason, message)
    return _ERRORS.get(status, ApiError)(status, reason, message)
