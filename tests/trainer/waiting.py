"""Waiting for what another process does."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Return when something has happened.

    Raises:
        pytest.fail.Exception: it does not in 30 s.
    """
    for _ in range(3000):
        if happened():
            return
        time.sleep(0.01)
    pytest.fail(f"{what}: not within 30 s")


def wait_for(file: Path) -> None:
    """Return when a file is there.

    Raises:
        pytest.fail.Exception: it is not in 30 s.
    """
    wait_until(file.exists, f"{file} appears")
