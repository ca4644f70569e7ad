"""What commands print on, and what becomes of them where that takes nothing more."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from rich.console import Console


class OutputError(Exception):
    """What a command tells cannot be written: says why, and the remedy."""


class Printer(Console):
    """A console on standard output that tells a full disk from a fault of the program."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, as rich's console does.

        Raises:
            OutputError: standard output takes nothing more; what was not written is given up.
        """
        with _told():
            super().print(*objects, **options)

    def out(self, *objects: Any, **options: Any) -> None:
        """Print as it is; errors as above."""
        with _told():
            super().out(*objects, **options)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Have a command say its version, which a report of a fault should name."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")


class _Version(argparse.Action):
    """Looks it up when it is asked for: no stage should wait for that."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        Printer().out(f"{parser.prog} {version('trenchcoat')}", highlight=False)
        parser.exit()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _give_up()
        raise OutputError(
            f"standard output cannot be written to ({error.strerror}): give it a file on a disk that has "
            "free space, or /dev/null"
        ) from error


def _give_up() -> None:
    """Point standard output at nothing: as it ends, the interpreter writes the rest, and would fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, sys.stdout.fileno())
    finally:
        os.close(nothing)
