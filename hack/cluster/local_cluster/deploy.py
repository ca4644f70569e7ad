"""Install what a Trenchcoat needs beside its operator: the training operator and MinIO."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from . import components, images
from .layout import HACK, REPO, Layout
from .lifecycle import kubectl, load_images
from .shell import step, wait_for

IMAGES = ("busybox", "minio", "operator", "training-operator")
INIT_CONTAINER = "init-container.yaml"
UPSTREAM_IMAGE = "ghcr.io/kubeflow/training-v1/training-operator"


def deploy(layout: Layout, namespace: str) -> None:
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
    with step("wait for MinIO and its bucket"):
        _rolled_out(layout, "minio", "minio")
        kubectl(layout, "wait", "-n", "minio", "job/bucket", "--for=condition=Complete", "--timeout=120s")
    with step("wait for the training operator"):
        _rolled_out(layout, "kubeflow", "training-operator")
        # Ready is not yet reachable: its webhook gets a certificate of its own making.
        probe = json.dumps(_probe())
        create = ("create", "--dry-run=server", "-o", "name", "-f", "-")
        wait_for("webhook", lambda: bool(kubectl(layout, *create, stdin=probe, check=False)), seconds=60)


def _rolled_out(layout: Layout, namespace: str, name: str) -> None:
    kubectl(layout, "rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=120s")


def _apply(layout: Layout, name: str, kustomization: dict[str, Any]) -> None:
    folder = _folder(layout, name)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HACK / INIT_CONTAINER, folder)  # Kustomize reads files of its own folder only.
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
    pod = "/spec/template/spec"
    init_image = f"--pytorch-init-container-image={images.tag('busybox')}"
    mount = {"name": "init-container", "mountPath": "/etc/config"}
    volume = {"name": "init-container", "configMap": {"name": "init-container"}}
    changes: list[dict[str, Any]] = [
        {"op": "add", "path": f"{pod}/containers/0/args/-", "value": init_image},
        {"op": "add", "path": f"{pod}/containers/0/volumeMounts/-", "value": mount},
        {"op": "add", "path": f"{pod}/volumes/-", "value": volume},
    ]
    files = [f"initContainer.yaml={INIT_CONTAINER}"]
    template = {"name": "init-container", "namespace": "kubeflow", "files": files}
    return {
        "resources": [_from(folder, upstream)],
        "components": [_from(folder, REPO / "manifests" / "training-operator")],
        "images": [_image(UPSTREAM_IMAGE, "training-operator")],
        "configMapGenerator": [template],
        "patches": [_on_first_node("training-operator", *changes)],
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
