"""Programs that `hack/cluster/cluster build` has put into the cache.

While hack/test builds them beside the tests, TRENCHCOAT_COMPONENTS_BUILT names the file that it makes when
they are there; whoever needs one waits for it.
"""

import os
import time
from pathlib import Path
from typing import NoReturn

import pytest


def built(component: str, program: str = "") -> str | None:
    """A program of a component, the one that is named like it if none is named; None if it was not built."""
    wait_for_builds()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trenchcoat"
    found = sorted(cache.glob(f"components/{component}-*/{program or component}"))
    return next((str(file) for file in reversed(found) if os.access(file, os.X_OK)), None)


def wait_for_builds() -> None:
    """Wait while components are being built; hack/test ends the tests where that fails."""
    if file := os.environ.get("TRENCHCOAT_COMPONENTS_BUILT"):
        while not Path(file).exists():
            time.sleep(0.2)


def built_or_skip(component: str, program: str = "") -> str:
    """The same; the test is skipped where it was not built."""
    return built(component, program) or skip_without(component)


def skip_without(component: str) -> NoReturn:
    """Skip a test where a component was not built; where all should be, that is a failure."""
    if "TRENCHCOAT_COMPONENTS_BUILT" in os.environ:
        pytest.fail(f"no {component}: hack/test does not wait until it is built")
    pytest.skip(f"no {component}: `hack/cluster/cluster build {component}` makes one")
