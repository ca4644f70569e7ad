"""What is kept of the cluster, for whom, and what is told of its changes."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from queue import Queue
from typing import Any

import pytest
from trenchcoat_operator.gpus.places import UNSCHEDULABLE_GRACE
from trenchcoat_operator.kubernetes.errors import ApiError, NotFoundError
from trenchcoat_operator.kubernetes.kinds import (
    CONFIG_MAPS,
    JOBS,
    NODES,
    PODS,
    PYTORCH_JOBS,
    SERVICES,
    TRENCHCOATS,
    Kind,
    Selection,
)
from trenchcoat_operator.model.observed import ChildKind
from trenchcoat_operator.model.plan import Apply, Delete
from trenchcoat_operator.observe.informers import Informers
from trenchcoat_operator.observe.observer import Observer
from trenchcoat_operator.settings import Settings
from trenchcoat_operator.storage.access import Stores

from tests.operator.simulation import trenchcoat
from tests.waiting import until

TINY = ("ml", "tiny")
Body = dict[str, Any]


class Api:
    """An API server with some objects; of each kind, place and selector one watch goes on."""

    def __init__(self, *objects: tuple[Kind, Body], without: tuple[Kind, ...] = ()) -> None:
        self.objects = list(objects)
        self.without = without
        self.watches: dict[tuple[Kind, str, str], Queue[Body | None]] = {}
        self.opened = threading.Condition()

    def snapshot(self, chosen: Selection) -> tuple[tuple[Body, ...], str]:
        if chosen.kind in self.without:
            raise NotFoundError(404, "NotFound", "no such kind")
        found = tuple(
            body
            for other, body in self.objects
            if other == chosen.kind and chosen.namespace in ("", body["metadata"].get("namespace"))
            if selects(chosen.labels, body)
        )
        return found, "1"

    def changes(self, chosen: Selection, version: str, *, opened: Any, **_: Any) -> Iterator[Body]:
        events: Queue[Body | None] = Queue()
        with self.opened:
            self.watches[chosen.kind, chosen.namespace, chosen.labels] = events
            self.opened.notify_all()
        opened(lambda: events.put(None))
        while (event := events.get(timeout=600)) is not None:
            yield event

    def list(self, chosen: Selection, *, cached: bool = False) -> Iterator[Body]:
        yield from self.snapshot(chosen)[0]

    def get(self, kind: Kind, *_: str) -> Body:
        raise NotFoundError(404, "NotFound", f"there is no such {kind.plural}")

    def tell(self, change: str, kind: Kind, body: Body) -> None:
        body["metadata"]["resourceVersion"] = "2"
        for (watched, namespace, labels), events in self.watches.items():
            if watched == kind and namespace in ("", body["metadata"]["namespace"]) and selects(labels, body):
                events.put({"type": change, "object": body})


def selects(labels: str, body: Body) -> bool:
    managed = (body["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == "trenchcoat"
    return {
        "": True,
        "app.kubernetes.io/managed-by=trenchcoat": managed,
        "app.kubernetes.io/managed-by!=trenchcoat": not managed,
    }[labels]


def mine(name: str, *, owner: str = "tiny", namespace: str = "ml", **metadata: Any) -> Body:
    labels = {"app.kubernetes.io/managed-by": "trenchcoat", "trenchcoat.dev/name": owner}
    labels |= metadata.pop("labels", {})
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": labels, **metadata}
    }


def job(name: str, **more: Any) -> Body:
    return {**mine(name, labels={"trenchcoat.dev/stage": "cria", "trenchcoat.dev/cria": "0"}), **more}


def pod(name: str, phase: str = "Running", *, gpus: int = 1, **more: Any) -> Body:
    spec = {"nodeName": "n1", "containers": [{"resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}]}
    body = mine(name, **more)
    body["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "j", "uid": "uid-j", "controller": True}]
    return {**body, "spec": spec, "status": {"phase": phase}}


def stranger(name: str, namespace: str = "elsewhere") -> Body:
    body = pod(name, namespace=namespace)
    del body["metadata"]["labels"]
    return body


@pytest.fixture
def following() -> Iterator[Callable[..., tuple[Informers, list[tuple[tuple[str, str], bool]]]]]:
    made: list[Informers] = []

    def make(api: Api, **settings: Any) -> tuple[Informers, list[tuple[tuple[str, str], bool]]]:
        told: list[tuple[tuple[str, str], bool]] = []
        informers = Informers(api, Settings(**settings), lambda *notice: told.append(notice))  # type: ignore[arg-type]
        made.append(informers)
        return informers, told

    yield make
    for informers in made:
        informers.stop()


def test_each_sees_its_own(following) -> None:
    api = Api(
        (JOBS, job("j")),
        (JOBS, job("no-stage", metadata=mine("no-stage")["metadata"])),
        (PYTORCH_JOBS, mine("p", labels={"trenchcoat.dev/stage": "collect"})),
        (PODS, pod("j-1")),
        (PODS, pod("other-1", owner="other")),
        (CONFIG_MAPS, mine("tiny-spec-1")),
        (CONFIG_MAPS, mine("going", deletionTimestamp="2026-01-01T00:00:00Z")),
        (SERVICES, mine("tiny-ranks-1")),
    )
    informers, _ = following(api)
    assert [found.child.name for found in informers.jobs_of(ChildKind.JOB, TINY)] == ["j"]
    assert [found.child.name for found in informers.jobs_of(ChildKind.PYTORCH_JOB, TINY)] == ["p"]
    assert [(found.pod.name, found.job) for found in informers.pods_of(TINY)] == [("j-1", ("ml", "j"))]
    assert informers.beside("ConfigMap", TINY) == {"tiny-spec-1"}
    assert informers.beside("Service", TINY) == {"tiny-ranks-1"}
    assert informers.jobs_of(ChildKind.JOB, ("ml", "nobody")) == []


def test_without_a_training_operator_there_are_jobs_still(following) -> None:
    informers, _ = following(Api((JOBS, job("j")), without=(PYTORCH_JOBS,)))
    with pytest.raises(NotFoundError):
        informers.jobs_of(ChildKind.PYTORCH_JOB, TINY)
    assert [found.child.name for found in informers.jobs()] == ["j"]


@pytest.mark.parametrize(("namespaces", "others"), [((), ["strange"]), (("ml",), ["strange", "not-served"])])
def test_every_pod_counts_once(following, namespaces, others) -> None:
    """Pods of another operator's Trenchcoats hold GPUs like anybody's."""
    bodies = [pod("j-1", gpus=1), pod("not-served", gpus=2, namespace="far"), stranger("strange")]
    informers, _ = following(Api(*((PODS, body) for body in bodies)), namespaces=namespaces)
    own = [found.held for found in informers.pods()]
    assert len(own) + len(informers.held_by_others()) == 3
    assert len(informers.held_by_others()) == len(others)


def test_who_does_not_count_gpus_does_not_read_nodes(following) -> None:
    api = Api(without=(NODES,))
    informers, _ = following(api, count_gpus=False)
    informers.start()
    with api.opened:
        assert api.opened.wait_for(lambda: len(api.watches) == 6, 120)
    wanted = {TRENCHCOATS, CONFIG_MAPS, SERVICES, PODS, JOBS, PYTORCH_JOBS}
    assert {kind for kind, _, _ in api.watches} == wanted


def test_a_change_wakes_its_trenchcoat_and_an_end_whoever_waits(following) -> None:
    api = Api((PODS, pod("j-1")), (JOBS, job("j")))
    informers, told = following(api)
    informers.start()
    informers.pods(), informers.jobs()
    with api.opened:
        assert api.opened.wait_for(lambda: len(api.watches) == 9, 120)
    assert told == [], "what is there at the start is looked at anyway"

    def expect(*wanted: tuple[tuple[str, str], bool]) -> None:
        until(lambda: len(told) >= len(wanted), 120, f"{wanted} are told")
        assert told == list(wanted)
        told.clear()

    api.tell("MODIFIED", PODS, pod("j-1"))  # nothing of interest
    api.tell("MODIFIED", PODS, pod("j-1", "Succeeded"))
    expect((TINY, True))
    api.tell("DELETED", PODS, pod("j-1", "Succeeded"))
    expect((TINY, False))
    api.tell("ADDED", PODS, pod("j-2", "Pending"))
    expect((TINY, False))
    api.tell("DELETED", PODS, pod("j-2", "Pending"))
    expect((TINY, True))
    api.tell("MODIFIED", JOBS, job("j", spec={"suspend": True}))
    expect((TINY, False))


def test_what_was_just_written_is_waited_for(following, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trenchcoat_operator.observe.informers._SEEN_SECONDS", 120.0)  # and not listed anew
    api = Api((CONFIG_MAPS, mine("old")))
    informers, _ = following(api)
    informers.beside("ConfigMap", TINY), informers.jobs()
    with api.opened:
        wanted = {CONFIG_MAPS, JOBS}
        assert api.opened.wait_for(lambda: wanted <= {kind for kind, _, _ in api.watches}, 120)
    made = job("new") | {"kind": "Job"}

    def write() -> None:
        time.sleep(0.2)
        api.tell("ADDED", JOBS, made)
        api.tell("DELETED", CONFIG_MAPS, mine("old"))

    thread = threading.Thread(target=write)
    thread.start()
    informers.see("ml", [Apply(made), Delete("ConfigMap", "old", "unread"), Delete("Job", "j", "changed")])
    assert [found.child.name for found in informers.jobs_of(ChildKind.JOB, TINY)] == ["new"]
    assert informers.beside("ConfigMap", TINY) == frozenset()
    thread.join()


def test_who_waits_for_a_node_is_told_of_pods_that_end_there(following) -> None:
    def node(name: str) -> Body:
        status = {
            "allocatable": {"nvidia.com/gpu": "1"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        return {"metadata": {"name": name}, "spec": {}, "status": status}

    waits = {
        "containers": [
            {"resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}}
        ]
    }
    going = {"deletionTimestamp": "2026-01-01T12:02:00Z", "deletionGracePeriodSeconds": 120}
    told = datetime(2026, 1, 1, 12, tzinfo=UTC)
    nowhere = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    nowhere["lastTransitionTime"] = (told - UNSCHEDULABLE_GRACE).isoformat()
    pending = pod("j-1", "Pending")
    pending["spec"], pending["status"]["conditions"] = waits, [nowhere]
    objects = [
        (NODES, node("n1")),
        (JOBS, job("j", spec={"template": {"spec": waits}})),
        (PODS, pod("mine", owner="other")),
    ]

    def room_by(*more: tuple[Kind, Body], own: Body = pending, **settings: Any) -> datetime | None:
        api = Api(*objects, (PODS, own), *more)
        informers, _ = following(api, **settings)
        observer = Observer(api, informers, Settings(**settings), Stores(api, lambda *_: None))  # type: ignore[arg-type]
        [child] = observer.look(trenchcoat()).children
        return child.room_by

    ends = stranger("ends")
    ends["metadata"] |= going
    own = pod("own", owner="other", **going)
    assert room_by() is None
    for ending in (ends, own):
        assert room_by((PODS, ending)) == told + timedelta(minutes=2)
    assert room_by((PODS, own), count_gpus=False) is None
    late = {**ends, "metadata": {**ends["metadata"], "deletionGracePeriodSeconds": 119}}
    assert room_by((PODS, late)) is None
    assert room_by((PODS, ends), own=pod("j-1")) is None, "it has its node"


def test_a_refusal_is_told(following) -> None:
    class Refusing(Api):
        def snapshot(self, chosen: Selection) -> Any:
            raise ApiError(403, "Forbidden", f"cannot list {chosen.kind.plural}")

    informers, _ = following(Refusing())
    with pytest.raises(ApiError, match="cannot list nodes"):
        informers.nodes()
