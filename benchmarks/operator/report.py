"""The numbers for people."""

from typing import Any


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
