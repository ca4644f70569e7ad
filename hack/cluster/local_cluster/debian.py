"""Debian packages, installed by one process at a time: apt-get does not wait for another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .layout import cache
from .shell import locked, run


def install(packages: Sequence[str], log: Path) -> None:
    """Install packages without what they only recommend."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with locked(cache() / "apt.lock"):
        run(["apt-get", "update"], log=log)
        run(["apt-get", "install", "-y", "--no-install-recommends", *packages], log=log, env=quiet)
