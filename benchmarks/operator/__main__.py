"""The operator among many Trenchcoats, on a real API server.

Real: etcd, API server, controller manager, scheduler, training operator, MinIO and the operator, a process of
its own here. Played: the nodes and their pods by kwok, and the stage programs' progress and manifests by
operator_scale_trainer.py. Nothing is computed, so that what is measured is the operator.

Three phases: `run` applies all Trenchcoats at once and waits until the last has succeeded (or for --longest);
`idle` watches when all is done; `churn` deletes each that has succeeded and applies another in its place.
"""

import argparse
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from minio import Minio
from prometheus_client.parser import text_string_to_metric_families

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "hack" / "cluster"))

from local_cluster import components, lifecycle  # noqa: E402
from local_cluster.shell import wait_for  # noqa: E402
from operator_scale_trainer import OBJECTS, Api, Player  # noqa: E402

NAMESPACE, BUCKET = "scale", "trenchcoat"
METRICS_PORT = 18081
GPUS_PER_NODE = 8
SAMPLE_SECONDS = 2.0
CLUSTER = REPO / "hack" / "cluster" / "cluster"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def main() -> None:
    wanted = parser().parse_args()
    with Bench(wanted) as bench:
        phases = [bench.run()]
        if wanted.idle:
            phases.append(bench.idle(wanted.idle))
        if wanted.churn:
            phases.append(bench.churn(wanted.churn, wanted.alive))
        result = {"setting": bench.setting(), "phases": phases}
    (wanted.out.parent).mkdir(parents=True, exist_ok=True)
    wanted.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    wanted.out.with_suffix(".md").write_text(report(result))
    sys.stdout.write(report(result))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--cluster", default="tc-scale", help="name of the local cluster (default: tc-scale)")
    top.add_argument("--keep", action="store_true", help="leave the cluster there, for another run")
    top.add_argument(
        "--trenchcoats", type=int, default=200, metavar="N", help="of 14 Crias each (default: 200)"
    )
    top.add_argument("--nodes", type=int, default=50, metavar="N", help="kwok nodes of 8 GPUs (default: 50)")
    top.add_argument(
        "--stage-seconds", type=float, default=15, metavar="S", help="of each stage (default: 15)"
    )
    top.add_argument(
        "--longest", type=float, metavar="S", help="end `run` then, whoever has succeeded (default: never)"
    )
    top.add_argument("--idle", type=float, default=60, metavar="S", help="length of `idle`; 0 leaves it out")
    top.add_argument(
        "--churn", type=float, default=300, metavar="S", help="length of `churn`; 0 leaves it out"
    )
    top.add_argument("--alive", type=int, default=40, metavar="N", help="Trenchcoats alive during `churn`")
    top.add_argument("--workers", type=int, default=4, metavar="N", help="TRENCHCOAT_WORKERS (default: 4)")
    top.add_argument(
        "--out", type=Path, default=REPO / "benchmarks" / "results" / "operator_scale", metavar="FILE"
    )
    return top


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
        stages = (REPO / "benchmarks" / "operator_scale_stages.yaml").read_text()
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

    def _tick(self, phase: "Phase") -> None:
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
            "command": " ".join(["python benchmarks/operator_scale.py", *sys.argv[1:]]),
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


class Phase:
    """What happens from its making to its result."""

    def __init__(self, name: str, player: Player) -> None:
        self._name, self._player = name, player
        self._begun = time.monotonic()
        self._first = scrape()
        self._transitions = Counter(player.transitions)
        self._writes = player.status_writes
        self._lags = len(player.lags)
        self._memory: list[tuple[float, float]] = []
        self._depth: list[float] = []
        self._busy: list[float] = []

    def sample(self) -> None:
        now = scrape()
        self._memory.append(
            (time.monotonic() - self._begun, value(now, "process_resident_memory_bytes") / 1e6)
        )
        self._depth.append(value(now, "trenchcoat_queue_depth"))
        # One GPU for each Cria and evaluation, eight for collect and stitch.
        stages = Counter(self._player.running.values())
        self._busy.append(stages["cria"] + stages["evaluate"] + 8 * (stages["collect"] + stages["stitch"]))

    def result(self, gpus: int | None) -> dict[str, Any]:
        last, seconds = scrape(), time.monotonic() - self._begun

        def grown(name: str, **labels: str) -> float:
            return total(last, name, **labels) - total(self._first, name, **labels)

        transitions = sum((self._player.transitions - self._transitions).values())
        requests = grown("trenchcoat_api_requests_total")
        by_kind = Counter(
            {
                f"{dict(labels)['verb']} {dict(labels)['resource']}": count
                - self._first.get((name, labels), 0.0)
                for (name, labels), count in last.items()
                if name == "trenchcoat_api_requests_total" and dict(labels)["code"].startswith("2")
            }
        )
        lags = self._player.lags[self._lags :]
        thirds = [item[1] for item in self._memory]
        third = max(1, len(thirds) // 3)
        return {
            "phase": self._name,
            "seconds": round(seconds, 1),
            "reconciles": int(grown("trenchcoat_reconcile_duration_seconds_count")),
            "reconcile_p50": self._quantile(last, 0.50),
            "reconcile_p95": self._quantile(last, 0.95),
            "reconcile_p99": self._quantile(last, 0.99),
            "errors": int(grown("trenchcoat_reconcile_errors_total")),
            "transitions": transitions,
            "status_writes": self._player.status_writes - self._writes,
            "api_requests": int(requests),
            "api_requests_per_transition": round(requests / transitions, 2) if transitions else None,
            "api_requests_per_second": round(requests / seconds, 1),
            "api_requests_by_kind": {name: int(count) for name, count in by_kind.most_common() if count},
            "store_reads": int(grown("trenchcoat_store_read_duration_seconds_count")),
            "cpu_cores": round(grown("process_cpu_seconds_total") / seconds, 3),
            "queue_depth_p95": percentile(self._depth, 0.95),
            "gpus_busy_mean": round(statistics.mean(self._busy), 1) if gpus else None,
            "gpus_busy_p95": percentile(self._busy, 0.95) if gpus else None,
            "pod_lag_p95": round(percentile(lags, 0.95), 2) if lags else None,
            "memory_mb_max": round(max(thirds), 1),
            "memory_mb_thirds": [
                round(statistics.median(part), 1)
                for part in (thirds[:third], thirds[third:-third], thirds[-third:])
                if part
            ],
            "memory_mb": [
                [round(at), round(size, 1)] for at, size in self._memory[:: max(1, len(self._memory) // 60)]
            ],
        }

    def _quantile(self, last: Series, share: float) -> float | None:
        """Interpolated within the histogram's bucket, as Prometheus does."""
        name = "trenchcoat_reconcile_duration_seconds_bucket"
        counts = sorted(
            (float(dict(labels)["le"]), count - self._first.get((key, labels), 0.0))
            for (key, labels), count in last.items()
            if key == name
        )
        rank = share * counts[-1][1]
        if not rank:
            return None
        below, under = 0.0, 0.0
        for bound, count in counts:
            if count >= rank:
                if bound == float("inf"):
                    return below
                return round(below + (bound - below) * (rank - under) / (count - under), 4)
            below, under = bound, count
        raise AssertionError("the last bucket holds all")


def scrape() -> Series:
    """All series of the operator."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(count for (key, found), count in series.items() if key == name and wanted <= set(found))


def value(series: Series, name: str) -> float:
    return series[(name, ())]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def cluster(name: str, *words: str) -> None:
    subprocess.run([str(CLUSTER), "--name", name, *words], check=True)


def report(result: dict[str, Any]) -> str:
    """The numbers for people."""
    setting, phases = result["setting"], result["phases"]
    shortest = setting["stage_seconds"]
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    lines = [
        "# The operator among many Trenchcoats",
        "",
        f"- Command: `{setting['command']}`, {setting['date']}",
        f"- Hardware: {setting['cpu']}",
        f"- Versions: {versions}",
        f"- {setting['trenchcoats']} Trenchcoats of {setting['crias']} Crias; {setting['nodes']} kwok nodes "
        f"with {setting['gpus']} GPUs; stages of {shortest:g} to {1.5 * shortest:g} s; "
        f"{setting['workers']} workers",
        "- Real: etcd, API server, controllers, scheduler, training operator, MinIO, the operator (a process "
        "on the same machine). Played: nodes and pods (kwok), progress and manifests (a writer)",
        "",
        "| | " + " | ".join(phase["phase"] for phase in phases) + " |",
        "|---|" + "---|" * len(phases),
    ]
    rows = {
        "seconds": "seconds",
        "passes": "reconciles",
        "pass p50, s": "reconcile_p50",
        "pass p95, s": "reconcile_p95",
        "pass p99, s": "reconcile_p99",
        "passes that failed": "errors",
        "transitions of stages and Crias": "transitions",
        "status writes": "status_writes",
        "API requests": "api_requests",
        "API requests a transition": "api_requests_per_transition",
        "API requests a second": "api_requests_per_second",
        "reads in the store": "store_reads",
        "CPU cores used": "cpu_cores",
        "queue depth p95": "queue_depth_p95",
        "GPUs busy, mean": "gpus_busy_mean",
        "kwok: pod bound to running p95, s": "pod_lag_p95",
        "memory max, MB": "memory_mb_max",
    }
    for label, key in rows.items():
        cells = ("-" if phase[key] is None else f"{phase[key]:,}" for phase in phases)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    thirds = ("/".join(f"{size:.0f}" for size in phase["memory_mb_thirds"]) for phase in phases)
    lines.append("| memory median by thirds, MB | " + " | ".join(thirds) + " |")
    for phase in phases:
        if phase.get("succeeded", setting["trenchcoats"]) < setting["trenchcoats"]:
            missing = f"{phase['succeeded']} of {setting['trenchcoats']} had succeeded when `run` was ended."
            lines += ["", missing]
        if "deleted" in phase:
            lines += [
                "",
                f"Churn: {phase['deleted']} Trenchcoats came and went, {phase['alive']} alive at once.",
            ]
        kinds = ", ".join(f"{name} {count:,}" for name, count in phase["api_requests_by_kind"].items())
        lines += ["", f"Requests of `{phase['phase']}`: {kinds}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
