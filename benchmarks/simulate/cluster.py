"""A control plane with everything that takes part but kubelets: kwok, Kueue, the operator and the rest.

All are plain processes. The training operator's and Kueue's webhooks are reached as in any cluster, by a
Service; its one endpoint is this machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from minio import Minio
from trenchcoat_trainer.runtime.ports import free_port

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import components  # noqa: E402

from tests.control_plane import ControlPlane, control_plane  # noqa: E402
from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, find_minio, running_minio  # noqa: E402
from tests.waiting import until  # noqa: E402

TRAINING_OPERATOR_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")
KEPT = {
    "Namespace",
    "CustomResourceDefinition",
    "Secret",
    "Service",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
}
"""What a component that is a process of this machine needs of its manifests."""


@dataclass(frozen=True)
class Cluster:
    """What a simulation asks of it."""

    plane: ControlPlane
    store: Minio
    endpoint: str
    metrics_port: int
    folder: Path

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator; returns what it prints."""
        program = components.binary("kubernetes", "kubectl")
        command = [str(program), f"--kubeconfig={self.plane.kubeconfig}", *words]
        done = subprocess.run(command, input=stdin, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    def apply(self, *bodies: dict[str, Any]) -> None:
        """Apply objects of any kind."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(bodies)}
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))

    def requests(self) -> float:
        """API requests that the operator has made.

        Raises:
            OSError: it serves no metrics.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        told = [line for line in lines if line.startswith("trenchcoat_api_requests_total")]
        return sum(float(line.rpartition(" ")[2]) for line in told)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start everything; it ends when the block does."""
    components.build(["kubernetes", "etcd", "minio", "kwok", "kueue", "training-operator", "argo-workflows"])
    for name in ("plane", "minio", "kueue"):
        (folder / name).mkdir()
    program = find_minio()
    if program is None:
        sys.exit("no MinIO: hack/cluster builds it")
    # Clients are held to 20 requests a second by default: hours pressed into minutes would be waited for.
    hurry = ["--kube-api-qps=500", "--kube-api-burst=500"]
    flags = {
        # The API server then calls webhooks at their endpoints: nothing here routes service addresses.
        "kube-apiserver": ["--enable-aggregator-routing=true"],
        "kube-controller-manager": [*hurry, "--concurrent-job-syncs=20"],
        "kube-scheduler": hurry,
    }
    with ExitStack() as running:
        plane = running.enter_context(control_plane(folder / "plane", flags=flags))
        server = running.enter_context(running_minio(program, folder / "minio"))
        keys = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
        store = Minio(server.endpoint.partition("://")[2], **keys, secure=False)
        made = Cluster(plane, store, server.endpoint, free_port(), folder)
        plane.define()
        running.enter_context(_kwok(made))
        running.enter_context(_training_operator(made))
        running.enter_context(_kueue(made))
        running.enter_context(_argo(made))
        running.enter_context(_operator(made))
        yield made


def secret() -> dict[str, str]:
    """The store's credentials, as a Trenchcoat's Secret has them."""
    return {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}


def bucket() -> str:
    """Where everything is stored."""
    return BUCKET


@contextmanager
def _process(
    made: Cluster, name: str, command: Sequence[str | Path], **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    log = made.folder / f"{name}.log"
    environment = os.environ | {"KUBECONFIG": str(made.plane.kubeconfig)} | variables
    with log.open("wb") as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file, env=environment)
    try:
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}: {log.read_text()[-3000:]}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _kwok(made: Cluster) -> Iterator[None]:
    """Nodes that are ready, pods that run once they are bound and go once they are to."""
    stages = (REPO / "benchmarks" / "operator" / "stages.yaml").read_text().split("---\n")
    config = made.folder / "kwok.yaml"
    config.write_text("---\n".join(text for text in stages if "metadata: {name: complete}" not in text))
    command = [components.binary("kwok", "kwok"), f"--config={config}", "--manage-all-nodes=true"]
    command += [f"--kubeconfig={made.plane.kubeconfig}", "--cidr=10.128.0.0/16"]
    with _process(made, "kwok", command):
        yield


@contextmanager
def _training_operator(made: Cluster) -> Iterator[None]:
    port, name = free_port(), "training-operator"
    upstream = components.folder_of(name) / "manifests" / "overlays" / "standalone"
    _define(made, name, upstream, "kubeflow", port)
    certificates, template = made.folder / name / "certificates", made.folder / "init-container.yaml"
    certificates.mkdir()
    template.write_text((REPO / "manifests" / name / "init-container.tpl").read_text())
    TRAINING_OPERATOR_CERTIFICATES.mkdir(parents=True, exist_ok=True)
    program = components.binary(name, f"{name}.v1")
    flags = [f"--kubeconfig={made.plane.kubeconfig}", f"--webhook-server-port={port}"]
    flags += ["--metrics-bind-address=0", "--health-probe-bind-address=0", "--enable-scheme=pytorchjob"]
    flags += [
        f"--pytorch-init-container-template-file={template}",
        "--kube-api-qps=300",
        "--kube-api-burst=300",
    ]
    bind = f'mount --bind {certificates} {TRAINING_OPERATOR_CERTIFICATES} && exec "$@"'
    command: list[str | Path] = ["unshare", "--mount", "sh", "-c", bind, "sh", program, *flags]
    probe = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": {"spec": {
            "containers": [{"name": "pytorch", "image": "none"}]}}}}},
    }  # fmt: skip
    try:
        with _process(made, name, command):
            _mount(made, "kubeflow", "training-operator-webhook-cert", certificates)
            until(lambda: _admitted(made, probe), 120, f"{name}'s webhook answers")
            yield
    finally:
        for place in (TRAINING_OPERATOR_CERTIFICATES, TRAINING_OPERATOR_CERTIFICATES.parent):
            if place.exists() and not any(place.iterdir()):  # another simulation may have ended with it
                place.rmdir()


@contextmanager
def _kueue(made: Cluster) -> Iterator[None]:
    port, folder = free_port(), made.folder / "kueue"
    _define(made, "kueue", components.folder_of("kueue") / "config" / "default", "kueue-system", port)
    certificates = folder / "certificates"
    certificates.mkdir()
    settings = yaml.safe_load((REPO / "manifests" / "kueue" / "controller_manager_config.yaml").read_text())
    settings |= {
        "webhook": {"port": port, "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"},
        "metrics": {"bindAddress": f"127.0.0.1:{free_port()}"},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": 300, "burst": 300},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings))
    command = [components.binary("kueue", "kueue"), f"--config={config}"]
    command += ["--feature-gates=VisibilityOnDemand=false", "--zap-log-level=info"]
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
    with _process(made, "kueue", command):
        _mount(made, "kueue-system", "kueue-webhook-server-cert", certificates)
        until(lambda: _admitted(made, flavor), 120, "Kueue's webhook answers")
        yield


@contextmanager
def _argo(made: Cluster) -> Iterator[None]:
    """Argo's controller, in a hurry as all others are: it looks again after 1 s and not 10, its least."""
    name, namespace = "argo-workflows", "argo"
    made.kubectl(
        "apply", "--server-side", "-k", str(components.folder_of(name) / "manifests/base/crds/minimal")
    )
    made.plane.namespace(namespace)
    data = {"metricsConfig": "enabled: false\n"}
    settings = {"metadata": {"name": "workflow-controller-configmap"}, "data": data}
    made.plane.core.create_namespaced_config_map(namespace, settings)
    command = [components.binary(name, "workflow-controller"), f"--namespace={namespace}"]
    command += ["--executor-image=none", "--qps=300", "--burst=300", "--loglevel=warn"]
    variables = {"LEADER_ELECTION_DISABLE": "true", "DEFAULT_REQUEUE_TIME": "1s"}
    with _process(made, name, command, **variables):
        yield


@contextmanager
def _operator(made: Cluster) -> Iterator[None]:
    variables = {
        "TRENCHCOAT_METRICS_PORT": str(made.metrics_port),
        "TRENCHCOAT_HEALTH_PORT": str(free_port()),
        "TRENCHCOAT_LOG_LEVEL": "WARNING",
    }

    def serves() -> bool:
        try:
            made.requests()
        except OSError:
            return False
        return True

    with _process(made, "operator", [sys.executable, "-m", "trenchcoat_operator"], **variables):
        until(serves, 60, "the operator serves metrics")
        yield


def _define(made: Cluster, name: str, upstream: Path, namespace: str, port: int) -> None:
    """Apply what a process needs of its manifests; its Services lead to this machine."""
    folder = made.folder / name
    folder.mkdir(exist_ok=True)
    at = folder.resolve()
    ours = REPO / "manifests" / name
    kustomization = {
        "resources": [os.path.relpath(upstream.resolve(), at)],
        "components": [os.path.relpath(ours, at)],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    bodies = [body for body in yaml.safe_load_all(made.kubectl("kustomize", str(folder))) if body]
    wanted = [body for body in bodies if body["kind"] in KEPT]
    slices = []
    for body in (body for body in wanted if body["kind"] == "Service"):
        body["spec"].pop("selector", None)
        ports = [{"name": item.get("name", ""), "port": port} for item in body["spec"]["ports"]]
        slices.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": body["metadata"]["name"],
                    "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": body["metadata"]["name"]},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [own_address()], "conditions": {"ready": True}}],
                "ports": ports,
            }
        )
    made.apply(*sorted(wanted, key=lambda body: body["kind"] != "Namespace"), *slices)


def own_address() -> str:
    """An address of this machine that an EndpointSlice may name: it may not be a loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # chooses an address; nothing is sent
        return str(probe.getsockname()[0])


def _mount(made: Cluster, namespace: str, name: str, folder: Path) -> None:
    """Put a Secret's certificates where its program waits for them, as a kubelet would."""

    def there() -> dict[str, str] | None:
        data = made.plane.core.read_namespaced_secret(name, namespace).data or {}
        return data if "tls.key" in data else None

    for key, text in until(there, 60, f"Secret {name} has certificates").items():
        (folder / key).write_bytes(b64decode(text))


def _admitted(made: Cluster, body: dict[str, Any]) -> bool:
    try:
        made.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
    except RuntimeError:
        return False
    return True
