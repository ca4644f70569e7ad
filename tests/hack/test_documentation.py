"""The documentation speaks of files that are there."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.hack.test_site import PAGES

TOP = Path(__file__).parents[2]
MADE = {TOP / "docs" / path for path in PAGES}
"""Pages that are there once the site is built."""
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def pages() -> list[str]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    return subprocess.run(listed, cwd=TOP, capture_output=True, text=True, check=True).stdout.split()


def broken(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere from a page in `folder`."""
    links = [link for link in LINK.findall(text) if "://" not in link]
    return [link for link in links if not (folder / link).exists() and folder / link not in MADE]


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    file = TOP / page
    assert broken(file.read_text(), file.parent) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "[here](README.md), [there](docs/nowhere.md#part) and [outside](https://example.com/nowhere.md)"
    assert broken(text, TOP) == ["docs/nowhere.md"]
