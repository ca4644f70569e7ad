"""Ports of the loopback interface for programs that must be told one before they listen on it.

A port that the kernel chooses is free only until it gives it to the next connection that somebody opens.
These are below those that it chooses from, and two who ask here at one time get two.
"""

import random
import socket
from pathlib import Path

_CHOSEN_BY_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20000
_held: list[socket.socket] = []
"""Names of ports that are this process's, until it ends."""


def free_port() -> int:
    """A TCP port that nothing listens on, and that no process of this machine gets from here meanwhile."""
    below = candidates()
    for port in random.sample(below, len(below)):
        if _is_mine(port):
            return port
    return _by_kernel()


def candidates() -> range:
    """Ports that the kernel gives to no connection; none where it chooses from all of them."""
    try:
        first = int(_CHOSEN_BY_KERNEL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = _LOWEST  # no Linux, or its /proc is hidden: nobody knows which these are
    return range(_LOWEST, max(first, _LOWEST))


def _is_mine(port: int) -> bool:
    """Take a port, for as long as this process lives, unless somebody has it or listens on it."""
    name = socket.socket(socket.AF_UNIX)
    try:
        # An abstract name: it is in no file system, and goes with the process.
        name.bind(f"\0trenchcoat-port-{port}")
        with socket.socket() as probe:
            probe.bind(("", port))
    except OSError:
        name.close()
        return False
    _held.append(name)
    return True


def _by_kernel() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
