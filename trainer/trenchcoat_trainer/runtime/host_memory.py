"""How much memory of the host this process may still take."""

import re
from collections.abc import Iterator
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_OWN_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
"""Control groups, version 2: a container sees its own at the top."""


def available_memory() -> int:
    """Bytes that the machine has left, or fewer where a limit of this process's control groups is nearer.

    Page cache that has not been used lately counts as left.
    """
    found = re.search(r"^MemAvailable:\s*([0-9]+) kB$", _MACHINE.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{_MACHINE} tells no MemAvailable: this needs Linux")
    return min([int(found[1]) * 1024, *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """What is left of each limit."""
    own = re.search(r"^0::/(.*)$", _OWN_GROUP.read_text(), re.MULTILINE)
    group = _GROUPS / (own[1] if own else "")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(_GROUPS):
            return
        limit = folder / "memory.max"
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            idle = re.search(r"^inactive_file ([0-9]+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            taken = int((folder / "memory.current").read_text()) - (int(idle[1]) if idle else 0)
            yield max(0, int(most) - taken)
