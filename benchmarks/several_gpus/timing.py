"""What the ranks of this host can do at best, and what they ran on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "triton")


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device) -> float:
    """Return the FLOP/s of a square product of random bf16 matrices: 8192 numbers wide on a GPU."""
    width, rounds = (8192, 20) if device.type == "cuda" else (512, 8)
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    times: list[float] = []
    warm = time.perf_counter() + (0.5 if device.type == "cuda" else 0.0)  # an idle GPU's clock is slow
    while len(times) < rounds or time.perf_counter() < warm:
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - began)
    return 2 * width**3 / statistics.median(times[-rounds * 3 // 4 :])


def of_all_ranks(value: float, device: torch.device) -> list[float]:
    """Return every rank's number."""
    if not dist.is_initialized():
        return [value]
    mine = torch.tensor([value], dtype=torch.float64, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return [float(number) for number in found]


def peak_memory_gb(device: torch.device) -> float | None:
    """Return the most memory of a GPU that was in use, in 10^9 bytes; None for a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def conditions() -> dict[str, Any]:
    """Return hardware and versions."""
    gpus = torch.cuda.device_count()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    if gpus:
        versions |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return {
        "hardware": f"{gpus} x {torch.cuda.get_device_name()}" if gpus else f"{os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        **versions,
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith("NCCL_")},
    }


def tell(file: Path, result: dict[str, Any]) -> None:
    """Add a result to a file, where it stays if what follows takes too long."""
    with file.open("a") as lines:
        lines.write(json.dumps(result) + "\n")
