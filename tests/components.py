"""Programs that `hack/cluster/cluster build` has put into the cache."""

import os
from pathlib import Path

import pytest


def built_or_skip(component: str) -> str:
    """The program of a component that is named like it; the test is skipped where it was not built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trenchcoat"
    for program in sorted(cache.glob(f"components/{component}-*/{component}")):
        return str(program)
    pytest.skip(f"no {component}: `hack/cluster/cluster build {component}` makes one")
