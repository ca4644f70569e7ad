"""A Trenchcoat on a control plane, worked on by the operator's own code in this process, step by step.

Jobs are made by the real controllers and pods are bound by the real scheduler. No program runs: a test writes
the artifacts that are to be there already.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client
from minio import Minio
from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact, Progress
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_operator.kubernetes.client import Cluster
from trenchcoat_operator.kubernetes.errors import ApiError
from trenchcoat_operator.loop.reconciler import Reconciler
from trenchcoat_operator.metrics.recorder import Metrics
from trenchcoat_operator.model.key import Key
from trenchcoat_operator.settings import Settings

from tests.control_plane import Body, ControlPlane
from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, MinioServer
from tests.operator import world
from tests.operator.simulation import BASE
from tests.waiting import OFTEN, until

BEFORE_CRIAS = ("tokenize", "collect", "shard")
REFUSALS = frozenset(range(400, 500)) - {409, 429}
"""Statuses by which an API server says no; of two that write at one time one is told 409."""


class Operator:
    """The operator's loop, one step at a time."""

    def __init__(self, plane: ControlPlane, **settings: Any) -> None:
        self.plane = plane
        self._reconciler = Reconciler(Cluster(plane.api), Settings(**settings), Metrics(), lambda *_: None)

    def stop(self) -> None:
        self._reconciler.stop()

    def miss(self, run: "Run", *names: str) -> None:
        """Have it know that artifacts were not there a moment ago."""
        stores = self._reconciler._observer._stores
        owner = Trenchcoat.from_object(world.merged(run.body, {"metadata": {"uid": "none"}}))
        for name in names:
            stores.manifests.put_absent(stores.open(owner), run.artifacts[name])

    def until(self, run: "Run", holds: Callable[[Body], Any], seconds: float, what: str) -> Any:
        """Look again and again until something holds of the status; returns what `holds` does."""

        def step() -> Any:
            try:
                self._reconciler.step(Key(run.namespace, run.name))
            except ApiError as error:
                if error.status in REFUSALS:
                    raise
                print(f"looks once more: {error}")  # as the worker does, for it may stand still for a while
                return None
            return holds(run.status())

        try:
            return until(step, seconds, what, most=OFTEN)
        except AssertionError as error:
            error.add_note(f"{run.status()}")
            raise


@contextmanager
def operator(plane: ControlPlane, **settings: Any) -> Iterator[Operator]:
    made = Operator(plane, **settings)
    try:
        yield made
    finally:
        made.stop()


class Run:
    """One Trenchcoat."""

    def __init__(
        self, plane: ControlPlane, server: MinioServer, namespace: str, name: str, **spec: Any
    ) -> None:
        self.plane, self.namespace, self.name = plane, namespace, name
        store = {"endpoint": server.endpoint, "prefix": f"{namespace}-{name}"}
        metadata = {"name": name, "namespace": namespace}
        self.body: Body = world.merged(
            {key: value for key, value in BASE.items() if key != "metadata"},
            {"metadata": metadata, "spec": {"store": store, "layersPerCria": 4, **spec}},
        )
        read = Trenchcoat.from_object({**self.body, "metadata": {**metadata, "uid": "none"}})
        self.artifacts: dict[str, Artifact] = world.artifacts_of(read.spec)
        self._store = Minio(
            urlsplit(server.endpoint).netloc, access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False
        )

    def begin(self, done: tuple[str, ...] = BEFORE_CRIAS) -> None:
        """Apply it, with some artifacts there already."""
        for name in done:
            self.complete(name)
        self.plane.apply(self.body, self.namespace)

    def complete(self, name: str) -> None:
        """Write an artifact as its program would."""
        artifact = self.artifacts[name]
        manifest = world.manifest(artifact).model_dump_json(by_alias=True).encode()
        for path, data in ((artifact.prefix + "data", b"0" * 1000), (artifact.manifest_path, manifest)):
            self._store.put_object(BUCKET, path, io.BytesIO(data), len(data))

    def report(self, name: str, **progress: Any) -> None:
        """Write how far an artifact is, as its program would."""
        artifact = self.artifacts[name]
        report = Progress(stage=artifact.stage, key=artifact.key, updated_at=datetime.now(UTC), **progress)
        data = report.model_dump_json(by_alias=True).encode()
        self._store.put_object(BUCKET, artifact.progress_path, io.BytesIO(data), len(data))

    def status(self) -> Body:
        found: Body = self.plane.read(self.name, self.namespace).get("status") or {}
        return found

    def pods(self) -> list[Any]:
        label = f"{constants.LABEL_NAME}={self.name}"
        return list(self.plane.core.list_namespaced_pod(self.namespace, label_selector=label).items)

    def jobs(self) -> list[Any]:
        label = f"{constants.LABEL_NAME}={self.name}"
        batch = client.BatchV1Api(self.plane.api)
        return list(batch.list_namespaced_job(self.namespace, label_selector=label).items)


def row(status: Body, stage: str) -> Body:
    """The row of a stage; empty while there is none."""
    found: Body = next((item for item in status.get("stages", []) if item["name"] == stage), {})
    return found


def condition(status: Body, kind: str) -> Body:
    found: Body = next((item for item in status.get("conditions", []) if item["type"] == kind), {})
    return found


def crias(status: Body) -> list[tuple[str, str]]:
    """State and reason of waiting of each Cria."""
    return [(row["state"], row.get("waitingReason", "")) for row in status.get("crias", [])]


def namespace(plane: ControlPlane, name: str) -> str:
    """A namespace with the store's credentials."""
    plane.namespace(name)
    data = {
        "accessKey": ACCESS_KEY,
        "secretKey": SECRET_KEY,
    }
    plane.core.create_namespaced_secret(name, {"metadata": {"name": "minio"}, "stringData": data})
    return name


def quota(plane: ControlPlane, where: str, **hard: str) -> None:
    """A quota named team, which counts already; dots in its resources as __.

    Until its controller has told what is used, it refuses every pod, whatever there is room for.
    """
    names = {name.replace("__", "."): count for name, count in hard.items()}
    plane.core.create_namespaced_resource_quota(
        where, {"metadata": {"name": "team"}, "spec": {"hard": names}}
    )

    def counts() -> bool:
        told = plane.core.read_namespaced_resource_quota("team", where).status
        return told.hard == names and bool(told.used)

    until(counts, 120, "the quota counts")


def policy(plane: ControlPlane, where: str, what: Body, change: str) -> None:
    """Have the API server change what is made in a namespace, as an admission plugin of a cluster would.

    Args:
        plane: The control plane.
        where: The namespace, which the policy is named like.
        what: Which resources, as in an admission rule.
        change: The configuration that is applied to them, in CEL.
    """
    body = {
        "metadata": {"name": where},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [{**what, "operations": ["CREATE"]}]},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": change}}],
        },
    }
    chosen = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": where}}}
    api = client.AdmissionregistrationV1beta1Api(plane.api)
    api.create_mutating_admission_policy(body)
    binding = {"metadata": {"name": where}, "spec": {"policyName": where, "matchResources": chosen}}
    api.create_mutating_admission_policy_binding(binding)
