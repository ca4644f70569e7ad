"""Waiting for what another process does."""

import time
from pathlib import Path

import pytest


def wait_for(file: Path) -> None:
    """Return when a file is there.

    Raises:
        pytest.fail.Exception: it is not in 30 s.
    """
    for _ in range(3000):
        if file.exists():
            return
        time.sleep(0.01)
    pytest.fail(f"{file} does not appear")
