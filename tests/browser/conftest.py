"""One Chromium for all tests: a second one beside it, as two fixtures would have it, cannot be started."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window, and without a sandbox where root has none."""
    program = os.environ.get("TRENCHCOAT_CHROMIUM") or shutil.which("chromium")
    assert program, (
        "there is no chromium: `make test-browser` installs Debian's, or name one in TRENCHCOAT_CHROMIUM"
    )
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()
