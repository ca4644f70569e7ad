"""How many CPU cores this process may use."""

import os
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may run on, fewer where its container's limit is lower; at least 1."""
    cores = len(os.sched_getaffinity(0))
    if _LIMIT.exists():
        quota, period = _LIMIT.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
