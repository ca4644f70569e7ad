"""Programs that `hack/cluster/cluster build` has put into the cache."""

import os
from pathlib import Path

import pytest


def built(component: str) -> str | None:
    """The program of a component that is named like it, if it was built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trenchcoat"
    found = sorted(cache.glob(f"components/{component}-*/{component}"))
    return next((str(file) for file in reversed(found) if os.access(file, os.X_OK)), None)


def built_or_skip(component: str) -> str:
    """The same; the test is skipped where it was not built."""
    program = built(component)
    if program is None:
        pytest.skip(f"no {component}: `hack/cluster/cluster build {component}` makes one")
    return program
