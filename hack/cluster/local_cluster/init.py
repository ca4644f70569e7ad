"""Process 1 of a cluster's namespaces, or of a node's: make the mounts, then wait to be killed.

Run by `unshare` as `init.py cluster|node MARKER READY_FILE`; everything else is started into the namespaces
from outside. With it the kernel takes every process, mount and link of the namespaces.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

# What kubelet insists on, and would set for the whole machine: shown to it as if set already.
KUBELET_WANTS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
# Fixed folders that programs write to: in memory, so that the disk of the machine stays as it was.
IN_MEMORY = ("/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet")


def mount(*arguments: str) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    """Set the namespaces up, say so, and stay."""
    role, _, ready = sys.argv[1:]
    mount("--make-rshared" if role == "node" else "--make-rprivate", "/")
    mount("-t", "proc", "proc", "/proc")
    for folder in IN_MEMORY:
        Path(folder).mkdir(exist_ok=True)
        mount("-t", "tmpfs", "tmpfs", folder)
    if role == "node":
        Path("/run/netns").mkdir()
        mount("-t", "tmpfs", "tmpfs", "/run/netns")
        for key, value in KUBELET_WANTS.items():
            seen = Path("/run/sysctl") / key
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(value + "\n")
            mount("--bind", str(seen), f"/proc/sys/{key}")
    network = Path("/proc/sys/net/ipv4")
    (network / "ip_forward").write_text("1\n")
    # Connections whose ends were killed keep a network namespace for minutes otherwise.
    (network / "tcp_orphan_retries").write_text("1\n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel reaps the orphans that come to process 1.
    Path(ready).touch()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
