"""Objects followed by lists and watches: what is missed by one is mended by the next."""

import time
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
from trenchcoat_operator.kubernetes import informer as informer_module
from trenchcoat_operator.kubernetes.errors import ApiError, NotFoundError
from trenchcoat_operator.kubernetes.informer import Informer
from trenchcoat_operator.kubernetes.kinds import PODS, Selection

from tests.waiting import until


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

    def changes(self, chosen: Any, version: str, *, opened: Any, **_: Any) -> Iterator[dict[str, Any]]:
        self.watched_from.append(version)
        opened(lambda: self.events.put(None))
        while (event := self.events.get(timeout=600)) is not None:
            if isinstance(event, ApiError):
                raise event
            yield event


def named(informer: Informer[str]) -> list[str]:
    return sorted(informer.items())


def following(api: Api, **more: Any) -> Informer[str]:
    def read(body: dict[str, Any]) -> str | None:
        if body.get("unreadable"):
            raise KeyError("status")
        return None if body.get("uninteresting") else body["metadata"]["name"]

    return Informer(api, Selection(PODS), read, **more)


@pytest.fixture
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault nothing is listed until it is hurried, so that no look for the fault comes too late."""
    monkeypatch.setattr(informer_module, "_SHORTEST_PAUSE", 600.0)
    monkeypatch.setattr(informer_module, "_LONGEST_PAUSE", 600.0)


def hurried(informer: Informer[str], name: str) -> bool:
    informer.hurry()
    return ("ml", name) in informer._seen


@pytest.fixture
def stops():
    """Informers whose threads are to end with the test."""
    made: list[tuple[Informer[str], Api]] = []

    def make(api: Api, **more: Any) -> Informer[str]:
        made.append((following(api, **more), api))
        return made[-1][0]

    yield make
    for informer, _ in made:
        informer.stop()


def test_what_is_listed_and_what_changes_after(stops):
    api = Api([pod("a", 1), pod("b", 2), pod("c", 3, uninteresting=True)])
    informer = stops(api)
    assert named(informer) == ["a", "b"]
    assert [informer.get(("ml", name)) for name in ("a", "c", "d")] == ["a", None, None]
    api.events.put({"type": "ADDED", "object": pod("d", 101)})
    assert informer.wait_for([("ml", "d")], 120)
    assert informer.get(("ml", "d")) == "d"
    assert named(informer) == ["a", "b", "d"]
    api.events.put({"type": "DELETED", "object": pod("a", 102)})
    api.events.put({"type": "MODIFIED", "object": pod("b", 103, uninteresting=True)})
    api.events.put({"type": "ADDED", "object": pod("e", 104)})
    assert informer.wait_for([("ml", "e")], 120)
    assert named(informer) == ["d", "e"]


def test_a_watch_that_ends_is_gone_on_with_from_where_it_was(stops):
    api = Api([pod("a", 1)])
    informer = stops(api)
    assert named(informer) == ["a"]
    api.events.put({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "150"}}})
    api.events.put(None)
    api.events.put({"type": "ADDED", "object": pod("b", 151)})
    assert informer.wait_for([("ml", "b")], 120)
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
    informer = stops(api)
    assert named(informer) == ["a", "b"]
    api.events.put(expired)
    assert informer.wait_for([("ml", "c")], 120)
    assert named(informer) == ["b", "c"]


def test_an_error_is_told_until_it_is_over(stops, no_second_try):
    api = Api(NotFoundError(404, "NotFound", "no such kind"), [pod("a", 1)])
    informer = stops(api)
    with pytest.raises(NotFoundError):
        informer.items()
    until(lambda: hurried(informer, "a"), 120, "it is listed again")
    assert named(informer) == ["a"]


def test_what_cannot_be_read_is_told_in_place_of_what_was_read_before(stops, no_second_try):
    api = Api([pod("a", 1)], [pod("a", 2, unreadable=True)], [pod("a", 3), pod("b", 4)])
    informer = stops(api)
    assert named(informer) == ["a"]
    api.events.put({"type": "MODIFIED", "object": pod("a", 2, unreadable=True)})
    with pytest.raises(ApiError, match="KeyError"):
        for _ in range(2400):
            informer.items()
            time.sleep(0.05)
    until(lambda: hurried(informer, "b"), 120, "it can be read again")
    assert named(informer) == ["a", "b"]


def test_nothing_is_read_before_the_first_look():
    api = Api(ApiError(500, "", ""))
    informer = following(api)
    assert informer.wait_for([("ml", "a")], 0)
    assert informer._thread is None


def test_what_was_written_and_is_not_told_of_is_listed_before_anything_is_looked_at(stops):
    """A watch can be late, or silent for good; who decided meanwhile would do the same once more."""
    api = Api([pod("a", 1), pod("b", 2)], [pod("b", 2), pod("c", 90)])
    informer = stops(api)
    assert named(informer) == ["a", "b"]
    assert not informer.wait_for([("ml", "c")], 0.01, deleted=[("ml", "a")])
    assert named(informer) == ["b", "c"]
    assert informer.wait_for([("ml", "c")], 0, deleted=[("ml", "a")])


def first_letter(name: str) -> str:
    return name[0]


def test_looked_up_by_an_index(stops):
    api = Api([pod("a1", 1), pod("a2", 2), pod("b1", 3)], [pod("a2", 9), pod("b2", 10)])
    informer = stops(api, index=first_letter)
    assert sorted(informer.at("a")) == ["a1", "a2"]
    assert informer.at("c") == []
    api.events.put({"type": "DELETED", "object": pod("a1", 101)})
    api.events.put({"type": "MODIFIED", "object": pod("b1", 102, uninteresting=True)})
    api.events.put({"type": "ADDED", "object": pod("c1", 103)})
    assert informer.wait_for([("ml", "c1")], 120, deleted=[("ml", "a1")])
    assert (informer.at("a"), informer.at("b"), informer.at("c")) == (["a2"], [], ["c1"])
    api.events.put(ApiError(410, "Expired", "too old"))
    assert informer.wait_for([("ml", "b2")], 120)
    assert (informer.at("a"), informer.at("b"), informer.at("c")) == (["a2"], ["b2"], [])


def test_changes_are_told_once_they_can_be_seen_and_only_changes(stops):
    told: list[tuple[str | None, str | None]] = []
    api = Api([pod("a", 1), pod("b", 2)], [pod("b", 20), pod("d", 21)])
    informer = stops(api, notice=lambda before, after: told.append((before, after)))
    assert named(informer) == ["a", "b"]
    api.events.put({"type": "MODIFIED", "object": pod("a", 101)})  # in nothing that is kept
    api.events.put({"type": "ADDED", "object": pod("c", 102)})
    api.events.put({"type": "MODIFIED", "object": pod("b", 103, uninteresting=True)})
    api.events.put({"type": "DELETED", "object": pod("c", 104)})
    assert informer.wait_for([], 120, deleted=[("ml", "c")])
    # What happened while nobody watched is told at the next list.
    api.events.put(ApiError(410, "Expired", "too old"))
    assert informer.wait_for([("ml", "d")], 120)
    until(lambda: len(told) == 6, 120, "all is told")
    assert told[:3] == [(None, "c"), ("b", None), ("c", None)]
    assert sorted(told[3:], key=str) == [("a", None), (None, "b"), (None, "d")]


def test_a_stop_ends_a_watch_at_once(stops):
    informer = stops(Api([pod("a", 1)]))
    informer.items()
    until(lambda: informer._end_watch is not None, 120, "a watch goes on")
    informer.stop()
    informer._thread.join(120)
    assert not informer._thread.is_alive()


def test_the_end_that_was_asked_for_is_no_fault(stops, caplog):
    class Cut(Api):
        def changes(self, *arguments: Any, opened: Any, **more: Any) -> Iterator[dict[str, Any]]:
            opened(lambda: self.events.put(ApiError(0, "Unreachable", "Response ended prematurely")))
            yield self._raise_next()

        def _raise_next(self) -> Any:
            raise self.events.get(timeout=600)

    informer = stops(Cut([pod("a", 1)]))
    assert named(informer) == ["a"]
    informer.stop()
    informer._thread.join(120)
    assert not informer._thread.is_alive()
    assert caplog.records == []
