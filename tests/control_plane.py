"""A real Kubernetes without nodes: etcd, API server, controllers and scheduler, started in a few seconds.

Nodes are objects that a test makes; what is asked of it is what the API server, the controllers and the
scheduler decide. A test that needs programs to run in pods is one of tests/cluster.
"""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from trenchcoat_trainer.runtime.ports import free_port

from tests.components import built_or_skip
from tests.waiting import until

REPO = Path(__file__).parents[1]
CRD = yaml.safe_load((REPO / "crds" / "trenchcoat.dev_trenchcoats.yaml").read_text())
_STOP_SECONDS = 60
Body = dict[str, Any]


@dataclass(frozen=True)
class ControlPlane:
    """Where it is, and a client with every right."""

    kubeconfig: Path
    api: client.ApiClient

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @property
    def definitions(self) -> client.ApiextensionsV1Api:
        return client.ApiextensionsV1Api(self.api)

    def define(self) -> None:
        """Make the CustomResourceDefinition of Trenchcoats, and wait until they are served."""
        self.definitions.create_custom_resource_definition(CRD)
        until(self.serves, 120, "Trenchcoats are served")

    def withdraw(self) -> None:
        """Delete the definition, and with it all Trenchcoats."""
        self.definitions.delete_custom_resource_definition(CRD["metadata"]["name"])
        until(lambda: not self.serves(), 120, "Trenchcoats are not served any more")

    def serves(self) -> bool:
        return _found(lambda: self.trenchcoats.list_cluster_custom_object(*_KIND))

    @property
    def trenchcoats(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi(self.api)

    def apply(self, body: Body, namespace: str) -> None:
        group, version, plural = _KIND
        self.trenchcoats.create_namespaced_custom_object(group, version, namespace, plural, body)

    def read(self, name: str, namespace: str) -> Body:
        group, version, plural = _KIND
        body: Body = self.trenchcoats.get_namespaced_custom_object(group, version, namespace, plural, name)
        return body

    def delete(self, name: str, namespace: str) -> None:
        group, version, plural = _KIND
        self.trenchcoats.delete_namespaced_custom_object(group, version, namespace, plural, name)

    def namespace(self, name: str) -> None:
        """Make a namespace, ready for pods."""
        self.core.create_namespace({"metadata": {"name": name}})
        ready = lambda: self.core.read_namespaced_service_account("default", name)  # noqa: E731
        until(lambda: _found(ready), 120, f"namespace {name} has its service account")


_KIND = ("trenchcoat.dev", "v1alpha1", "trenchcoats")


def _found(look: Any) -> bool:
    try:
        look()
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


@contextmanager
def control_plane(
    folder: Path, *, gates: str = "", runtime: str = "", flags: Mapping[str, Sequence[str]] | None = None
) -> Iterator[ControlPlane]:
    """Start one, its data in this folder; the test is skipped where its programs were not built.

    Args:
        folder: Where keys, data and logs go.
        gates: Feature gates for all its programs, as on a command line.
        runtime: Further API versions to serve, as on a command line.
        flags: Further flags of a program, by its name.
    """
    etcd = built_or_skip("etcd", "server")
    programs = {
        name: built_or_skip("kubernetes", name)
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    }
    clients, peers, port = free_port(), free_port(), free_port()
    token = secrets.token_hex(16)
    key = folder / "service-account.key"
    openssl = shutil.which("openssl") or "openssl"
    subprocess.run([openssl, "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    (folder / "tokens").touch(mode=0o600)
    (folder / "tokens").write_text(f'{token},admin,admin,"system:masters"\n')
    kubeconfig = _kubeconfig(folder / "kubeconfig", port, token)
    extra = [f"--feature-gates={gates}"] if gates else []
    more = flags or {}
    served = [f"--runtime-config={runtime}"] if runtime else []
    with ExitStack() as running:
        urls = [f"http://127.0.0.1:{number}" for number in (clients, peers)]
        running.enter_context(
            _process(
                folder,
                "etcd",
                [
                    etcd,
                    f"--data-dir={folder / 'etcd'}",
                    f"--listen-client-urls={urls[0]}",
                    f"--advertise-client-urls={urls[0]}",
                    f"--listen-peer-urls={urls[1]}",
                    f"--initial-advertise-peer-urls={urls[1]}",
                    f"--initial-cluster=default={urls[1]}",
                    "--unsafe-no-fsync",
                    "--logger=zap",
                    "--log-level=warn",
                ],
            )
        )
        running.enter_context(
            _process(
                folder,
                "kube-apiserver",
                [
                    programs["kube-apiserver"],
                    f"--etcd-servers={urls[0]}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--cert-dir={folder / 'pki'}",
                    "--service-cluster-ip-range=10.111.0.0/24",
                    "--authorization-mode=RBAC",
                    f"--token-auth-file={folder / 'tokens'}",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    "--profiling=false",
                    *served,
                    *more.get("kube-apiserver", ()),
                    *extra,
                ],
            )
        )
        authority = folder / "pki" / "apiserver.crt"
        until(
            lambda: _ready(authority, port), 180, f"the API server is ready; see {folder}/kube-apiserver.log"
        )
        api = config.new_client_from_config(str(kubeconfig))
        common = [
            "--leader-elect=false",
            "--profiling=false",
            "--secure-port=0",
            f"--kubeconfig={kubeconfig}",
        ]
        running.enter_context(
            _process(
                folder,
                "kube-controller-manager",
                [
                    programs["kube-controller-manager"],
                    f"--service-account-private-key-file={key}",
                    # Without a node's own Lease its pods would be taken away within seconds.
                    "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller",
                    *common,
                    *more.get("kube-controller-manager", ()),
                    *extra,
                ],
            )
        )
        running.enter_context(
            _process(
                folder,
                "kube-scheduler",
                [programs["kube-scheduler"], *common, *more.get("kube-scheduler", ()), *extra],
            )
        )
        yield ControlPlane(kubeconfig, api)


def _kubeconfig(path: Path, port: int, token: str) -> Path:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": "pki/apiserver.crt"}
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(body))
    return path


def _ready(authority: Path, port: int) -> bool:
    if not authority.exists():
        return False
    http = urllib3.PoolManager(ca_certs=str(authority), retries=False, timeout=5.0)
    try:
        return http.request("GET", f"https://127.0.0.1:{port}/readyz").status == 200
    except urllib3.exceptions.HTTPError:
        return False


@contextmanager
def _process(folder: Path, name: str, command: list[str]) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=dict(os.environ))
    try:
        yield
        assert process.poll() is None, (folder / f"{name}.log").read_text()[-4000:]
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def node(plane: ControlPlane, name: str, resources: Body, **more: Any) -> Body:
    """A node that is ready and has these resources; nothing runs on it."""
    quantities = {"cpu": "64", "memory": "64Gi", "pods": "110", **resources}
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **more.pop("labels", {})}}
    plane.core.create_node({"metadata": metadata, "spec": more})
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Test",
        "message": "",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    status = {"capacity": quantities, "allocatable": quantities, "conditions": [ready]}
    made: Body = plane.core.patch_node_status(name, {"status": status})
    # The API server's admission taints a new node until somebody says that it is ready.
    plane.core.patch_node(name, {"spec": {"taints": more.get("taints", [])}})
    return made
