"""A node that is not there: its pods run in name only, and a test decides when and how each of them ends.

Everything else about them is real: the API server, the controllers that make them, the scheduler that binds
them, the store in which the test writes the manifests that their programs would write.
"""

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from demo.environment import BUCKET, Environment
from demo.inputs import client as store_client
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from minio import Minio
from trenchcoat_api import constants
from trenchcoat_api.artifacts import Artifact
from trenchcoat_api.resource import Trenchcoat
from urllib3.exceptions import HTTPError

from tests.cluster.objects import connect, example
from tests.operator import world

LABEL = "trenchcoat.dev/test-node"
STAGES = ("tokenize", "collect", "shard", "cria", "stitch", "evaluate", "export")
GPU = "nvidia.com/gpu"
Body = dict[str, Any]


def stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class FakeNode:
    """A node with GPUs, for the pods of one namespace that ask for it by its label."""

    def __init__(self, api: client.ApiClient, name: str, namespace: str, gpus: int) -> None:
        self._core = client.CoreV1Api(api)
        self._leases = client.CoordinationV1Api(api)
        self.name, self.namespace, self.gpus = name, namespace, gpus
        self._beaten = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    @property
    def overrides(self) -> Body:
        """What brings pods of a stage here, and nowhere else."""
        toleration = {"key": LABEL, "operator": "Exists"}
        return {"nodeSelector": {LABEL: self.name}, "tolerations": [toleration]}

    def __enter__(self) -> "FakeNode":
        quantities = {
            "cpu": "64",
            "memory": "64Gi",
            "pods": "110",
            "ephemeral-storage": "100Gi",
            GPU: str(self.gpus),
        }
        labels = {LABEL: self.name, "kubernetes.io/hostname": self.name}
        self._core.create_node(
            {
                "metadata": {"name": self.name, "labels": labels},
                "spec": {"taints": [{"key": LABEL, "value": "", "effect": "NoSchedule"}]},
            }
        )
        self._beat()
        self._core.patch_node_status(
            self.name,
            {
                "status": {
                    "capacity": quantities,
                    "allocatable": quantities,
                    "conditions": [self._ready()],
                }
            },
        )
        self._core.patch_node(
            self.name, {"spec": {"taints": [{"key": LABEL, "value": "", "effect": "NoSchedule"}]}}
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._core.delete_node(self.name)
        for pod in self.pods():
            self._forget(pod)

    def _ready(self) -> Body:
        return {
            "type": "Ready",
            "status": "True",
            "reason": "Test",
            "lastHeartbeatTime": stamp(),
            "lastTransitionTime": stamp(),
        }

    def _beat(self) -> None:
        spec = {
            "holderIdentity": self.name,
            "leaseDurationSeconds": 40,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        body = {"metadata": {"name": self.name}, "spec": spec}
        try:
            self._leases.patch_namespaced_lease(self.name, "kube-node-lease", body)
        except ApiException as error:
            if error.status != 404:
                raise
            self._leases.create_namespaced_lease("kube-node-lease", body)

    def _live(self) -> None:
        while not self._stop.is_set():
            try:
                self._tend()
            except (ApiException, HTTPError) as error:  # a kubelet goes on, too
                print(f"{self.name} tries again: {error}", flush=True)
            self._stop.wait(0.1)

    def _tend(self) -> None:
        if time.monotonic() - self._beaten > 5:
            self._beat()
            self._beaten = time.monotonic()
        for pod in self.pods():
            if pod.metadata.deletion_timestamp:
                self._forget(pod)
            elif pod.status.phase == "Pending":
                self._set(pod, "Running", {"running": {"startedAt": stamp()}})

    def pods(self) -> list[client.V1Pod]:
        """The pods that are bound to it."""
        found = self._core.list_namespaced_pod(self.namespace, field_selector=f"spec.nodeName={self.name}")
        return list(found.items)

    def running(self) -> list[client.V1Pod]:
        return [
            pod
            for pod in self.pods()
            if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
        ]

    def end(self, pod: client.V1Pod, exit_code: int = 0, message: str = "") -> None:
        """Let a pod's container end."""
        terminated = {
            "exitCode": exit_code,
            "reason": "Error" if exit_code else "Completed",
            "message": message,
            "startedAt": pod.status.container_statuses[0].state.running.started_at.strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            ),
            "finishedAt": stamp(),
        }
        self._set(pod, "Failed" if exit_code else "Succeeded", {"terminated": terminated})

    def _set(self, pod: client.V1Pod, phase: str, state: Body) -> None:
        statuses = [
            {
                "name": container.name,
                "image": container.image,
                "imageID": "",
                "ready": phase == "Running",
                "restartCount": 0,
                "state": state,
            }
            for container in pod.spec.containers
        ]
        status = {"phase": phase, "containerStatuses": statuses}
        try:
            self._core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, {"status": status})
        except ApiException as error:
            if error.status != 404:
                raise

    def _forget(self, pod: client.V1Pod) -> None:
        try:
            self._core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)
        except ApiException as error:
            if error.status != 404:
                raise


class Stage:
    """A fake node and a part of the store, on which Trenchcoats of one test are played."""

    def __init__(self, node: FakeNode, store: Minio, prefix: str) -> None:
        self.node, self.store, self.prefix = node, store, prefix

    def trenchcoat(self, name: str, **changes: Any) -> Body:
        """A Trenchcoat with three Crias whose pods come to the fake node."""
        changes = {"layersPerCria": 4, "store__prefix": self.prefix, **changes}
        changes["pods"] = {
            stage: {**self.node.overrides, **changes.get("pods", {}).get(stage, {})} for stage in STAGES
        }
        return example(name, **changes)

    def artifacts(self, body: Body) -> dict[str, Artifact]:
        """Its artifacts, by name."""
        return world.artifacts_of(Trenchcoat.from_object(body).spec)

    def complete(self, artifact: Artifact) -> None:
        """Write an artifact as its program would."""
        manifest = world.manifest(artifact).model_dump_json(by_alias=True).encode()
        for path, data in ((artifact.prefix + "data", b"0" * 1000), (artifact.manifest_path, manifest)):
            self.store.put_object(
                bucket_name=BUCKET, object_name=path, data=io.BytesIO(data), length=len(data)
            )

    def stored(self) -> set[str]:
        """Stages of which the store holds artifacts' objects, notes of deletions left out."""
        artifacts = f"{self.prefix}/artifacts/"
        found = self.store.list_objects(bucket_name=BUCKET, prefix=artifacts, recursive=True)
        names = [str(item.object_name) for item in found]
        return {name.split("/")[2] for name in names if not name.endswith("/deleted.json")}

    def play(self, artifacts: dict[str, Artifact]) -> str:
        """Let the pods of one running Job or PyTorchJob come to a good end; returns the artifact's name."""
        works = self._whole_works()
        return self._end(works[min(works)], artifacts) if works else ""

    def play_all(self, artifacts: dict[str, dict[str, Artifact]]) -> list[tuple[str, str]]:
        """The same with all of them, each by the artifacts of its own Trenchcoat, by their names.

        Returns:
            The Trenchcoat and the artifact of each Job or PyTorchJob that ended.
        """
        return [(work[0], self._end(pods, artifacts[work[0]])) for work, pods in self._whole_works().items()]

    def _whole_works(self) -> dict[tuple[str, str, str], list[client.V1Pod]]:
        """Running pods by their work, where all of them run: those of a gang end together, or not yet."""
        works: dict[tuple[str, str, str], list[client.V1Pod]] = {}
        for pod in self.node.running():
            works.setdefault(work_of(pod), []).append(pod)
        return {work: pods for work, pods in works.items() if len(pods) == size_of_gang(pods[0])}

    def _end(self, pods: list[client.V1Pod], artifacts: dict[str, Artifact]) -> str:
        _, stage, cria = work_of(pods[0])
        name = f"{stage}-{int(cria):02d}" if cria else stage
        self.complete(artifacts[name])
        for pod in pods:
            self.node.end(pod)
        return name


def work_of(pod: client.V1Pod) -> tuple[str, str, str]:
    """The Trenchcoat, the stage and the Cria, if any, that a pod is there for."""
    labels = pod.metadata.labels
    cria = labels.get(constants.LABEL_CRIA, "")
    return labels[constants.LABEL_NAME], labels[constants.LABEL_STAGE], cria


def size_of_gang(pod: client.V1Pod) -> int:
    """How many pods work together, this one included, as the training operator or ours has told it."""
    told = {item.name: item.value for item in pod.spec.containers[0].env or []}
    return int(told.get("PET_NNODES") or 1)


@contextlib.contextmanager
def stage(environment: Environment, name: str, gpus: int = 2) -> Iterator[Stage]:
    """Set a stage, and clear it away afterwards."""
    with (
        FakeNode(connect(environment), f"node-{name}", environment.namespace, gpus) as node,
        environment.store_address() as address,
    ):
        store = store_client(environment, address)
        try:
            yield Stage(node, store, f"test-{name}")
        finally:
            for item in store.list_objects(bucket_name=BUCKET, prefix=f"test-{name}/", recursive=True):
                store.remove_object(bucket_name=BUCKET, object_name=str(item.object_name))
