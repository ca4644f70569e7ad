"""The viewer's own program before a control plane, with the rights that the chart gives it and no others."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, utils
from trenchcoat_trainer.runtime.ports import free_port

from tests.charts.helm import template
from tests.control_plane import ControlPlane
from tests.waiting import until

OPS = "viewer-ops"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
READ = {"apiGroups": ["trenchcoat.dev"], "resources": ["trenchcoats"], "verbs": ["get"]}


@dataclass
class Server:
    """The program, and where it answers."""

    url: str
    pool: urllib3.PoolManager

    def get(self, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
        return self.pool.request("GET", self.url + path, headers=headers, redirect=False)

    def as_token(self, path: str, token: str) -> urllib3.BaseHTTPResponse:
        return self.get(path, Authorization=f"Bearer {token}")

    def log_in(self, token: str, **headers: str) -> urllib3.BaseHTTPResponse:
        return self.pool.request(
            "POST",
            f"{self.url}/login",
            fields={"token": token},
            headers=headers,
            encode_multipart=False,
            redirect=False,
        )

    def news(self, path: str, token: str) -> Iterator[str]:
        """What a page that is open is told of."""
        answer = self.pool.request(
            "GET", self.url + path, headers={"Authorization": f"Bearer {token}"}, preload_content=False
        )
        assert answer.headers["Content-Type"] == "text/event-stream"
        try:
            for chunk in answer.stream(64):
                yield from re.findall(r"data: (\S+)", chunk.decode())
        finally:
            answer.close()


@contextmanager
def viewer(plane: ControlPlane, folder: Path, **settings: str) -> Iterator[Server]:
    """Run it as the ServiceAccount that the chart makes."""
    kubeconfig = yaml.safe_load(plane.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": token(plane, "tc-trenchcoat-viewer", OPS)}
    # Its certificate is named by a path beside the kubeconfig.
    file, port = plane.kubeconfig.with_name("viewer-kubeconfig"), free_port()
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(kubeconfig))
    environment = os.environ | {"KUBECONFIG": str(file), "TRENCHCOAT_VIEWER_PORT": str(port), **settings}
    with (folder / "viewer.log").open("w") as log:
        program = [sys.executable, "-m", "trenchcoat_viewer"]
        process = subprocess.Popen(program, env=environment, stdout=log, stderr=subprocess.STDOUT)
        pool = urllib3.PoolManager(retries=False, timeout=120)
        server = Server(f"http://127.0.0.1:{port}", pool)

        def answers() -> bool:
            assert process.poll() is None, (folder / "viewer.log").read_text()
            try:
                return server.get("/healthz").status == 200
            except urllib3.exceptions.HTTPError:
                return False

        try:
            until(answers, 120, "the viewer answers")
            yield server
        finally:
            process.terminate()
            assert process.wait(timeout=120) in (0, -15)


def token(plane: ControlPlane, account: str, where: str, audience: str = "") -> str:
    spec: dict[str, Any] = {"audiences": [audience] if audience else [], "expirationSeconds": 3600}
    made = plane.core.create_namespaced_service_account_token(account, where, {"spec": spec})
    return str(made.status.token)


def person(plane: ControlPlane, name: str, **rule: list[str]) -> str:
    """A ServiceAccount that may get Trenchcoats in viewer-mine; returns a token of it."""
    rights, where = client.RbacAuthorizationV1Api(plane.api), "viewer-mine"
    plane.core.create_namespaced_service_account(where, {"metadata": {"name": name}})
    rights.create_namespaced_role(where, {"metadata": {"name": name}, "rules": [READ | rule]})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": where}
    binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
    rights.create_namespaced_role_binding(where, binding)
    return token(plane, name, where)


def rights(plane: ControlPlane) -> None:
    """Two namespaces for Trenchcoats, and the viewer's rights as the chart renders them."""
    for name in (OPS, "viewer-mine", "viewer-theirs"):
        plane.namespace(name)
    for body in template("viewer.enabled=true", "fullnameOverride=tc-trenchcoat", "crds.enabled=false"):
        if body["kind"] in RIGHTS and body["metadata"]["name"].endswith("-viewer"):
            for place in (body["metadata"], *body.get("subjects", [])):
                if "namespace" in place:
                    place["namespace"] = OPS
            utils.create_from_dict(plane.api, body)
