"""Objects followed by lists and watches: what is missed by one is mended by the next."""

import threading
import time
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
from trenchcoat_operator.kubernetes.client import PODS, ApiError, NotFoundError
from trenchcoat_operator.kubernetes.reflector import Reflector


def pod(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "ml", "name": name, "resourceVersion": str(version)}, **more}


class Api:
    """An API server in a script: lists one after another, and what each watch tells until it ends."""

    def __init__(self, *lists: list[dict[str, Any]] | ApiError) -> None:
        self.lists = list(lists)
        self.events: Queue[dict[str, Any] | ApiError | None] = Queue()
        self.watched_from: list[str] = []

    def snapshot(self, *_: Any, **__: Any) -> tuple[tuple[dict[str, Any], ...], str]:
        found = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(found, ApiError):
            raise found
        return tuple(found), "100"

    def changes(self, kind: Any, namespace: str, version: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.watched_from.append(version)
        while (event := self.events.get(timeout=10)) is not None:
            if isinstance(event, ApiError):
                raise event
            yield event


def named(reflector: Reflector[str]) -> list[str]:
    return sorted(reflector.items())


def following(api: Api) -> Reflector[str]:
    def read(body: dict[str, Any]) -> str | None:
        if body.get("unreadable"):
            raise KeyError("status")
        return None if body.get("uninteresting") else body["metadata"]["name"]

    return Reflector(api, PODS, read)


@pytest.fixture
def stops():
    """Reflectors whose threads are to end with the test."""
    made: list[tuple[Reflector[str], Api]] = []
    yield lambda api: (made.append((following(api), api)), made[-1][0])[1]
    for reflector, api in made:
        reflector.stop()
        api.events.put(None)


def test_what_is_listed_and_what_changes_after(stops):
    api = Api([pod("a", 1), pod("b", 2), pod("c", 3, uninteresting=True)])
    reflector = stops(api)
    assert named(reflector) == ["a", "b"]
    api.events.put({"type": "ADDED", "object": pod("d", 101)})
    assert reflector.wait_for([("ml", "d")], 5)
    assert named(reflector) == ["a", "b", "d"]
    api.events.put({"type": "DELETED", "object": pod("a", 102)})
    api.events.put({"type": "MODIFIED", "object": pod("b", 103, uninteresting=True)})
    api.events.put({"type": "ADDED", "object": pod("e", 104)})
    assert reflector.wait_for([("ml", "e")], 5)
    assert named(reflector) == ["d", "e"]


def test_a_watch_that_ends_is_gone_on_with_from_where_it_was(stops):
    api = Api([pod("a", 1)])
    reflector = stops(api)
    assert named(reflector) == ["a"]
    api.events.put({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "150"}}})
    api.events.put(None)
    api.events.put({"type": "ADDED", "object": pod("b", 151)})
    assert reflector.wait_for([("ml", "b")], 5)
    assert api.watched_from == ["100", "150"]


@pytest.mark.parametrize(
    "expired",
    [
        ApiError(410, "Expired", "too old resource version"),
        {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}},
    ],
)
def test_a_version_that_is_too_old_begins_with_a_list_so_that_no_deletion_is_missed(stops, expired):
    api = Api([pod("a", 1), pod("b", 2)], [pod("b", 2), pod("c", 90)])
    reflector = stops(api)
    assert named(reflector) == ["a", "b"]
    api.events.put(expired)
    assert reflector.wait_for([("ml", "c")], 5)
    assert named(reflector) == ["b", "c"]


def test_an_error_is_told_until_it_is_over(stops):
    api = Api(NotFoundError(404, "NotFound", "no such kind"), [pod("a", 1)])
    reflector = stops(api)
    with pytest.raises(NotFoundError):
        reflector.items()
    assert reflector.wait_for([("ml", "a")], 5)
    assert named(reflector) == ["a"]


def test_what_cannot_be_read_is_told_in_place_of_what_was_read_before(stops):
    api = Api([pod("a", 1)], [pod("a", 2, unreadable=True)], [pod("a", 3), pod("b", 4)])
    reflector = stops(api)
    assert named(reflector) == ["a"]
    api.events.put({"type": "MODIFIED", "object": pod("a", 2, unreadable=True)})
    with pytest.raises(ApiError, match="KeyError"):
        for _ in range(100):
            reflector.items()
            time.sleep(0.05)
    assert reflector.wait_for([("ml", "b")], 5)
    assert named(reflector) == ["a", "b"]


def test_nothing_is_read_before_the_first_look():
    api = Api(ApiError(500, "", ""))
    before = threading.active_count()
    assert following(api).wait_for([("ml", "a")], 0)
    assert threading.active_count() == before
