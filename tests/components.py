"""Programs that `hack/cluster/cluster build` has put into the cache."""

import os
from pathlib import Path

import pytest


def built(component: str, program: str = "") -> str | None:
    """A program of a component, the one that is named like it if none is named; None if it was not built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trenchcoat"
    found = sorted(cache.glob(f"components/{component}-*/{program or component}"))
    return next((str(file) for file in reversed(found) if os.access(file, os.X_OK)), None)


def built_or_skip(component: str, program: str = "") -> str:
    """The same; the test is skipped where it was not built."""
    found = built(component, program)
    if found is None:
        pytest.skip(f"no {component}: `hack/cluster/cluster build {component}` makes one")
    return found
