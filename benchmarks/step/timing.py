"""Time and memory on this GPU."""

from __future__ import annotations

import gc
import statistics
import sys
import time

import torch

GB = 1e9
STARTED = time.perf_counter()


def milliseconds(function, x: torch.Tensor) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function(x)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def interleaved(functions: dict, inputs: list[torch.Tensor], rounds: int, clear) -> dict[str, float]:
    """Return the median time of each function, taking turns over the input sets."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for r in range(rounds + 2):
        for name, function in functions.items():
            elapsed = milliseconds(function, inputs[r % len(inputs)])
            clear()
            if r >= 2:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_gb(function, x: torch.Tensor, clear) -> float:
    """Return the peak of allocated GPU memory, weights included, in 10^9 bytes."""
    clear()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    function(x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / GB


def matrix_rate() -> float:
    """Return the FLOP/s of one 8192^3 bf16 product of random matrices."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [milliseconds(lambda x: x @ b, a) for _ in range(20)]
    return 2 * 8192**3 / (statistics.median(times[5:]) * 1e-3)


def log(value: object) -> None:
    print(f"[{time.perf_counter() - STARTED:6.1f} s] {value}", file=sys.stderr, flush=True)
