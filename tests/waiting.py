"""Waiting for what another thread, process or machine does."""

import time
from collections.abc import Callable
from typing import Any


def until(found: Callable[[], Any], timeout: float, what: str) -> Any:
    """Poll until `found` returns something, and return that.

    Raises:
        AssertionError: it does not within `timeout` seconds; says `what` was waited for.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        result = found()
        if result:
            return result
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout:.0f} s")
