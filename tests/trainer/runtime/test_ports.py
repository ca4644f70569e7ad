"""Ports that are told to a program before it listens: nobody else is told the same."""

import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from trenchcoat_trainer.runtime import ports

ANOTHER = """
import sys
from trenchcoat_trainer.runtime import ports
ports.candidates = lambda: range(int(sys.argv[1]), int(sys.argv[2]))
print(ports.free_port())
"""


def row_of_free_ports(count: int) -> range:
    """So many ports in a row that nobody has."""
    for first in range(15000, 20000, count):  # which nobody else is told meanwhile
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.socket()).bind(("", port))
                    probes.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0trenchcoat-port-{port}")
            except OSError:
                continue
            return range(first, first + count)
    pytest.fail("no row of free ports")


def test_no_connection_is_given_such_a_port_by_the_kernel() -> None:
    first = int(ports._CHOSEN_BY_KERNEL.read_text().split()[0])
    assert ports.free_port() in range(20000, first)


def test_what_listens_and_what_others_were_told_is_given_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of_free_ports(3)
    monkeypatch.setattr(ports, "candidates", lambda: row)
    with socket.socket() as other:
        other.bind(("127.0.0.1", row[0]))
        other.listen()
        mine = ports.free_port()
        assert mine in row[1:]
        words = [sys.executable, "-c", ANOTHER, str(row.start), str(row.stop)]
        said = subprocess.run(words, capture_output=True, text=True, check=True)
        assert {mine, int(said.stdout)} == set(row[1:])
        # That process has ended, and what it was told is free again.
        assert {mine, ports.free_port()} == set(row[1:])
        assert ports.free_port() not in row, "the kernel chooses where none is left"
