"""Watches: changes of objects, told by the API server as they happen."""

import json
from collections.abc import Callable, Iterable, Iterator

import urllib3

from trenchcoat_operator.kubernetes.errors import ApiError, error_of
from trenchcoat_operator.kubernetes.kinds import Object, Selection
from trenchcoat_operator.kubernetes.transport import Request, Transport

_SLACK_SECONDS = 10.0
"""The API server has so long to end a watch whose time is over."""

Opened = Callable[[Callable[[], None]], None]
"""Told, when there is an answer, how another thread can end the watch before its time."""


def watch(
    transport: Transport, selection: Selection, version: str, seconds: int, opened: Opened
) -> Iterator[Object]:
    """Watch events after a resource version, bookmarks among them; after so many seconds it ends.

    Raises:
        ApiError: the API server could not be reached, or does not let us.
    """
    query = selection.query | {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": str(seconds),
    }
    request = Request("GET", selection.kind.path(selection.namespace), query)
    response = transport.send(request, seconds + _SLACK_SECONDS)
    stream: urllib3.HTTPResponse = response.response
    opened(lambda: _shut_down(stream))
    try:
        if response.status != 200:
            raise error_of(response.status, str(response.reason), stream.read())
        for line in lines(stream.stream(2**16)):
            yield json.loads(line)
    except urllib3.exceptions.HTTPError as error:
        raise ApiError(0, "Unreachable", f"watch of {selection.kind.plural}: {error}") from error
    finally:
        stream.close()
        stream.release_conn()


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
