"""Simulate a run of 405B: real API server, scheduler, MinIO and operator; nodes and stages are played.

    python benchmarks/simulate            # writes results/ beside this file

Stages take as long as the plan says, compressed so that the best schedule takes `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from durations import GANG_NODES, GPUS_PER_NODE, NAMESPACE, POOL, REPO, Durations, body
from minio import Minio
from picture import gantt, table
from playing import Player
from trenchcoat_api.stages import Stage

sys.path.insert(0, str(REPO))

from tests.control_plane import ControlPlane, control_plane, node
from tests.minio_server import ACCESS_KEY, BUCKET, SECRET_KEY, find_minio, running_minio
from tests.waiting import until

GPU = "nvidia.com/gpu"
RESULTS = Path(__file__).with_name("results")
METRICS_PORT = 18081
LOSSES = (Stage.CRIA, Stage.EVALUATE)
"""A node is lost in the middle of each."""
BACK_AFTER = 0.02
"""When another takes its place, in parts of the bound."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="what the best schedule is to take")
    parser.add_argument("--gpus", type=int, nargs="*", default=[14, 4, 1], help="sizes of the pool of Crias")
    parser.add_argument(
        "--lose", type=int, nargs="*", default=[14, 4], help="sizes to lose nodes of, besides"
    )
    wanted = parser.parse_args()
    durations, results = Durations.planned(), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "plane").mkdir()
        (place / "minio").mkdir()
        program = find_minio()
        if program is None:
            sys.exit("no MinIO: hack/cluster builds it")
        with control_plane(place / "plane") as plane, running_minio(program, place / "minio") as server:
            plane.define()
            secret = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
            plane.namespace(NAMESPACE)
            plane.core.create_namespaced_secret(
                NAMESPACE, {"metadata": {"name": "minio"}, "stringData": secret}
            )
            for number in range(GANG_NODES):
                node(plane, f"gang-{number}", room(GPUS_PER_NODE), labels={POOL: "gang"})
            for lost, sizes in ((0, wanted.gpus), (len(LOSSES), wanted.lose)):
                for gpus in sizes:
                    found = simulate(plane, server.endpoint, durations, gpus, lost, wanted.seconds, place)
                    print(json.dumps({key: value for key, value in found.items() if key != "bars"}))
                    results.append(found)
    write(results, durations, wanted.seconds)


def simulate(
    plane: ControlPlane,
    endpoint: str,
    durations: Durations,
    gpus: int,
    lost: int,
    seconds: float,
    folder: Path,
) -> dict[str, Any]:
    """One run on a pool of so many GPUs for Crias, which loses so many nodes."""
    bound = durations.bound(gpus)
    name = f"crias-{gpus}-{lost}"
    pool = {f"{name}-{at // 2}": min(2, gpus - at) for at in range(0, gpus, 2)}
    for node_name, count in pool.items():
        node(plane, node_name, room(count), labels={POOL: "crias"})
    made = body(name, endpoint, gpus)
    store = Minio(urlsplit(endpoint).netloc, access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False)
    player = Player(plane, store, BUCKET, made)
    player.compress(durations.seconds, bound / seconds)
    with (folder / f"{name}.log").open("wb") as log:
        variables = {
            "KUBECONFIG": str(plane.kubeconfig),
            "TRENCHCOAT_METRICS_PORT": str(METRICS_PORT),
            "TRENCHCOAT_HEALTH_PORT": str(METRICS_PORT + 1),
            "TRENCHCOAT_LOG_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "trenchcoat_operator"]
        operator = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
        try:
            until(lambda: requests() is not None, 60, "the operator serves metrics")
            before = requests() or 0
            player.start()
            began = time.monotonic()
            plane.apply(made, NAMESPACE)
            taken = 0
            while not succeeded(plane, name):
                if player.fault:
                    raise player.fault
                if operator.poll() is not None:
                    raise RuntimeError((folder / f"{name}.log").read_text()[-2000:])
                if time.monotonic() - began > 4 * seconds:
                    raise RuntimeError(f"{name} does not end: {plane.read(name, NAMESPACE).get('status')}")
                victim = player.half_done(LOSSES[taken]) if taken < lost else None
                if victim:
                    player.take_node(victim)
                    taken += 1
                    time.sleep(BACK_AFTER * seconds)
                    node(plane, f"{victim}-again", room(pool[victim]), labels={POOL: "crias"})
                    pool[f"{victim}-again"] = pool.pop(victim)
                time.sleep(0.2)
            took = time.monotonic() - began
            asked = (requests() or 0) - before
        finally:
            operator.terminate()
            operator.wait(30)
            player.stop()
    plane.delete(name, NAMESPACE)
    for node_name in pool:
        plane.core.delete_node(node_name)
    scale = bound / seconds
    return {
        "gpus": gpus,
        "nodes_lost": lost,
        "bound_hours": bound / 3600,
        "seconds": took,
        "beyond_seconds": took - seconds,
        "of_bound": took / seconds,
        # What is waited for beyond the bound is the operator's and the scheduler's real time, at any length.
        "at_full_length": None if lost else (bound + took - seconds) / bound,
        "lost_minutes": player.played.lost * scale / 60,
        "api_requests": int(asked),
        "bars": [
            {**vars(bar), "began": bar.began - began, "ended": bar.ended - began}
            for bar in player.played.bars
        ],
    }


def room(gpus: int) -> dict[str, str]:
    """What a node has; the evaluation asks for local disk."""
    return {GPU: str(gpus), "ephemeral-storage": "4Ti"}


def succeeded(plane: ControlPlane, name: str) -> bool:
    """Whether all stages are complete."""
    conditions = (plane.read(name, NAMESPACE).get("status") or {}).get("conditions", [])
    held = {item["type"]: item for item in conditions if item["status"] == "True"}
    if "Stalled" in held:
        raise RuntimeError(f"{name} stalled: {held['Stalled']['message']}")
    return "Succeeded" in held


def requests() -> float | None:
    """API requests that the operator has made; None while it serves no metrics."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("trenchcoat_api_requests_total")
    )


def write(results: list[dict[str, Any]], durations: Durations, seconds: float) -> None:
    """Leave what was measured."""
    setting = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python benchmarks/simulate", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "seconds_of_the_bound": seconds,
        "planned_seconds": {stage.value: value for stage, value in durations.seconds.items()},
    }
    kept = [{key: value for key, value in item.items() if key != "bars"} for item in results]
    (RESULTS / "simulated.json").write_text(json.dumps({**setting, "runs": kept}, indent=1) + "\n")
    (RESULTS / "simulated.md").write_text(table(results))
    last = results[-1]
    title = f"{last['gpus']} GPUs for Crias, {last['nodes_lost']} nodes lost; red: what they ended"
    (RESULTS / "simulated.svg").write_text(gantt(last["bars"], title))


if __name__ == "__main__":
    main()
