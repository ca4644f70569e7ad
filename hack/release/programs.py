"""Running the programs that a release is made by."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from release.versions import REPO


class ReleaseError(Exception):
    """A release cannot be made; the message says what is at fault and the remedy."""


def run(words: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end in the checkout and return what it printed.

    Raises:
        ReleaseError: it failed; the message ends with the last lines that it said.
    """
    done = subprocess.run(
        words, cwd=REPO, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise ReleaseError(f"{' '.join(map(str, words))} exited {done.returncode}:\n{said}")
    return done.stdout


def committed_at() -> str:
    """Seconds since 1970 of the last commit: what is built again from it has the same times within."""
    return run(["git", "log", "-1", "--format=%ct"]).strip()


def uncommitted() -> list[str]:
    """Files that differ from the last commit, as git tells them."""
    return run(["git", "status", "--porcelain"]).splitlines()
