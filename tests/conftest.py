"""Tests that start built components come last while these are still being built, and wait for them.

What tests start is on this machine: no proxy that a developer's environment names stands before it.
"""

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.components import wait_for_builds

STARTERS = re.compile(r"\b(minio_server|control_plane|charts\.helm|gitops\.health|built_or_skip)\b")
"""What the files of such tests mention. One that is overlooked waits where it asks for the component."""
FIXTURES = {"minio_server", "plane"}

if find_spec("hypothesis"):  # not every environment that runs some of these tests has it
    from hypothesis import settings

    # Always the same examples, however long one takes on a busy machine; `make explore` has others each time.
    settings.register_profile("explore", settings.get_profile("ci"), derandomize=False)
    settings.load_profile("ci")

for name in ("NO_PROXY", "no_proxy"):
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.0/8,127.0.0.1,::1")))


@cache
def mentions_components(file: Path) -> bool:
    return bool(STARTERS.search(file.read_text(encoding="utf-8")))


def needs_components(item: pytest.Item) -> bool:
    return bool(FIXTURES.intersection(getattr(item, "fixturenames", ()))) or mentions_components(item.path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "TRENCHCOAT_COMPONENTS_BUILT" in os.environ:
        items.sort(key=needs_components)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here, as no time limit of a test counts yet.
    if needs_components(item):
        wait_for_builds()
