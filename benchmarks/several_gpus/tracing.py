"""Where a step's time goes on one rank: what torch's profiler saw of kernels and of collective operations."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ITEM_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "unsigned char", "signed char", "bool"), 1),
    **dict.fromkeys(("BFloat16", "Half", "c10::BFloat16", "c10::Half"), 2),
    **dict.fromkeys(("Float", "Int", "float", "int"), 4),
    **dict.fromkeys(("Double", "Long", "double", "long int"), 8),
}
"""By the names that the profiler gives types in what NCCL tells, and in operators' arguments."""


@contextmanager
def traced(device: torch.device, steps: int) -> Iterator[dict[str, Any]]:
    """Fill the dictionary that it hands out, on leaving, with what a step took, a mean over `steps`."""
    result: dict[str, Any] = {}
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        yield result
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    result |= {"received_gb": moved(events, steps)} | waits(events, steps)


def moved(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Return the 10^9 bytes that each kind of collective operation left on this rank, in a step.

    NCCL tells them; of other backends the operators' first arguments are what is filled.
    """
    found: dict[str, float] = defaultdict(float)
    for event in events:
        told = event.get("args", {})
        if event.get("name") == "record_param_comms" and told.get("Collective name"):
            size = int(told.get("Out msg nelems", 0)) * ITEM_BYTES.get(told.get("dtype", ""), 0)
            found[told["Collective name"]] += size / 1e9 / steps
    if found:
        return dict(found)
    for event in events:
        told = event.get("args", {})
        if event.get("name", "").startswith("c10d::") and told.get("Input type"):
            size = ITEM_BYTES.get(told["Input type"][0], 0)  # none of lists, which are small
            if size:
                found[event["name"]] += size * math.prod(told["Input Dims"][0]) / 1e9 / steps
    return dict(found)


def waits(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Return the milliseconds of a step, and the shares in which kernels compute, only talk, or nothing runs.

    Nothing on a CPU, where there are no kernels.
    """
    kernels = [event for event in events if event.get("cat") == "kernel"]
    if not kernels:
        return {}
    talking = union(span(event) for event in kernels if "nccl" in event["name"].lower())
    computing = union(span(event) for event in kernels if "nccl" not in event["name"].lower())
    busy = length(union([*talking, *computing]))
    began = min(event["ts"] for event in kernels)
    whole = max(event["ts"] + event["dur"] for event in kernels) - began
    return {
        "traced_step_ms": whole / 1e3 / steps,
        "computing_share": length(computing) / whole,
        "nccl_share": length(talking) / whole,
        "waits_for_nccl_share": (busy - length(computing)) / whole,
        "idle_share": 1 - busy / whole,
    }


def span(event: dict[str, Any]) -> tuple[float, float]:
    """Return when an event began and ended, in microseconds."""
    return event["ts"], event["ts"] + event["dur"]


def union(spans: Any) -> list[tuple[float, float]]:
    """Return the same times without overlaps."""
    merged: list[tuple[float, float]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def length(spans: list[tuple[float, float]]) -> float:
    """Return how long spans without overlaps are together."""
    return sum(last - first for first, last in spans)
