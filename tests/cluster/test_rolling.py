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
from tests.cluster.objects import Body, apply, delete, example, log_of, pods, read, row, succeeded
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
KILLED = 137
AS_IN_HOURS = f"""
import trenchcoat_trainer.data.layout as layout
import trenchcoat_trainer.runtime.training as training
layout.HIDDEN_BYTES = {SEQUENCES} * 512 * 64 * 4
training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = 0.2, 1.0
"""
"""So that a run of minutes has as many objects and checkpoints as one of hours."""


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


class Killer:
    """Kills a Cria in its collecting epoch, once; where it came too late, another one."""

    def __init__(self, run: Watched) -> None:
        self._run = run
        self.cria = -1
        """Which was killed in time."""
        self.attempts_killed: dict[str, int] = {}
        """Its pod's uid, or those that were killed too late, and its exit code."""

    def look(self) -> None:
        """Kill, if it is time."""
        if self.cria >= 0:
            return
        environment = self._run.environment
        for pod in pods(environment, self._run.name, "trenchcoat.dev/stage=cria"):
            index = int(pod["metadata"]["labels"]["trenchcoat.dev/cria"])
            known = pod["metadata"]["uid"] in self.attempts_killed
            if known or pod["status"]["phase"] != "Running" or not self._collects(index):
                continue
            environment.kubectl("exec", pod["metadata"]["name"], "--", "sh", "-c", "kill -9 -1", check=False)
            self.attempts_killed[pod["metadata"]["uid"]] = self._exit_code(pod)
            is_late = f"collect-{index + 1:02d} is complete" in log_of(environment, pod)
            if self.attempts_killed[pod["metadata"]["uid"]] == KILLED and not is_late:
                self.cria = index

    def _collects(self, index: int) -> bool:
        """Whether it has a checkpoint and the next one's inputs are not complete, when last listed."""
        run = self._run
        boundary = run.artifacts.get(f"collect-{index + 1:02d}")
        checkpoint = run.artifacts[f"cria-{index:02d}"].checkpoint_prefix + "state.safetensors"
        has_checkpoint = checkpoint in run.listed
        return boundary is not None and has_checkpoint and boundary.manifest_path not in run.listed

    def _exit_code(self, pod: Body) -> int:
        """Of a pod's program, once it has ended."""

        def ended() -> list[int]:
            selector = f"trenchcoat.dev/cria={pod['metadata']['labels']['trenchcoat.dev/cria']}"
            found = pods(self._run.environment, self._run.name, selector)
            own = [item for item in found if item["metadata"]["uid"] == pod["metadata"]["uid"]]
            states = [item["state"] for item in own[0]["status"].get("containerStatuses", [])]
            return [state["terminated"]["exitCode"] for state in states if "terminated" in state]

        code: int = until(ended, 5 * MINUTES, "the killed Cria's pod ends")[0]
        return code

    def log_after(self) -> str:
        """What the attempts after the killed one have logged."""
        found = pods(self._run.environment, self._run.name, f"trenchcoat.dev/cria={self.cria}")
        others = [pod for pod in found if pod["metadata"]["uid"] not in self.attempts_killed]
        return "".join(log_of(self._run.environment, pod) for pod in others)


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


def watch(rolling: Watched, collected: Watched) -> Killer:
    """Look at both until both have succeeded; tells what was seen."""
    killer, began, took = Killer(rolling), time.monotonic(), dict[str, float]()
    while len(took) < 2:
        assert time.monotonic() - began < 15 * MINUTES, (rolling.read(), collected.read())
        for run in (rolling, collected):
            ended = run.name not in took and succeeded(run.read())
            run.look()
            if ended:
                took[run.name] = time.monotonic() - began
        killer.look()
        time.sleep(0.4)
    for run in (rolling, collected):
        most = f"{max(run.boundaries)} boundaries, {run.most_bytes} bytes at most"
        print(f"{run.name}: {most}, {took[run.name]:.0f} s, {len(run.boundaries)} looks")
    return killer


def test_a_chain_with_a_killed_cria_leaves_the_bytes_of_a_collection_and_no_boundary(
    store: Environment,
) -> None:
    with (
        prepared(store, "as-in-hours", AS_IN_HOURS) as settings,
        store.store_address() as address,
        fresh(store, address, settings, collect__strategy="Rolling") as rolling,
        fresh(store, address, settings) as collected,
    ):
        killer = watch(rolling, collected)
        assert killer.cria >= 0, f"killed too late: {killer.attempts_killed}"
        outcomes = [item["outcome"] for item in rolling.read()["status"]["crias"][killer.cria]["attempts"]]
        assert (outcomes[0], outcomes[-1]) == ("Failed", "Succeeded")
        assert "going on from step" in killer.log_after().partition("the next Cria may begin")[0]

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
