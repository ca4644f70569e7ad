"""The cluster, kwok, the operator and the player of stages, and the phases that they go through."""

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from minio import Minio

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import components, lifecycle  # noqa: E402
from local_cluster.shell import wait_for  # noqa: E402
from phase import METRICS_PORT, Phase, scrape  # noqa: E402
from player import OBJECTS, Api, Player  # noqa: E402

NAMESPACE, BUCKET = "scale", "trenchcoat"
GPUS_PER_NODE = 8
SAMPLE_SECONDS = 2.0
CLUSTER = REPO / "hack" / "cluster" / "cluster"


class Bench:
    """The cluster, kwok, the operator and the player of stages."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        self._wanted = wanted
        self._processes: list[subprocess.Popen[bytes]] = []
        self._player: Player | None = None
        self._made = 0
        self._started = time.monotonic()

    def __enter__(self) -> "Bench":
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_up(self) -> None:
        wanted = self._wanted
        if lifecycle.load(wanted.cluster) is None:
            cluster(wanted.cluster, "up", "--gpus", "0")
        self._layout = lifecycle.running(wanted.cluster)
        if not self._kubectl("get", "secret", "minio", "-n", NAMESPACE, "--ignore-not-found", check=False):
            cluster(wanted.cluster, "deploy", "--namespace", NAMESPACE)
        self._logs = self._layout.logs
        components.build(["kwok"])
        self._kubectl("apply", "--server-side", "-f", str(REPO / "crds"))
        known = ("get", "--raw", "/apis/trenchcoat.dev/v1alpha1/trenchcoats")
        wait_for(
            "the resource", lambda: bool(lifecycle.kubectl(self._layout, *known, check=False)), seconds=30
        )
        self._speed_up_training_operator()
        self._make_nodes()
        self._start_kwok()
        self._start_operator()
        self._kubectl("delete", "trenchcoats", "-n", NAMESPACE, "--all")
        self._store()
        api = Api(json.loads(self._layout.kubeconfig.read_text()))
        self._player = Player(api, self._client, BUCKET, NAMESPACE, wanted.stage_seconds)
        self._player.start()

    def __exit__(self, *_: object) -> None:
        if self._player is not None:
            self._player.stop()
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)
        if not self._wanted.keep:
            cluster(self._wanted.cluster, "down")

    def _kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        return lifecycle.kubectl(self._layout, *words, stdin=stdin, check=check)

    def _make_nodes(self) -> None:
        where = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node-1"}}}}}
        self._kubectl("patch", "daemonset/coredns", "-n", "kube-system", "-p", json.dumps(where))
        self._kubectl("taint", "nodes", "node-1", "benchmark=real:NoSchedule", "--overwrite")
        room = {"cpu": "192", "memory": "2Ti", "pods": "1000", "nvidia.com/gpu": str(GPUS_PER_NODE)}
        nodes = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": f"kwok-{number:03d}",
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                    "labels": {"kubernetes.io/hostname": f"kwok-{number:03d}", "type": "kwok"},
                },
                "status": {"allocatable": room, "capacity": room},
            }
            for number in range(self._wanted.nodes)
        ]
        self._kubectl("delete", "nodes", "-l", "type=kwok")
        self._kubectl(
            "create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes})
        )

    def _speed_up_training_operator(self) -> None:
        """Its client is held to 20 requests a second by default, which would be what is measured."""
        path = "/spec/template/spec/containers/0/args/-"
        self._kubectl("taint", "nodes", "node-1", "benchmark-", check=False)
        there = self._kubectl("get", "deployment", "training-operator", "-n", "kubeflow", "-o", "json")
        if "--kube-api-qps" in there:
            return
        patch = [{"op": "add", "path": path, "value": f"--kube-api-{name}=300"} for name in ("qps", "burst")]
        words = ("-n", "kubeflow", "deployment/training-operator")
        self._kubectl("patch", *words, "--type=json", "-p", json.dumps(patch))
        self._kubectl("rollout", "status", *words, "--timeout=120s")

    def _spawn(self, name: str, command: list[str], **variables: str) -> None:
        log = (self._logs / f"{name}.log").open("wb")
        environment = {**os.environ, "KUBECONFIG": str(self._layout.kubeconfig), **variables}
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def _start_kwok(self) -> None:
        shortest = int(self._wanted.stage_seconds * 1000)
        stages = (Path(__file__).with_name("stages.yaml")).read_text()
        config = self._logs / "kwok-stages.yaml"
        longest = str(int(shortest * 1.5))
        config.write_text(stages.replace("SHORTEST", str(shortest)).replace("LONGEST", longest))
        program = str(components.binary("kwok", "kwok"))
        flags = [f"--kubeconfig={self._layout.kubeconfig}", f"--config={config}", "--cidr=10.128.0.0/16"]
        flags += [
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=24",  # renewed every 6 s: after 16 s of silence a node is lost
        ]
        self._spawn("kwok", [program, *flags])
        self._kubectl("wait", "nodes", "-l", "type=kwok", "--for=condition=Ready", "--timeout=60s")

    def _start_operator(self) -> None:
        variables = {
            "TRENCHCOAT_METRICS_PORT": str(METRICS_PORT),
            "TRENCHCOAT_HEALTH_PORT": str(METRICS_PORT + 1),
            "TRENCHCOAT_WORKERS": str(self._wanted.workers),
            "TRENCHCOAT_LOG_LEVEL": "WARNING",
        }
        self._spawn("operator", [sys.executable, "-m", "trenchcoat_operator"], **variables)
        deadline = time.monotonic() + 60
        while True:
            try:
                scrape()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _store(self) -> None:
        address = self._kubectl("get", "service", "minio", "-n", "minio", "-o", "jsonpath={.spec.clusterIP}")
        secret = json.loads(self._kubectl("get", "secret", "minio", "-n", NAMESPACE, "-o", "json"))
        keys = (self._decoded(secret, name) for name in ("accessKey", "secretKey"))
        self._endpoint = f"http://{address}:9000"
        self._client = Minio(f"{address}:9000", *keys, secure=False)

    @staticmethod
    def _decoded(secret: dict[str, Any], name: str) -> str:
        return base64.b64decode(secret["data"][name]).decode()

    # Trenchcoats

    def _apply(self, count: int) -> None:
        """Make Trenchcoats that have nothing in common, so that nothing is reused."""
        bodies = []
        for number in range(self._made, self._made + count):
            spec = {
                "model": {"source": "s3://trenchcoat/teachers/llama-405b"},
                "data": {"source": "s3://trenchcoat/corpora/*.jsonl", "tokens": 20_000_000},
                "store": {
                    "endpoint": self._endpoint,
                    "bucket": BUCKET,
                    "prefix": f"scale-{os.getpid()}/{number:05d}",
                    "credentialsSecretRef": {"name": "minio"},
                },
                "layersPerCria": 9,
                "collect": {"nodes": 1, "gpusPerNode": 8},
                "stitch": {"nodes": 1, "gpusPerNode": 8},
            }
            bodies.append(
                {
                    "apiVersion": "trenchcoat.dev/v1alpha1",
                    "kind": "Trenchcoat",
                    "metadata": {"name": f"scale-{number:05d}", "namespace": NAMESPACE},
                    "spec": spec,
                }
            )
        self._made += count
        for body in bodies:
            self._player.expect(body)
        self._kubectl("create", "-f", "-", stdin="\n---\n".join(yaml.safe_dump(body) for body in bodies))

    # Phases

    def run(self) -> dict[str, Any]:
        """Apply all; until the last one succeeded, or there is no more time."""
        phase = Phase("run", self._player)
        self._apply(self._wanted.trenchcoats)
        end = time.monotonic() + (self._wanted.longest or float("inf"))
        while len(self._player.done) < self._wanted.trenchcoats and time.monotonic() < end:
            self._tick(phase)
        return phase.result(self._wanted.nodes * GPUS_PER_NODE) | {"succeeded": len(self._player.done)}

    def idle(self, seconds: float) -> dict[str, Any]:
        """Nothing to do."""
        phase = Phase("idle", self._player)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._tick(phase)
        return phase.result(None)

    def churn(self, seconds: float, alive: int) -> dict[str, Any]:
        """Delete each that succeeded, apply another."""
        names = self._kubectl("get", "trenchcoats", "-n", NAMESPACE, "-o", "name").split()
        self._delete(name.partition("/")[2] for name in names)
        phase = Phase("churn", self._player)
        gone, end = 0, time.monotonic() + seconds
        self._apply(alive)
        while time.monotonic() < end:
            self._tick(phase)
            if complete := list(self._player.done):
                self._delete(complete)
                gone += len(complete)
                self._apply(len(complete))
        return phase.result(self._wanted.nodes * GPUS_PER_NODE) | {"deleted": gone, "alive": alive}

    def _delete(self, names: Any) -> None:
        names = list(names)
        self._kubectl("delete", "trenchcoats", "-n", NAMESPACE, "--wait=false", *names)
        for name in names:
            self._player.forget(name)

    def _tick(self, phase: Phase) -> None:
        time.sleep(SAMPLE_SECONDS)
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended with {process.returncode}: see {self._logs}")
        if fault := self._player.fault():
            raise RuntimeError(fault)
        phase.sample()

    def setting(self) -> dict[str, Any]:
        """What the numbers were measured on and with."""
        version = json.loads(self._kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        go_mod = (components.COMPONENTS / "kwok" / "go.mod").read_text()
        described = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        cpu = next((text.strip() for name, _, text in described if name.strip() == "model name"), "?")
        packages = ("kopf", "kubernetes", "pydantic", "minio", "prometheus-client")
        return {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "command": " ".join(["python benchmarks/operator", *sys.argv[1:]]),
            "cpu": f"{os.cpu_count()} cores of {cpu}, shared with the cluster and all that is played",
            "versions": {
                "kubernetes": version,
                "kwok": components.pinned_version(go_mod, "sigs.k8s.io/kwok"),
                "python": platform.python_version(),
                **{f"{name} (Python)": metadata.version(name) for name in packages},
            },
            "trenchcoats": self._wanted.trenchcoats,
            "crias": 14,
            "nodes": self._wanted.nodes,
            "gpus": self._wanted.nodes * GPUS_PER_NODE,
            "stage_seconds": self._wanted.stage_seconds,
            "workers": self._wanted.workers,
            "objects_per_manifest": OBJECTS,
        }


def cluster(name: str, *words: str) -> None:
    subprocess.run([str(CLUSTER), "--name", name, *words], check=True)
