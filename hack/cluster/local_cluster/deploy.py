"""Install what a Trenchcoat needs beside its operator: the training operator, MinIO and, if wanted, Kueue."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path
from typing import Any

from . import components, images
from .layout import REPO, Layout
from .lifecycle import kubectl, load_images
from .shell import step, wait_for

IMAGES = ("busybox", "minio", "operator", "training-operator")
UPSTREAM_IMAGE = "ghcr.io/kubeflow/training-v1/training-operator"
UPSTREAM_KUEUE_IMAGE = "us-central1-docker.pkg.dev/k8s-staging-images/kueue/kueue"


def deploy(layout: Layout, namespace: str, *, kueue: bool = False) -> None:
    """Apply everything and wait until it is ready; doing it again changes nothing."""
    components.build(["minio", "training-operator"])
    load_images(layout, IMAGES)
    with step("apply training operator and MinIO"):
        credentials = _credentials(layout)
        for where in dict.fromkeys(("minio", namespace)):
            for wanted in (_namespace(where), _secret(where, credentials)):
                kubectl(layout, "apply", "--server-side", "-f", "-", stdin=json.dumps(wanted))
        _apply(layout, "training-operator", training_operator(layout))
        # A Job cannot be changed, and its image is another one after every change of the operator.
        kubectl(layout, "delete", "job", "bucket", "-n", "minio", "--ignore-not-found")
        _apply(layout, "minio", minio(layout))
    with step("wait for MinIO and its bucket", 10):
        _rolled_out(layout, "minio", "minio")
        kubectl(layout, "wait", "-n", "minio", "job/bucket", "--for=condition=Complete", "--timeout=300s")
    with step("wait for the training operator"):
        _rolled_out(layout, "kubeflow", "training-operator")
        _wait_for_webhook(layout, _probe())
    if kueue:
        _deploy_kueue(layout)


def _deploy_kueue(layout: Layout) -> None:
    """Apply Kueue and wait until its webhooks answer."""
    components.build(["kueue"])
    load_images(layout, ["kueue"])
    with step("apply Kueue"):
        _apply(layout, "kueue", kueue_kustomization(layout))
    with step("wait for Kueue"):
        _rolled_out(layout, "kueue-system", "kueue-controller-manager")
        _wait_for_webhook(layout, _flavor())


def _wait_for_webhook(layout: Layout, probe: dict[str, Any]) -> None:
    """Ready is not yet reachable: a webhook gets a certificate of its own making."""
    text = json.dumps(probe)
    create = ("create", "--dry-run=server", "-o", "name", "-f", "-")
    wait_for("webhook", lambda: bool(kubectl(layout, *create, stdin=text, check=False)), seconds=300)


def _rolled_out(layout: Layout, namespace: str, name: str) -> None:
    kubectl(layout, "rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=300s")


def _apply(layout: Layout, name: str, kustomization: dict[str, Any]) -> None:
    folder = _folder(layout, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization, indent=1))
    kubectl(layout, "apply", "--server-side", "-k", str(folder))


def _folder(layout: Layout, name: str) -> Path:
    return layout.state / "deploy" / name


def _from(folder: Path, target: Path) -> str:
    """Kustomize takes bases by relative path only."""
    return os.path.relpath(target.resolve(), folder.resolve())


def _image(original: str, name: str) -> dict[str, str]:
    new_name, _, new_tag = images.tag(name).rpartition(":")
    return {"name": original, "newName": new_name, "newTag": new_tag}


def _on_first_node(name: str, *more: dict[str, Any]) -> dict[str, Any]:
    """Keep what all else relies on off the nodes that tests take away."""
    where = {
        "op": "add",
        "path": "/spec/template/spec/nodeSelector",
        "value": {"kubernetes.io/hostname": "node-1"},
    }
    return {"target": {"kind": "Deployment", "name": name}, "patch": json.dumps([where, *more])}


def training_operator(layout: Layout) -> dict[str, Any]:
    """A kustomization of upstream's manifests, ours over them, and the local images."""
    folder = _folder(layout, "training-operator")
    upstream = components.folder_of("training-operator") / "manifests" / "overlays" / "standalone"
    init_image = f"--pytorch-init-container-image={images.tag('busybox')}"
    change = {"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": init_image}
    return {
        "resources": [_from(folder, upstream)],
        "components": [_from(folder, REPO / "manifests" / "training-operator")],
        "images": [_image(UPSTREAM_IMAGE, "training-operator")],
        "patches": [_on_first_node("training-operator", change)],
    }


def kueue_kustomization(layout: Layout) -> dict[str, Any]:
    """A kustomization of upstream's manifests, ours over them, and the local image."""
    folder = _folder(layout, "kueue")
    return {
        "resources": [_from(folder, components.folder_of("kueue") / "config" / "default")],
        "components": [_from(folder, REPO / "manifests" / "kueue")],
        "images": [_image(UPSTREAM_KUEUE_IMAGE, "kueue")],
        "patches": [_on_first_node("kueue-controller-manager")],
    }


def minio(layout: Layout) -> dict[str, Any]:
    """A kustomization of our MinIO with the local images."""
    never = {"op": "add", "path": "/spec/template/spec/containers/0/imagePullPolicy", "value": "Never"}
    return {
        "resources": [_from(_folder(layout, "minio"), REPO / "manifests" / "minio")],
        "images": [_image("minio/minio", "minio"), _image("trenchcoat-operator", "operator")],
        "patches": [
            _on_first_node("minio", never),
            {"target": {"kind": "Job", "name": "bucket"}, "patch": json.dumps([never])},
        ],
    }


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _secret(namespace: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": "minio", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def _credentials(layout: Layout) -> dict[str, str]:
    """MinIO's credentials, base64: those that it has, or random ones."""
    known = kubectl(layout, "get", "secret", "minio", "-n", "minio", "-o", "jsonpath={.data}", check=False)
    if known:
        return dict(json.loads(known))
    values = {"accessKey": secrets.token_hex(8), "secretKey": secrets.token_hex(20)}
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def _probe() -> dict[str, Any]:
    """The smallest PyTorchJob that the webhook admits."""
    container = {"name": "pytorch", "image": images.tag("busybox")}
    master = {"replicas": 1, "restartPolicy": "Never", "template": {"spec": {"containers": [container]}}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": {"Master": master}},
    }


def _flavor() -> dict[str, Any]:
    """The smallest object that Kueue's webhook admits."""
    metadata = {"name": "probe"}
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": metadata}
