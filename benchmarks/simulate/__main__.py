"""Simulate runs of 405B: real API server, scheduler, controllers, training operator, Kueue and operator.

    python benchmarks/simulate            # writes results/ beside this file

kwok plays the nodes, and playing.py the stages: they take as long as the plan says, `--scale` times less. All
runs go side by side, each with nodes, quota, tenants and losses of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from argo import ArgoRival
from arms import ARGO, ARGO_RESUMES, RIVAL, TRENCHCOAT, Arm
from cluster import Cluster, cluster, components
from disturbing import LONGEST, Disturber
from durations import Durations, body
from measuring import Seen, Watcher, busy, off, span_of
from picture import gantt, table, waits
from playing import CHECKPOINT_SECONDS, Api, Bar, Player, Script
from rival import Rival
from trenchcoat_api.stages import Stage

RESULTS = Path(__file__).with_name("results")
CRIAS = 14
APART_SECONDS = 8.0
"""Between the beginnings of runs: all of their Crias at one moment would be a measurement of Kueue."""
WAVE_SECONDS = 30.0
"""How much longer a run takes for each time that Crias wait for others: what is real is paid at each."""
BACK_OFF_SECONDS = 10.0
"""The Job controller's, before it makes another pod for one that was lost: real, whatever is compressed."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--seconds",
        type=float,
        default=300,
        help="what the best schedule is to take, less WAVE_SECONDS a wave",
    )
    parser.add_argument(
        "--gpus", type=int, nargs="*", default=[1, 4, 14, 24], help="sizes of the Crias' pool"
    )
    parser.add_argument(
        "--evaluate-gpus", type=int, default=8, help="GPUs of the evaluation, on one node: 8 is the example's"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="of losses and tenants")
    parser.add_argument("--undisturbed", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # all that was started ends, too
    durations, arms = Durations.planned(wanted.evaluate_gpus), []
    for seed in ([None] if wanted.undisturbed else []) + wanted.seeds:
        for gpus in wanted.gpus:
            kinds = [TRENCHCOAT, RIVAL, ARGO, *([] if seed is None else [ARGO_RESUMES])]
            bound, waves = durations.bound(gpus), math.ceil(CRIAS / gpus)
            scale = bound / (wanted.seconds + WAVE_SECONDS * waves)
            arms += [Arm(kind, gpus, seed, bound, scale) for kind in kinds]
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as made:
        results = simulate(made, durations, arms)
    write(results, durations, wanted)
    for run in results:
        print(json.dumps({key: value for key, value in run.items() if key != "bars"}), flush=True)


def simulate(made: Cluster, durations: Durations, arms: list[Arm]) -> list[dict[str, Any]]:
    """All at once; what they have in common is the control plane, the operator and this machine."""
    evaluate_gpus = durations.gpus(Stage.EVALUATE)
    bodies = {
        arm.name: body(arm.name, made.endpoint, evaluate_gpus) for arm in arms if arm.kind == TRENCHCOAT
    }
    for arm in arms:
        arm.set_up(made)
    scripts = {arm.name: Script(arm, made, durations, bodies.get(arm.name)) for arm in arms}
    api = Api(kubeconfig(made))
    player, watcher = Player(made, api, list(scripts.values())), Watcher(api)
    player.start()
    time.sleep(3)  # until all is watched
    before = made.requests()
    rivals, disturbers, begun = {}, {}, {}
    for arm in sorted(arms, key=lambda arm: -arm.seconds):
        time.sleep(APART_SECONDS)
        begun[arm.name] = time.monotonic()
        if arm.kind == TRENCHCOAT:
            made.plane.apply(bodies[arm.name], arm.name)
        else:
            kind = Rival if arm.kind == RIVAL else ArgoRival
            rivals[arm.name] = kind(made, arm, durations)
            rivals[arm.name].start()
        if arm.seed is not None:
            disturbers[arm.name] = Disturber(made, player, scripts[arm.name], arm.seed)
    ends: dict[str, float] = {}
    try:
        while len(ends) < len(arms):
            time.sleep(0.2)
            for part in (player, watcher, *rivals.values(), *disturbers.values()):
                if part.fault:
                    raise part.fault
            for arm in (arm for arm in arms if arm.name not in ends):
                rival = rivals.get(arm.name)
                ended = rival.ended if rival else watcher.seen[arm.name].ended
                if ended is not None:
                    ends[arm.name] = ended
                    print(f"{arm.name}: {(ended - begun[arm.name]) / arm.seconds:.3f}", flush=True)
                    if arm.name in disturbers:
                        disturbers[arm.name].stop()
                elif time.monotonic() - begun[arm.name] > LONGEST * arm.seconds + 120:
                    told = made.plane.read(arm.name, arm.name).get("status") if arm.name in bodies else None
                    raise RuntimeError(f"{arm.name} does not end: {json.dumps(told)}")
        asked = (made.requests() - before) / len(bodies)
    finally:
        for part in (*disturbers.values(), *rivals.values(), watcher, player):
            part.stop()
    found = []
    for arm in arms:
        script, taken = scripts[arm.name], disturbers[arm.name].taken if arm.name in disturbers else []
        run = result(arm, script, begun[arm.name], ends[arm.name], taken)
        seen = watcher.seen[arm.name] if arm.kind == TRENCHCOAT else None
        found.append({**run, "seed": arm.seed, **told_of(seen, arm, script.bars, asked)})
    return found


def result(
    arm: Arm, script: Script, began: float, ended: float, taken: list[tuple[float, str]]
) -> dict[str, Any]:
    """What came of one arm."""
    bars = [bar for bar in script.bars if bar.name not in script.tenants]
    while_crias = span_of(bars, "cria-")
    room = arm.gpus * (while_crias[1] - while_crias[0])
    losses = [bar.lost * arm.scale for bar in bars]
    took = ended - began
    # Compressed, this would be a part of a second; it is not the rival's fault that it is not.
    real = 0.0 if arm.kind == TRENCHCOAT else back_off(bars)
    return {
        "kind": arm.kind,
        "gpus": arm.gpus,
        "nodes_lost": len(taken),
        "taken": taken,
        "tenants": sum(bar.name in script.tenants for bar in script.bars),
        "bound_hours": arm.bound / 3600,
        "bound_seconds": arm.seconds,
        "seconds": took,
        "of_bound": (took - real) / arm.seconds,
        "of_bound_with_back_off": took / arm.seconds,
        # Undisturbed, what is beyond the bound is real time, which is not longer where the stages are.
        "at_full_length": (arm.bound + took - arm.seconds) / arm.bound
        if arm.seed is None and arm.kind in (TRENCHCOAT, ARGO)
        else None,
        "idle_share": 1 - busy(bars, "crias", while_crias) / room,
        "unavoidable_idle_share": 1 - CRIAS / (arm.gpus * math.ceil(CRIAS / arm.gpus)),
        "idle_share_with_tenants": 1 - busy(script.bars, "crias", while_crias) / room,
        "lost_minutes": sum(losses) / 60,
        "longest_loss_checkpoints": max(losses) / CHECKPOINT_SECONDS,
        "bars": [
            {**vars(bar), "began": bar.began - began, "ended": bar.ended - began}
            for bar in sorted(bars, key=lambda bar: bar.began)
        ],
    }


def back_off(bars: list[Bar]) -> float:
    """Seconds of the Job controller's back-off before what a lost node ended began again, at most."""
    waited: dict[int, float] = {}
    for lost in (bar for bar in bars if bar.outcome == "lost"):
        again = [bar.began for bar in bars if bar.name == lost.name and bar.began >= lost.ended]
        once = round(lost.ended)  # several pods of one node wait side by side
        waited[once] = max(waited.get(once, 0.0), min(BACK_OFF_SECONDS, min(again, default=0.0) - lost.ended))
    return sum(seconds for seconds in waited.values() if seconds > 0)


def versions() -> dict[str, str]:
    """Of what takes part, as hack/cluster pins it."""
    modules = {
        "argo-workflows": "github.com/argoproj/argo-workflows/v3",
        "kubernetes": "k8s.io/kubernetes",
        "kueue": "sigs.k8s.io/kueue",
        "kwok": "sigs.k8s.io/kwok",
        "training-operator": "github.com/kubeflow/training-operator",
    }
    texts = {name: (components.COMPONENTS / name / "go.mod").read_text() for name in modules}
    return {name: components.pinned_version(texts[name], module) for name, module in modules.items()}


def processor() -> str:
    """What this machine computes with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(named)} x {named[0]}" if named else platform.machine()


def told_of(seen: Seen | None, arm: Arm, bars: list[Bar], asked: float) -> dict[str, Any]:
    """What the status told of waiting and of the time left."""
    if seen is None:
        return {"waited_minutes": None, "api_requests": None, "estimates_off": None}
    waited = {reason: seconds * arm.scale / 60 for reason, seconds in seen.waited.items()}
    ends = {
        name: span_of(bars, name)[1] for name in ("collect", "shard", "cria", "stitch", "evaluate", "export")
    }
    return {
        "waited_minutes": waited,
        "api_requests": asked,
        "estimates_off": {name: off(seen.told, name, ended) for name, ended in ends.items()},
    }


def kubeconfig(made: Cluster) -> dict[str, Any]:
    """The administrator's, with the path of its authority made absolute."""
    found: dict[str, Any] = json.loads(made.plane.kubeconfig.read_text())
    own = found["clusters"][0]["cluster"]
    own["certificate-authority"] = str(made.plane.kubeconfig.parent / own["certificate-authority"])
    return found


def write(results: list[dict[str, Any]], durations: Durations, wanted: argparse.Namespace) -> None:
    """Leave what was measured."""
    words = sys.argv[1:]
    if "--out" in words:  # where it lies says nothing of what was measured
        del words[words.index("--out") : words.index("--out") + 2]
    setting = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python benchmarks/simulate", *words]),
        "cpu": processor(),
        "niceness": os.nice(0),
        "versions": versions(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "planned_seconds": {stage.value: value for stage, value in durations.seconds.items()},
    }
    kept = [{key: value for key, value in run.items() if key != "bars"} for run in results]
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "simulated.json").write_text(json.dumps({**setting, "runs": kept}, indent=1) + "\n")
    (wanted.out / "simulated.md").write_text(f"{table(results)}\n{waits(results)}")
    last = [run for run in results if run["gpus"] == 14 and run["seed"] == results[-1]["seed"]]
    gantt(last or results[-3:], wanted.out / "simulated.svg")


if __name__ == "__main__":
    main()
