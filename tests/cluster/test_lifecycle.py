"""The local cluster leaves nothing behind, also when its start is killed in the middle."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from demo.environment import CLUSTER
from lanes.lane import members
from local_cluster.layout import Layout

from tests.waiting import until

NAME = "trenchcoat-killed"


def traces() -> list[str]:
    """What of this cluster is on the machine: processes, mounts, links, cgroups."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if NAME in command and int(folder.name) != os.getpid() and "pytest" not in command:
                found.append(f"process {folder.name} {command}")
    found += [f"mount {line}" for line in Path("/proc/self/mounts").read_text().splitlines() if NAME in line]
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"cgroup {top}/{folder}" for folder in folders if NAME in folder]
    return found


def links() -> set[str]:
    """Network links of the machine, those of other clusters left out: they come and go as they like."""
    found = {path.name for path in Path("/sys/class/net").iterdir()}
    return {name for name in found if name == Layout(NAME).link or not name.startswith("tcoat-")}


@pytest.mark.parametrize("seconds", [2.0, 9.0])
def test_a_start_killed_in_the_middle_is_cleaned_up(seconds):
    before = links()
    start = subprocess.Popen(
        [str(CLUSTER), "--name", NAME, "up"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    start.send_signal(signal.SIGKILL)
    start.wait()
    # What it had just begun would go on beside the removal, and make more; daemons are in other sessions.
    until(lambda: not members(start.pid), 400, "the programs that it had begun have ended")
    subprocess.run([str(CLUSTER), "--name", NAME, "down"], check=True)
    assert traces() == []
    assert links() == before
