"""Waiting for what another thread, process or machine does."""

import time
from collections.abc import Callable
from typing import Any

OFTEN = 0.05
"""Seconds between two looks where a look is a step of what is waited for, or its time is measured."""


def until(found: Callable[[], Any], timeout: float, what: str, *, most: float = 0.4) -> Any:
    """Poll until `found` returns something, and return that.

    What has not come soon is looked for more and more seldom, at last every `most` seconds: to look costs
    processor time, which what is waited for may need.

    Raises:
        AssertionError: it does not within `timeout` seconds; says `what` was waited for.
    """
    deadline = time.monotonic() + timeout
    pause = OFTEN
    while not (result := found()):
        # After a look: of a machine that stood still meanwhile it is asked once more.
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.1, most)
    return result
