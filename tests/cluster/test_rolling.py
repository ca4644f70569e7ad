"""Rolling collection in real pods, beside a collection: the same bytes, and boundaries that go when read.

Both runs go on at once, each trains one Cria at a time. A Cria of the chain is killed (SIGKILL) while it
computes what enters the next one, and goes on from its checkpoint.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from demo.environment import BUCKET, Environment
from demo.inputs import client
from demo.watch import condition
from minio import Minio
from minio.deleteobjects import DeleteObject
from trenchcoat_api import constants
from trenchcoat_api.resource import Trenchcoat

from tests.cluster.held import prepared
from tests.cluster.objects import Body, apply, cria, delete, example, log_of, pods, read, row, succeeded
from tests.operator.world import artifacts_of
from tests.waiting import until

MINUTES = 60.0
CRIAS = 4
BOUNDARIES = CRIAS - 1
SMALL = {
    "data__tokens": 24576,
    "data__heldOutTokens": 4096,
    "layersPerCria": 3,
    "collect__nodes": 1,
    "transfer__batchSize": 1,
    "transfer__microBatchSize": 1,
    "stitch__nodes": 1,
    "stitch__epochs": 0,
    "evaluate__enabled": False,
    "export__enabled": False,
    "scheduling__maxParallelCrias": 1,
}
BOUNDARY_BYTES = 24576 * 64 * 4
"""Of hidden states in float32."""
SEQUENCES = 8
"""In an object of a boundary."""
OBJECTS = BOUNDARIES * 24576 // 512 // SEQUENCES + CRIAS * 2
"""Of boundaries, and the maps and adapters of Crias."""
KILLED, KILLED_CRIA = 137, 1
AS_IN_HOURS = f"""
import trenchcoat_trainer.data.layout as layout
import trenchcoat_trainer.runtime.training as training
layout.HIDDEN_BYTES = {SEQUENCES} * 512 * 64 * 4
training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = 0.2, 1.0
"""
"""So that a run of minutes has as many objects and checkpoints as one of hours."""
KILLED_ONCE = f"""
import os, signal, sys
from trenchcoat_trainer.runtime.checkpoint import Checkpoint
save = Checkpoint.save
def save_and_die(self, *arguments, **options):
    is_first = not self.names()
    save(self, *arguments, **options)
    if is_first:
        os.kill(os.getpid(), signal.SIGKILL)
if " --cria {KILLED_CRIA} " in " ".join([*sys.orig_argv, ""]):
    Checkpoint.save = save_and_die
"""
"""One Cria is killed as it has written its first checkpoint."""


@dataclass
class Watched:
    """A run, and what the store was seen to have of it."""

    environment: Environment
    store: Minio
    body: Body
    tensors: dict[str, str] = field(default_factory=dict)
    """MD5 of every boundary's and Cria's object that was ever there, by its path within the artifact."""
    boundaries: list[int] = field(default_factory=list)
    """How many were there, look by look."""
    most_bytes: int = 0
    """Of hidden states at one time."""
    listed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.name: str = self.body["metadata"]["name"]
        self.artifacts = artifacts_of(Trenchcoat.from_object(self.body).spec)

    def read(self) -> Body:
        """The Trenchcoat as it is."""
        seen = read(self.environment, self.name)
        stalled = condition(seen, "Stalled")
        assert stalled.get("status") != "True", f"{self.name} stalled: {stalled.get('message')}"
        return seen

    def look(self) -> None:
        """List the store."""
        found = list(self.store.list_objects(BUCKET, prefix=f"{self.name}/artifacts/", recursive=True))
        self.listed = {str(item.object_name) for item in found}
        hidden: dict[str, int] = {}
        for name, artifact in self.artifacts.items():
            for item in found:
                path = str(item.object_name).removeprefix(artifact.prefix)
                if path == item.object_name or not path.endswith(".safetensors"):
                    continue
                if path.startswith("boundary-"):
                    hidden[path] = int(item.size or 0)
                    self.tensors[path] = str(item.etag)
                elif name.startswith("cria-") and "/" not in path:
                    self.tensors[f"{name}/{path}"] = str(item.etag)
        self.boundaries.append(len({path.partition("/")[0] for path in hidden}))
        self.most_bytes = max(self.most_bytes, sum(hidden.values()))


@contextlib.contextmanager
def fresh(environment: Environment, address: str, settings: Body, **changes: object) -> Iterator[Watched]:
    """A run with a part of the store of its own, cleared away afterwards."""
    store, name = client(environment, address), f"chain-{secrets.token_hex(4)}"
    body = example(
        name, **SMALL, store__prefix=name, pods=dict.fromkeys(("collect", "cria"), settings), **changes
    )
    apply(environment, body)
    try:
        yield Watched(environment, store, body)
    finally:
        delete(environment, name)
        left = store.list_objects(BUCKET, prefix=f"{name}/", recursive=True)
        assert not list(store.remove_objects(BUCKET, [DeleteObject(str(item.object_name)) for item in left]))


def watch(rolling: Watched, collected: Watched) -> None:
    """Look at both until both have succeeded; tells what was seen."""
    began, took = time.monotonic(), dict[str, float]()
    while len(took) < 2:
        assert time.monotonic() - began < 15 * MINUTES, (rolling.read(), collected.read())
        for run in (rolling, collected):
            ended = run.name not in took and succeeded(run.read())
            run.look()
            if ended:
                took[run.name] = time.monotonic() - began
        time.sleep(0.4)
    for run in (rolling, collected):
        most = f"{max(run.boundaries)} boundaries, {run.most_bytes} bytes at most"
        print(f"{run.name}: {most}, {took[run.name]:.0f} s, {len(run.boundaries)} looks")


def ends_of(pod: Body) -> list[Body]:
    """How its containers ended."""
    states = [item["state"] for item in pod["status"]["containerStatuses"]]
    return [state["terminated"] for state in states if "terminated" in state]


def attempts(run: Watched, cria: int) -> list[Body]:
    """The pods of a Cria, in the order of its attempts."""
    found = pods(run.environment, run.name, "trenchcoat.dev/stage=cria", f"trenchcoat.dev/cria={cria}")
    return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def test_a_chain_with_a_killed_cria_leaves_the_bytes_of_a_collection_and_no_boundary(
    store: Environment,
) -> None:
    with (
        prepared(store, "as-in-hours", AS_IN_HOURS) as settings,
        prepared(store, "as-in-hours-killed", AS_IN_HOURS + KILLED_ONCE) as killed_once,
        store.store_address() as address,
        fresh(store, address, killed_once, collect__strategy="Rolling") as rolling,
        fresh(store, address, settings) as collected,
    ):
        watch(rolling, collected)
        killed, second = attempts(rolling, KILLED_CRIA)
        assert [item["exitCode"] for item in ends_of(killed)] == [KILLED]
        assert "the next Cria may begin" not in log_of(store, killed)
        assert "going on from step" in log_of(store, second).partition("the next Cria may begin")[0]
        until(
            lambda: (
                [item.get("outcome") for item in cria(rolling.read(), KILLED_CRIA)["attempts"]]
                == ["Failed", "Succeeded"]
            ),
            120,
            "the first attempt failed",
        )

        assert rolling.tensors == collected.tensors
        assert len(rolling.tensors) == OBJECTS
        assert collected.most_bytes > 0.99 * BOUNDARIES * BOUNDARY_BYTES
        assert collected.boundaries[-1] == BOUNDARIES

        def all_are_gone() -> bool:
            rolling.look()
            return rolling.boundaries[-1] == 0 and not row(rolling.read(), "collect").get("bytes")

        until(all_are_gone, 120, "all boundaries of the chain are gone")
        selector = f"{constants.LABEL_NAME}={rolling.name},{constants.LABEL_STAGE}=collect"
        assert not store.get("jobs", "-l", selector)["items"], "no boundary was computed twice"
