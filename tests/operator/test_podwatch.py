"""What a pod's event makes of itself."""

from typing import Any

import pytest
from trenchcoat_operator.kubernetes.client import ApiError, Cluster, lines
from trenchcoat_operator.podwatch import PodWatch
from trenchcoat_operator.queue import Key


def test_lines_come_whole_however_the_stream_is_cut() -> None:
    assert list(lines([b'{"a"', b":1}\n{", b'"b":2}\n\n', b"rest"])) == [b'{"a":1}', b'{"b":2}']


class Told(Cluster):
    """An API server that has some events and then is gone."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.watches = 0

    def watch(self, *_: Any, **__: Any) -> Any:
        self.watches += 1
        if self.watches > 1:
            raise ApiError(0, "Unreachable", "gone")
        yield from self.events


def event(kind: str, phase: str, **labels: str) -> dict[str, Any]:
    metadata = {"namespace": "ml", "name": "pod", "labels": labels}
    return {"type": kind, "object": {"metadata": metadata, "status": {"phase": phase}}}


MINE = {"trenchcoat.dev/name": "tiny"}


@pytest.mark.parametrize(
    ("seen", "noticed"),
    [
        (event("MODIFIED", "Running", **MINE), [(Key("ml", "tiny"), False)]),
        (event("MODIFIED", "Succeeded", **MINE), [(Key("ml", "tiny"), True)]),
        (event("MODIFIED", "Failed", **MINE), [(Key("ml", "tiny"), True)]),
        (event("DELETED", "Running", **MINE), [(Key("ml", "tiny"), True)]),
        (event("MODIFIED", "Running"), []),
        ({"type": "ERROR", "object": {"kind": "Status", "code": 410}}, []),
        ({"type": "BOOKMARK", "object": {}}, []),
    ],
)
def test_events(seen: dict[str, Any], noticed: list[tuple[Key, bool]]) -> None:
    found: list[tuple[Key, bool]] = []
    watch = PodWatch(Told([seen]), (), lambda key, over: found.append((key, over)))
    watch.start()
    for thread in watch._threads:
        thread.join(0.2)
    watch.stop()
    assert found == noticed
