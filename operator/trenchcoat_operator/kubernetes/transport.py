"""Requests to the API server and their answers; every failure is one typed error."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3
from kubernetes import client as library

from trenchcoat_operator.kubernetes.errors import ApiError, error_of
from trenchcoat_operator.kubernetes.kinds import Object

_CONNECT_SECONDS, _READ_SECONDS = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = "application/json"
    """Of the body."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def labels(self) -> tuple[str, str]:
        """The verb, as Kubernetes calls it, and the resource."""
        return request_labels(self.method, self.path, self.content_type)


def request_labels(method: str, path: str, content_type: str) -> tuple[str, str]:
    """The verb, as Kubernetes calls it, and the resource of a request."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]  # api/v1/..., apis/GROUP/VERSION/...
    if not parts:
        return "discover", "apis"  # what the API server serves
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


def unobserved(verb: str, resource: str, code: int, seconds: float) -> None:
    """Told of requests, it does nothing."""


class Transport:
    """Sends requests with the credentials of an API client."""

    def __init__(self, api: library.ApiClient, observe: RequestObserver = unobserved) -> None:
        self._api = api
        self._observe = observe

    def call(self, request: Request) -> Object:
        """Send a request and read the whole answer.

        Raises:
            ApiError: the API server said no, or could not be reached.
        """
        begun, code = time.monotonic(), 0
        try:
            response = self.send(request, _READ_SECONDS)
            data: bytes = response.read() or b""  # type: ignore[no-untyped-call]
            code = int(response.status)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{request}: {error}") from error
        finally:
            self._observe(*request.labels, code, time.monotonic() - begun)
        if 200 <= response.status <= 299:
            result: Object = json.loads(data)
            return result
        raise error_of(response.status, str(response.reason), data)

    def send(self, request: Request, read_seconds: float) -> library.rest.RESTResponse:
        """Send a request; the answer is not read yet, whatever its status.

        Raises:
            ApiError: the API server could not be reached.
        """
        headers = {"Accept": "application/json"}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        arguments = self._api.param_serialize(
            request.method,
            request.path,
            query_params=list(request.query.items()),
            header_params=headers,
            body=request.body,
            auth_settings=["BearerToken"],
        )
        try:
            return self._api.call_api(*arguments, _request_timeout=(_CONNECT_SECONDS, read_seconds))
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"{request}: {error}") from error
