"""The cluster that the demo works on: one made here, or one that somebody has."""

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
CLUSTER = REPO / "hack" / "cluster" / "cluster"
STORE_SECRET = "minio"
STORE_NAMESPACE = "minio"
BUCKET = "trenchcoat"


class DemoError(Exception):
    """The demo cannot go on; the message says what is at fault and the remedy."""


@dataclass(frozen=True)
class Environment:
    """A cluster with the training operator and MinIO, and how to reach it."""

    kubeconfig: Path
    namespace: str
    operator_image: str
    trainer_image: str
    path: str
    """PATH with kubectl and helm."""

    def command(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a program against this cluster and return what it prints.

        Raises:
            DemoError: it failed and `check` is set.
        """
        result = subprocess.run(
            [self._program(words[0]), *words[1:]],
            env=self._variables(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise DemoError(f"{' '.join(words)} failed: {result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self.path)
        if found is None:
            raise DemoError(f"{name} is not on the PATH: install it")
        return found

    def _variables(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": self.path}

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in the demo's namespace."""
        return self.command("kubectl", "--namespace", self.namespace, *words, stdin=stdin, check=check)

    def get(self, *words: str) -> dict[str, Any]:
        """An object, or a list of them, as kubectl gives it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    @contextlib.contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """host:port of a Service on this machine, while the context lasts.

        Raises:
            DemoError: no pod behind it can be reached.
        """
        words = ["-n", namespace, "port-forward", f"service/{service}", f":{port}", "--address=127.0.0.1"]
        with subprocess.Popen(
            [self._program("kubectl"), *words],
            env=self._variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as forward:
            try:
                line = forward.stdout.readline() if forward.stdout else ""
                found = re.search(r"127\.0\.0\.1:(\d+)", line)
                if not found:
                    raise DemoError(
                        f"service/{service} in namespace {namespace} cannot be reached: is it deployed?"
                    )
                # It tells of every connection, and stands still where nobody reads what it tells.
                reader = threading.Thread(target=_read_on, args=(forward.stdout,))
                reader.start()
                try:
                    yield f"127.0.0.1:{found[1]}"
                finally:
                    forward.terminate()
                    reader.join()
            finally:
                forward.terminate()

    def store_address(self) -> contextlib.AbstractContextManager[str]:
        """host:port of MinIO on this machine, while the context lasts."""
        return self.forwarded(STORE_NAMESPACE, "minio", 9000)

    def store_credentials(self) -> tuple[str, str]:
        """Access key and secret key of the store."""
        data = self.get("secret", STORE_SECRET)["data"]
        access, secret = (base64.b64decode(data[key]).decode() for key in ("accessKey", "secretKey"))
        return access, secret


def _read_on(lines: Iterable[str] | None) -> None:
    for _ in lines or ():
        pass


def local(namespace: str, *, name: str = "trenchcoat", gpus: str = "1,1") -> Environment:
    """Start the local cluster unless it runs, with our images and what stands beside the operator."""
    if "does not run" in _cluster("status", name=name, check=False):
        _cluster("up", "--gpus", gpus, name=name, show=True)
    _cluster("images", name=name, show=True)
    _cluster("deploy", "--namespace", namespace, name=name, show=True)
    tags = json.loads(_cluster("images", "--print-tags", name=name))
    return Environment(
        kubeconfig=Path(_cluster("kubeconfig", name=name).strip()),
        namespace=namespace,
        operator_image=tags["operator"],
        trainer_image=tags["trainer"],
        path=_cluster("bin", name=name).strip() + os.pathsep + os.environ["PATH"],
    )


def foreign(kubeconfig: Path, registry: str, tag: str, namespace: str) -> Environment:
    """Use a cluster that somebody has; MinIO is added to it."""
    environment = Environment(
        kubeconfig=kubeconfig,
        namespace=namespace,
        operator_image=f"{registry}/operator:{tag}",
        trainer_image=f"{registry}/trainer:{tag}",
        path=os.environ["PATH"],
    )
    for name in dict.fromkeys((STORE_NAMESPACE, namespace)):
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        environment.command("kubectl", "apply", "-f", "-", stdin=json.dumps(manifest))
    if not environment.command(
        "kubectl", "-n", STORE_NAMESPACE, "get", "service/minio", "--ignore-not-found"
    ):
        _deploy_minio(environment)
    _share_credentials(environment)
    return environment


def _deploy_minio(environment: Environment) -> None:
    """Apply manifests/minio with random credentials; the image is MinIO's own."""
    values = {"accessKey": secrets.token_hex(8), "secretKey": secrets.token_hex(20)}
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": values}
    secret["metadata"] = {"name": STORE_SECRET, "namespace": STORE_NAMESPACE}
    environment.command("kubectl", "apply", "-f", "-", stdin=json.dumps(secret))
    manifests = environment.command("kubectl", "kustomize", str(REPO / "manifests" / "minio"))
    # The bucket's Job runs in our own image, which has an S3 client.
    manifests = manifests.replace("image: trenchcoat-operator", f"image: {environment.operator_image}")
    environment.command("kubectl", "apply", "-f", "-", stdin=manifests)
    waits = ("kubectl", "-n", STORE_NAMESPACE, "wait", "--timeout=300s")
    environment.command(*waits, "--for=condition=Available", "deployment/minio")
    environment.command(*waits, "--for=condition=Complete", "job/bucket")


def _share_credentials(environment: Environment) -> None:
    """Copy MinIO's Secret into the namespace of the Trenchcoats."""
    read = environment.command("kubectl", "-n", STORE_NAMESPACE, "get", "secret", STORE_SECRET, "-o", "json")
    secret = {"apiVersion": "v1", "kind": "Secret", "data": json.loads(read)["data"]}
    secret["metadata"] = {"name": STORE_SECRET, "namespace": environment.namespace}
    environment.command("kubectl", "apply", "-f", "-", stdin=json.dumps(secret))


def add_kueue(namespace: str, *, name: str = "trenchcoat") -> None:
    """Install Kueue in a local cluster that runs."""
    _cluster("deploy", "--kueue", "--namespace", namespace, name=name, show=True)


def remove(name: str) -> None:
    """Take a local cluster down."""
    _cluster("down", name=name)


def _cluster(*words: str, name: str = "trenchcoat", show: bool = False, check: bool = True) -> str:
    result = subprocess.run(
        [str(CLUSTER), "--name", name, *words],
        stdout=None if show else subprocess.PIPE,
        text=True,
        check=False,
    )
    if check and result.returncode:
        raise DemoError(f"hack/cluster/cluster {' '.join(words)} failed; see above")
    return result.stdout or ""
