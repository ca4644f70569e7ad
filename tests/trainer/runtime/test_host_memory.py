"""What is left of the host's memory: by the machine, or by a control group's limit."""

from pathlib import Path

import pytest
import torch
from trenchcoat_trainer.runtime import host_memory
from trenchcoat_trainer.runtime.host_memory import available_memory

GIB = 1024**3


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With 8 GiB left, and this process in the control group /pod/own."""
    (tmp_path / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable:   {8 * 1024**2} kB\nCached: 2 kB\n")
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere\n0::/pod/own\n")
    (tmp_path / "groups/pod/own").mkdir(parents=True)
    for name, file in (("_MACHINE", "meminfo"), ("_OWN_GROUP", "cgroup"), ("_GROUPS", "groups")):
        monkeypatch.setattr(host_memory, name, tmp_path / file)
    return tmp_path


def limit(group: Path, most: str, taken: int, idle: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{taken}\n")
    (group / "memory.stat").write_text(f"anon 5\nactive_file 7\ninactive_file {idle}\nslab 1\n")


def test_without_limits_it_is_what_the_machine_has_left(machine: Path) -> None:
    limit(machine / "groups/pod/own", "max", 3 * GIB, 0)
    assert available_memory() == 8 * GIB


@pytest.mark.parametrize("group", ["groups/pod/own", "groups/pod", "groups"])
def test_the_nearest_limit_counts_without_idle_page_cache(machine: Path, group: str) -> None:
    limit(machine / "groups/pod/own", "max", 3 * GIB, 0)
    limit(machine / group, str(4 * GIB), 3 * GIB, GIB)
    limit(machine, str(0), 0, 0)  # which is no group
    assert available_memory() == 2 * GIB


def test_nothing_is_left_where_more_is_taken_than_the_limit(machine: Path) -> None:
    limit(machine / "groups", str(GIB), 2 * GIB, 0)
    assert available_memory() == 0


def seen_to_take(size: int) -> int:
    """By how much less is left once this process has taken so many bytes."""
    before = available_memory()
    taken = torch.ones(size, dtype=torch.uint8)
    less = before - available_memory()
    del taken
    return less


def test_memory_that_is_taken_here_is_not_left() -> None:
    """On this machine, where others take and give back, too: seldom as much at the same moment."""
    assert any(GIB / 2 < seen_to_take(GIB) < 3 * GIB / 2 for _ in range(10))
